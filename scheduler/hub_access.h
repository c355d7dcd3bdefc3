/*
 * Which hubs jobs may use, and how a worker is told of its job's hub: by its environment, in the
 * variables that the hub client reads anyway. A token is passed by the path of the file that holds
 * it, so that it stands neither on a command line, nor in an environment, nor in the database.
 *
 * A job uses the hub of castord's own environment (HF_ENDPOINT, with HF_TOKEN and the cache of
 * HF_HUB_CACHE) or one that the administrator listed. A listed one has its own token, or none, and
 * its own cache: what one hub calls org/name must not be taken for another's. Whatever the hub, a
 * job with a token of its own uses that one, and never the server's.
 *
 * The table is constant after hub_access_init; any thread may read it.
 */
#ifndef CASTOR_SCHEDULER_HUB_ACCESS_H
#define CASTOR_SCHEDULER_HUB_ACCESS_H

#include <stdbool.h>
#include <stdint.h>

#include "api/job_spec.h"
#include "core/err.h"

struct hub_endpoint {
    char *url;        /* canonical (api/hub_endpoint.h) */
    char *token_file; /* NULL: nothing is sent */
    char *cache_dir;  /* NULL: STATE/hub/<name> */
};

struct hub_access {
    struct hub_endpoint *listed;
    int64_t n_listed;
    char *default_url; /* of castord's environment; NULL when that names no address */
};

/* Copies the list. */
void hub_access_init(struct hub_access *a, const struct hub_endpoint *listed, int64_t n,
                     const char *state_dir);
void hub_access_fini(struct hub_access *a);

/* castord's environment, changed for the job whose directory this is. visible_devices is
 * CUDA_VISIBLE_DEVICES, NULL = as castord's own. Errors, which last, have a reason:
 *   hub_not_allowed   the job's hub is no longer listed
 *   hub_token_gone    the job had a token of its own, and its file is not there */
int hub_access_environment(const struct hub_access *a, const struct job_spec *spec,
                           const char *jobdir, const char *visible_devices, char ***envp,
                           struct err *err);
void hub_access_free_environment(char **envp);

/* Put spec->hub.token, if there is one, into the job directory, and forget it. */
int hub_access_keep_token(struct job_spec *spec, const char *jobdir, struct err *err);
/* The job has ended. */
void hub_access_drop_token(const char *jobdir);

#endif
