/*
 * What `castor-worker --plan JOBDIR` prints on stdout (one JSON object, then a newline), what a
 * plan event carries and what dry runs and estimates answer with:
 *
 *   {"object":"fine_tuning.plan","v":1,"fits":true,
 *    "spec":{...the resolved spec, api/job_spec.h...},
 *    "model":{"family","parameters","trainable_parameters","layers","vocabulary","context_length"},
 *    "data":{"examples","tokens","target_tokens","rows","validation_examples","validation_tokens"},
 *    "steps":N,"steps_per_epoch":N,
 *    "device":{"kind","name"},
 *    "instructions":N,
 *    "memory":{"gpu":{"weights","gradients","optimizer","activations","workspace","buffers","total","limit"},
 *              "host":{...},"nvme":{...}},
 *    "links":{"h2d","d2h","disk_read","disk_write","network"},        bytes a step
 *    "step_seconds":x,"step_seconds_bound":x,                 absent where the machine is not known
 *    "step_seconds_clipped":x,"step_seconds_clipped_bound":x,     likewise, and without clipping
 *    "basis":"measured"|"model",
 *    "warnings":[{"code","message"}],
 *    "alternatives":[{"change":"placement.policy
 * \"auto\"","settings":{"placement":{"policy":"auto"}},
 *                     "memory":{"gpu","host","nvme"},"step_seconds":x}]}     settings that are
 * faster
 *
 * or, with exit status 1,
 * {"object":"fine_tuning.plan","v":1,"fits":false,"error":{"code","reason","message","param"},
 *  "alternatives":[...]}                                          the nearest settings that would
 * fit castord treats the text as untrusted: parsed with limits, the child's time and memory
 * bounded.
 */
#ifndef CASTOR_API_PLAN_REPORT_H
#define CASTOR_API_PLAN_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/job_spec.h"
#include "core/err.h"

enum plan_purpose {
    PURPOSE_WEIGHTS,
    PURPOSE_GRADIENTS,
    PURPOSE_OPTIMIZER,
    PURPOSE_ACTIVATIONS, /* saved for backward, boundaries */
    PURPOSE_WORKSPACE,   /* scratch of ops                 */
    PURPOSE_BUFFERS,     /* batches, norms, staging        */
    PURPOSE_COUNT,
};

enum plan_tier { TIER_GPU, TIER_HOST, TIER_NVME, TIER_COUNT };
enum plan_link { LINK_H2D, LINK_D2H, LINK_DISK_READ, LINK_DISK_WRITE, LINK_NETWORK, LINK_COUNT };

const char *plan_tier_name(enum plan_tier t);

struct plan_tier_memory {
    int64_t by_purpose[PURPOSE_COUNT]; /* bytes at the moment of the peak */
    int64_t total;                     /* the peak                        */
    int64_t limit;                     /* 0 = unknown or none             */
};

struct plan_report {
    bool fits;
    struct job_spec spec; /* resolved; owned */
    char family[32];
    int64_t parameters;           /* of the model                                   */
    int64_t trainable_parameters; /* what is trained: all of these, or the adapters */
    int64_t layers, vocabulary, context_length;
    int64_t examples, tokens, target_tokens, rows; /* training set after packing      */
    int64_t validation_examples, validation_tokens;
    int64_t steps, steps_per_epoch;
    char device_kind[16], device_name[64];
    int64_t instructions;
    struct plan_tier_memory memory[TIER_COUNT];
    int64_t link_bytes[LINK_COUNT];
    /* NaN = no device profile. The bound is what no schedule of the same work takes less than. Of a
     * job that clips gradients this is a step that updated ahead of their norm and did not clip, as
     * far as the plan updates so. */
    double step_seconds, step_seconds_bound;
    /* Of one whose updates wait for the norm, as in steps that clip; NaN also where nothing is
     * clipped. All gradients of the last backward are there before such an update begins, so the
     * bound is longer, too. */
    double step_seconds_clipped, step_seconds_clipped_bound;
    bool measured;        /* basis */
    json_t *warnings;     /* array or NULL; owned */
    json_t *alternatives; /* array or NULL; owned */
    struct err error;     /* when !fits           */
};

json_t *plan_report_to_json(const struct plan_report *r);
int plan_report_from_json(const json_t *value, struct plan_report *out, struct err *err);
void plan_report_fini(struct plan_report *r);

#endif
