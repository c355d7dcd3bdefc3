/*
 * A fixture hub (tests/hub/fixture_hub.py) for one test: a process of its own on a free port, with
 * repositories in a temporary directory, that dies with the test. Failures end the test.
 *
 * Repositories made by fixture_start:
 *   org/tiny      config, tokenizer, model.safetensors (300,000 bytes), and files nobody wants
 *   org/sharded   two shards of 50,000 bytes and an index
 *   org/bin       pytorch_model.bin
 *   org/gated, org/private, org/disabled; "old" is a former name of org/tiny
 * Data sets are for the test to put, as "datasets/org/name"; datasets/org/gated is a gated one.
 * Tokens: hf_granted may read everything, hf_other not the gated one.
 */
#ifndef CASTOR_TESTS_UNIT_WORKER_HUB_FIXTURE_H
#define CASTOR_TESTS_UNIT_WORKER_HUB_FIXTURE_H

#include <jansson.h>
#include <stddef.h>
#include <sys/types.h>

#include "worker/hub/hub.h"

enum { TINY_WEIGHT_BYTES = 300000, SHARD_BYTES = 50000 };

struct fixture {
    pid_t pid;
    char dir[64];
    char *root, *cache, *endpoint;
};

void fixture_start(struct fixture *f);
void fixture_stop(struct fixture *f);
void fixture_put(const struct fixture *f, const char *repo, const char *name, const void *bytes,
                 size_t n);
/* Bytes that look random and depend on n alone; freed by the caller. */
char *fixture_noise(size_t n);

/* Replace the faults by this JSON list, and forget the requests so far. */
void fixture_set_faults(const struct fixture *f, const char *json);
/* The requests so far, a new reference. */
json_t *fixture_log(const struct fixture *f);
/* How many of them have this server ("hub", "store"), method and a path that contains `part`; NULL
 * stands for any. */
int fixture_count(const struct fixture *f, const char *server, const char *method,
                  const char *part);

/* The Range of the last request to the store, "" where it had none; freed by the caller. */
char *fixture_last_range(const struct fixture *f);

/* A client without token and with short waits, on f->cache. */
/* Silence of the hub is given up after so many seconds; otherwise after 300, so that a machine
 * under load is no silence. */
struct hub *fixture_client_patient(const struct fixture *f, double stall_timeout);
struct hub *fixture_client(const struct fixture *f);
void fixture_empty_cache(const struct fixture *f);

/* Fetch revision "main" and check the code and the reason (NULL = any). Prints the error's text
 * when it is another one. */
void fixture_expect(struct hub *hub, const char *repo, enum hub_want want, enum err_code code,
                    const char *reason);
/* Fetch with weights, and compare each file with the repository's. */
void fixture_expect_whole(const struct fixture *f, struct hub *hub, const char *repo);

#endif
