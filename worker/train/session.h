/*
 * A session: everything that training needs before the device is touched, made from the job's spec:
 * the model's files, its anatomy, the tokenizer, the data, and the spec with every "auto" decided.
 * `castor-worker --plan` ends here and prints the report; training goes on from here.
 *
 * What is decided here is written back into the spec and is final: the same spec, model and data
 * give the same session on every machine, but for the rows of a micro-batch where they are left
 * open: session_plan decides on them.
 */
#ifndef CASTOR_WORKER_TRAIN_SESSION_H
#define CASTOR_WORKER_TRAIN_SESSION_H

#include "api/event.h"
#include "api/job_spec.h"
#include "api/plan_report.h"
#include "core/err.h"
#include "kernels/device.h"
#include "worker/hub/hub.h"
#include "worker/model/model.h"
#include "worker/plan/plan.h"
#include "worker/text/dataset.h"
#include "worker/text/tokenizer.h"
#include "worker/train/host_memory.h"
#include "worker/train/sources.h"

/* Called when a phase begins. */
typedef void (*session_phase_fn)(void *ud, enum event_phase phase);

struct session_options {
    const char *scratch_dir;   /* the job's directory: room for the tokenized data */
    bool want_weights;         /* false: config, tokenizer and data are enough, for a plan */
    hub_progress_fn progress;  /* or NULL */
    session_phase_fn on_phase; /* or NULL */
    void *ud;                  /* of both */
};

struct session {
    struct job_spec spec;    /* resolved */
    enum device_kind device; /* that it is made for: session_device(&spec) */
    struct sources sources;
    struct model model;
    struct tokenizer *tokenizer;
    struct dataset *train, *validation; /* validation NULL when there is none */
    int64_t steps_per_epoch, total_steps;
    int64_t micro_batch, micro_batches, seq_length; /* frozen choices */
    bool micro_batch_open;                          /* session_plan may change the first two */
};

/* The device a spec asks for: the GPU when there is one that works, else the CPU. */
enum device_kind session_device(const struct job_spec *spec);
/* The type that the job's weights and activations are stored in: bf16 for "fp8". */
enum dtype session_dtype(const struct job_spec *spec);

int session_prepare(const struct job_spec *spec, const struct session_options *options,
                    struct session *out, struct err *err);
void session_fini(struct session *s);

/* What a machine has for the session. */
struct session_memory {
    size_t device; /* bytes, 0 = no limit; a CPU's are host memory: never more than there is */
    struct host_memory host;
};

/* What the planner is asked for this session; borrows from it, from profile and memory. The job's
 * own limits lower what the memory is, and never raise it. */
int session_plan_input(const struct session *s, const struct op_table *ops,
                       const struct device_profile *profile, const struct session_memory *memory,
                       struct plan_input *out, struct err *err);
/* What the job's own limits could be raised to; 0 where it has none. */
void session_limits(const struct session *s, const struct session_memory *memory,
                    size_t out[TIER_COUNT]);
/* Settles on so many rows a micro-batch, 1 to the step's. */
void session_set_micro_batch(struct session *s, int64_t rows);
/* session_plan.c: the plan for this session on an op table within so much memory, from which it
 * borrows, too. `profile` may be NULL: nominal rates. Where the rows of a micro-batch are open they
 * become those of the fastest plan that fits; a CPU's gain nothing by other than the first, if that
 * fits. Looks at the session, the table, the profile and the memory alone, at no device: any
 * machine can plan for any other. */
int session_plan(struct session *s, const struct op_table *ops,
                 const struct device_profile *profile, const struct session_memory *memory,
                 struct plan **out, struct err *err);

/* session_plan.c: err says that the device did not give what a plan claims. Behind that, whether
 * the job fits in what is there now, or else how much it lacks and what would fit. */
void session_tell_fit(struct session *s, const struct op_table *ops,
                      const struct device_profile *profile, const struct session_memory *now,
                      struct err *err);

/* session_plan.c: a job that does not fit in what is left, would it in all of this machine's host
 * memory (HOST_WHOLE) and `device` bytes of the device's (session_memory)? */
bool session_fits_alone(struct session *s, const struct op_table *ops,
                        const struct device_profile *profile, size_t device);

/* The report of session and plan; strings and JSON are the report's own. */
int session_report(const struct session *s, const struct plan *plan, const char *device_kind,
                   const char *device_name, struct plan_report *out, struct err *err);

#endif
