/*
 * What a job's spec refers to, as files on this machine: the model's directory, the files of the
 * training and of the validation data. What is not local comes from the hub of the environment
 * (worker/hub/hub.h), which must be the job's hub: with another one's address the environment's
 * token would go where it does not belong.
 */
#ifndef CASTOR_WORKER_TRAIN_SOURCES_H
#define CASTOR_WORKER_TRAIN_SOURCES_H

#include "api/job_spec.h"
#include "core/err.h"
#include "worker/hub/hub.h"

struct sources_data {
    char **paths; /* one behind the other they are the set; none = there is no such data */
    int64_t n;
    char *name; /* for messages */
};

struct sources {
    char *model_dir;
    struct sources_data train, validation;
};

struct sources_options {
    bool want_weights;
    hub_progress_fn progress; /* or NULL */
    void *ud;
};

/* Downloads what is missing. The commits that revisions stand for are written into the spec, and
 * are what a spec that has them means. Errors as in hub.h, with the spec's member as param. */
int sources_fetch(struct job_spec *spec, const struct sources_options *options, struct sources *out,
                  struct err *err);
void sources_fini(struct sources *s);

/* The split train of a data set on the hub, by a reference as training_file has it. */
int sources_fetch_dataset(const char *reference, struct sources_data *out, struct err *err);
void sources_data_fini(struct sources_data *d);

#endif
