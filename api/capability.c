#include "api/capability.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "api/record.h"

struct capability {
    const char *param;
    /* Patterns of fnmatch(3) with '|' between them; with '!' in front, what is refused instead. A
     * value is matched as text: strings as they are, null and [] as such, lists and objects as
     * "set". */
    const char *done;
    const char *code, *message;
};

static const struct capability capabilities[] = {
    {"model", "!ft:*|ftckpt_*", "unsupported_model",
     "training on from a fine-tuned model or checkpoint is not supported; name a model on the hub"},
    {"method.type", "!dpo|reinforcement", "unsupported_method",
     "only the method \"supervised\" is supported"},
    {"integrations", "null|[]", "unsupported_integration",
     "no integration is supported; leave `integrations` out and read the job's events instead"},
    {"webhook", "null", "unsupported_webhook",
     "webhooks are not supported; leave `webhook` out and poll the job or its events"},
    {"parallelism.data", "1", "unsupported_parallelism", "one rank is supported: use 1"},
    {"parallelism.tensor.mode", "1d", "unsupported_parallelism",
     "one rank is supported: leave the mode at \"1d\""},
    {"parallelism.tensor.size", "1", "unsupported_parallelism", "one rank is supported: use 1"},
    {"parallelism.tensor.depth", "1", "unsupported_parallelism", "one rank is supported: use 1"},
    {"parallelism.pipeline.stages", "1", "unsupported_parallelism", "one rank is supported: use 1"},
    {"parallelism.pipeline.schedule", "1f1b", "unsupported_parallelism",
     "pipelines are not supported: leave the schedule at \"1f1b\""},
    {"parallelism.context", "1", "unsupported_parallelism", "one rank is supported: use 1"},
    {"parallelism.zero", "0", "unsupported_parallelism", "one rank is supported: use stage 0"},
    {"resources.gpus", "auto|1", "unsupported_resources", "at most 1 GPU a job is supported"},
    {"resources.nodes", "1", "unsupported_resources", "1 node is supported"},
    {"resources.backend", "local", "unsupported_resources", "the backend \"local\" is supported"},
};

static void value_as_text(const json_t *value, char *out, size_t cap)
{
    if (!value || json_is_null(value))
        snprintf(out, cap, "null");
    else if (json_is_string(value))
        snprintf(out, cap, "%s", json_string_value(value));
    else if (json_is_integer(value))
        snprintf(out, cap, "%" PRId64, (int64_t)json_integer_value(value));
    else
        snprintf(out, cap, "%s",
                 json_is_array(value) && json_array_size(value) == 0 ? "[]" : "set");
}

static bool is_one_of(const char *text, const char *patterns)
{
    char pattern[64];

    while (*patterns) {
        size_t n = strcspn(patterns, "|");
        snprintf(pattern, sizeof(pattern), "%.*s", (int)n, patterns);
        if (fnmatch(pattern, text, 0) == 0)
            return true;
        patterns += n + (patterns[n] == '|');
    }
    return false;
}

void capability_check(const json_t *stored, const json_t *body, struct fault_list *faults)
{
    for (size_t i = 0; i < sizeof(capabilities) / sizeof(capabilities[0]); i++) {
        const struct capability *c = &capabilities[i];
        const json_t *value = record_lookup(stored, c->param);
        bool is_list_of_refused = c->done[0] == '!';
        char text[256];

        if (!value)
            value = record_lookup(body, c->param);
        /* Absent altogether, as the members of "parallelism": "auto". */
        if (!value)
            continue;
        value_as_text(value, text, sizeof(text));
        if (is_one_of(text, c->done + is_list_of_refused) == is_list_of_refused)
            fault_add(faults, c->param, c->code, "%s: %s", c->param, c->message);
    }
}
