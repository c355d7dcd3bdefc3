/*
 * A list of faults found in one request, so that one answer names them all. Each has the path of
 * the offending member in dots and brackets ("method.supervised.hyperparameters.n_epochs",
 * "sample_prompts[2]"), a code for programs and a sentence for people. The list owns its strings
 * and keeps at most FAULT_MAX; the rest are counted.
 */
#ifndef CASTOR_API_FAULT_H
#define CASTOR_API_FAULT_H

#include <jansson.h>
#include <stdint.h>

enum { FAULT_MAX = 64 };

struct fault {
    char *param, *code, *message;
};

struct fault_list {
    struct fault items[FAULT_MAX];
    int64_t n;       /* stored */
    int64_t n_found; /* in all */
};

void fault_add(struct fault_list *list, const char *param, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void fault_list_fini(struct fault_list *list);
/* [{"param","code","message"}, ...] */
json_t *fault_list_to_json(const struct fault_list *list);

#endif
