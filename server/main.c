/*
 * castord: the server. Owns the state directory (through the scheduler's lock), answers HTTP, and
 * leaves running jobs alone when it stops: they are processes of their own, and the next castord
 * takes them up again.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/log.h"
#include "scheduler/scheduler.h"
#include "server/config.h"
#include "server/http.h"
#include "server/openapi.h"

enum { DRAIN_SECONDS = 10 };

static int stop_pipe[2];

/* Handlers rather than a blocked mask or SIG_IGN: children inherit those two, handlers they do not.
 */
static void on_stop(int signal_number)
{
    int saved = errno;
    char c = (char)signal_number;
    ssize_t n = write(stop_pipe[1], &c, 1);
    (void)n; /* a full pipe means that the stop is known already */
    errno = saved;
}

static void on_ignored(int signal_number)
{
}

static int signals_prepare(struct err *err)
{
    struct sigaction stop = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
    struct sigaction ignore = {.sa_handler = on_ignored, .sa_flags = SA_RESTART};

    if (pipe2(stop_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
        return err_set_errno(err, errno, "cannot create a pipe");
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGXFSZ, &ignore, NULL);
    return 0;
}

static void wait_for_stop(void)
{
    struct pollfd p = {.fd = stop_pipe[0], .events = POLLIN};
    char c = 0;

    while (read(stop_pipe[0], &c, 1) != 1)
        poll(&p, 1, -1);
    log_info("main", "signal=%d stopping; running jobs go on", (int)c);
}

static void usage(FILE *to)
{
    fprintf(to, "usage: castord [--listen HOST:PORT] [--state DIR] [--config FILE]\n"
                "  --listen   default 127.0.0.1:8080; port 0 = a free one\n"
                "  --state    jobs, files and the database; default $XDG_STATE_HOME/castor\n"
                "  --config   JSON: api_keys, volumes, hub_endpoints, local_model_dirs, slots,\n"
                "             limits, threads, worker, organization; server/config.h has them all\n"
                "  --version, --help\n");
}

/* *done: nothing is left to do (--help). */
static int arguments_parse(int argc, char **argv, struct server_config *config,
                           struct listen_address *listen, bool *done, struct err *err)
{
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'}, {"state", required_argument, NULL, 's'},
        {"config", required_argument, NULL, 'c'}, {"version", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    const char *address = "127.0.0.1:8080", *state = NULL, *file = NULL;
    int option;
    int rc = 0;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'l':
            address = optarg;
            break;
        case 's':
            state = optarg;
            break;
        case 'c':
            file = optarg;
            break;
        case 'v':
            printf("castord %s\n", CASTOR_VERSION);
            *done = true;
            return 0;
        case 'h':
            usage(stdout);
            *done = true;
            return 0;
        default:
            return err_set(err, ERR_INVALID, "unknown argument; castord --help lists them");
        }
    }
    if (optind < argc)
        return err_set(err, ERR_INVALID, "'%s' is no argument; castord --help lists them",
                       argv[optind]);
    config->state_dir = state ? xstrdup(state) : config_default_state_dir();
    if (!config->state_dir || !*config->state_dir)
        return err_set(err, ERR_INVALID, "neither --state nor HOME is set; use --state DIR");
    if (file)
        TRY(config_load(config, file, err));
    TRY(config_parse_listen(address, listen, err));
    if (!listen->loopback && config->n_keys == 0)
        rc =
            err_set(err, ERR_PERMISSION,
                    "refusing to listen on %s without API keys: anybody who can reach it could run "
                    "jobs. Put api_keys into a file for --config, or listen on 127.0.0.1",
                    listen->host);
out:
    return rc;
}

/* Paths go to the database and to children with other working directories. */
static int state_prepare(struct server_config *config, struct err *err)
{
    int rc = 0;

    TRY(fs_mkdir_p(config->state_dir, true, err));
    char *absolute = realpath(config->state_dir, NULL);
    if (!absolute)
        return err_set_errno(err, errno, "cannot use the state directory %s", config->state_dir);
    free(config->state_dir);
    config->state_dir = absolute;
    char *worker = realpath(config->worker_path, NULL);
    if (worker) {
        free(config->worker_path);
        config->worker_path = worker;
    } else {
        log_warn("main", "worker=%s is not there; jobs cannot run until it is",
                 config->worker_path);
    }
out:
    return rc;
}

static int serve(struct server_config *config, const struct listen_address *listen, struct err *err)
{
    struct scheduler *scheduler = NULL;
    struct http_server *http = NULL;
    int rc = 0;

    TRY(state_prepare(config, err));
    TRY(signals_prepare(err));
    struct scheduler_config sc = {.state_dir = config->state_dir,
                                  .worker_path = config->worker_path,
                                  .cpu_slots = config->cpu_slots,
                                  .gpu_slots = config->gpu_slots,
                                  .silence_seconds = config->limits.silence_seconds,
                                  .plan_seconds = config->limits.plan_seconds,
                                  .plan_memory = (size_t)config->limits.plan_bytes,
                                  .hub_endpoints = config->hubs,
                                  .n_hub_endpoints = config->n_hubs,
                                  .organization = config->organization};
    TRY(scheduler_create(&sc, &scheduler, err));
    TRY(http_create(config, listen, scheduler, &http, err));
    log_info("main", "listening on http://%s:%u", listen->host, http_port(http));
    wait_for_stop();
    if (!http_stop(http, DRAIN_SECONDS)) {
        /* Everything that matters is on disk already; a request that waits for a child is not. */
        log_warn("main", "some requests still run after %d s; leaving them", DRAIN_SECONDS);
        _exit(0);
    }
out:
    scheduler_destroy(scheduler);
    return rc;
}

int main(int argc, char **argv)
{
    struct server_config config;
    struct listen_address listen = {0};
    struct err err = {0};
    bool done = false;

    config_init(&config);
    int rc = arguments_parse(argc, argv, &config, &listen, &done, &err);
    if (rc == 0 && !done)
        rc = serve(&config, &listen, &err);
    if (rc != 0)
        fprintf(stderr, "castord: %s\n", err.msg);
    config_fini(&config);
    return rc == 0 ? 0 : 1;
}
