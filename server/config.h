/*
 * castord's configuration: one JSON file, read once at start, constant afterwards; any thread may
 * read it. Every member is optional:
 *
 *   {"api_keys":[{"name":"alice","sha256":"<64 hex digits>","role":"read"|"submit"|"admin"}],
 *    "organization":"org-castor", "worker":"/usr/lib/castor/castor-worker",
 *    "threads":16, "strict_openai_status":false,
 *    "local_model_dirs":["/srv/models"],
 *    "volumes":[{"name":"fast","path":"/mnt/nvme0/castor"}],
 *    "hub_endpoints":[{"url":"https://hub.example.org","token_file":"/etc/castor/hub-token",
 *                      "cache_dir":"/srv/hub-cache"}],
 *    "slots":{"cpu":1,"gpu":-1},
 *    "limits":{"file_bytes":536870912,"body_bytes":1048576,"free_bytes":67108864,
 *              "connections":512,"connections_per_address":256,"idle_seconds":60,
 *              "silence_seconds":1800,"plan_seconds":600,"plan_bytes":8589934592,
 *              "check_seconds":120,"check_bytes":8589934592}}
 *
 * Keys are kept as SHA-256 only (`printf %s "$KEY" | sha256sum`), so the file holds no secret; a
 * key in plain text is refused. A model may be a local path only below one of local_model_dirs
 * (none by default): a path would let a client read what castord can read. A job may name a hub of
 * hub_endpoints besides that of castord's environment (scheduler/hub_access.h); token_file (what is
 * in it, and nothing else, is sent there) and cache_dir may be absent. Without keys castord
 * serves loopback addresses only. `slots` are how many jobs run at a time on the CPU and on GPUs
 * (-1 = as many as there are); where there are 0, a job for that is refused.
 */
#ifndef CASTOR_SERVER_CONFIG_H
#define CASTOR_SERVER_CONFIG_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "core/buf.h"
#include "core/err.h"
#include "scheduler/hub_access.h"

/* What a key may do; each includes the ones before it. */
enum role {
    ROLE_PUBLIC, /* no key needed                                */
    ROLE_READ,   /* look at everything                           */
    ROLE_SUBMIT, /* upload, create, steer                        */
    ROLE_ADMIN,  /* remove models; whatever concerns the machine */
};

struct api_key {
    char name[64];
    char sha256[65]; /* lower-case hex */
    enum role role;
};

enum { CONFIG_MAX_KEYS = 256, CONFIG_MAX_DIRS = 16, CONFIG_MAX_HUBS = 64 };

struct server_limits {
    int64_t file_bytes; /* of an uploaded file                                  */
    int64_t body_bytes; /* of a JSON body                                       */
    int64_t free_bytes; /* kept free on the state's disk; less means not ready  */
    int64_t connections, connections_per_address;
    int64_t idle_seconds;               /* a silent connection is closed after that */
    int64_t silence_seconds;            /* an attempt without a sign of life is ended */
    int64_t plan_seconds, plan_bytes;   /* of a castor-worker --plan child          */
    int64_t check_seconds, check_bytes; /* of a castor-worker --check child; bytes 0 = none */
};

/* A directory on a fast disk that jobs may place optimizer states in, by its name. */
struct volume {
    char name[64];
    char *path; /* absolute, without links */
};

struct server_config {
    char *state_dir;
    char *worker_path;
    char *organization;
    int64_t threads; /* that run handlers */
    bool strict_openai_status;
    int64_t cpu_slots, gpu_slots;
    struct server_limits limits;
    struct api_key *keys;
    int64_t n_keys;
    char *local_model_dirs[CONFIG_MAX_DIRS]; /* absolute, without links */
    int64_t n_local_model_dirs;
    struct volume volumes[CONFIG_MAX_DIRS];
    int64_t n_volumes;
    struct hub_endpoint hubs[CONFIG_MAX_HUBS];
    int64_t n_hubs;
};

/* Defaults; state_dir NULL, worker_path "castor-worker" beside the running program. */
void config_init(struct server_config *c);
void config_fini(struct server_config *c);
/* Read a file over what *c holds; *c is unchanged on failure. */
int config_load(struct server_config *c, const char *path, struct err *err);
/* The directory of the volume of that name, or NULL; what there is goes to `names`. */
const char *config_volume(const struct server_config *c, const char *name, struct buf *names);
/* The path without links when it lies in or below a local_model_dirs entry; fresh, or NULL. */
char *config_local_model(const struct server_config *c, const char *path);
/* Whether a job may name that canonical address; if not, *allowed is those it may. */
bool config_hub_allowed(const struct server_config *c, const char *url, struct buf *allowed);
/* $XDG_STATE_HOME/castor, else $HOME/.local/state/castor; NULL when neither is set. */
char *config_default_state_dir(void);

struct listen_address {
    struct sockaddr_storage addr;
    socklen_t len;
    char host[64]; /* as it is written in a URL: "127.0.0.1", "[::1]" */
    bool loopback;
};

/* "HOST:PORT", "[::1]:PORT", "localhost:PORT"; port 0 = a free one. */
int config_parse_listen(const char *text, struct listen_address *out, struct err *err);

#endif
