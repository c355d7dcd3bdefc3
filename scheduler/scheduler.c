#include "scheduler/scheduler.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "core/log.h"
#include "scheduler/devices.h"
#include "scheduler/scheduler_impl.h"
#include "scheduler/store_write.h"

enum {
    POST_SECONDS = 30,
    MAX_WATCHED = 8,
    DEVICE_SECONDS = 20,
    SILENCE_SECONDS = 1800,
    MEMORY_WAIT_SECONDS = 300,
    LEAST_DOWNLOAD_RATE = 64 << 10, /* bytes a second: what is slower must not hold a place long */
};
static const size_t default_plan_memory = (size_t)8 << 30;
static const double stale_tick_seconds = 10, touch_seconds = 5, lock_patience_seconds = 2;

static void wake_up(struct scheduler *s)
{
    if (write(s->wake[1], "", 1) < 0)
        return; /* full: the thread is awake anyway */
}

/* Take the command back; false when the thread has begun it. Called with the mutex held. */
static bool withdraw(struct scheduler *s, struct command *c)
{
    struct command **at = &s->first;

    if (c->started)
        return false;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    if (s->last == &c->next)
        s->last = at;
    return true;
}

int scheduler_post(struct scheduler *s, command_fn run, void *args, struct err *err)
{
    struct command c = {.run = run, .args = args};
    struct timespec until;
    int rc;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += POST_SECONDS;
    pthread_mutex_lock(&s->mutex);
    *s->last = &c;
    s->last = &c.next;
    wake_up(s);
    while (!c.done) {
        if (pthread_cond_timedwait(&s->changed, &s->mutex, &until) != ETIMEDOUT)
            continue;
        if (withdraw(s, &c)) {
            c.rc = err_set(&c.err, ERR_TIMEOUT,
                           "the scheduler did not answer within %d s; try again", POST_SECONDS);
            break;
        }
        until.tv_sec += POST_SECONDS; /* it is at it, and it uses this stack */
    }
    rc = c.rc;
    pthread_mutex_unlock(&s->mutex);
    if (rc != 0 && err && err->code == ERR_OK)
        *err = c.err;
    return rc;
}

static void run_commands(struct scheduler *s)
{
    pthread_mutex_lock(&s->mutex);
    while (s->first) {
        struct command *c = s->first;
        s->first = c->next;
        if (!s->first)
            s->last = &s->first;
        c->started = true;
        pthread_mutex_unlock(&s->mutex);
        c->rc = c->run(s, c->args, &c->err);
        pthread_mutex_lock(&s->mutex);
        c->done = true;
        pthread_cond_broadcast(&s->changed);
    }
    s->ticked_at = clock_monotonic();
    pthread_mutex_unlock(&s->mutex);
}

static bool is_stopping(struct scheduler *s)
{
    pthread_mutex_lock(&s->mutex);
    bool stopping = s->stopping;
    pthread_mutex_unlock(&s->mutex);
    return stopping;
}

/* Until a command, an answer of a plan child, or the time is there. */
static void wait_for_news(struct scheduler *s, int ms)
{
    struct pollfd fds[1 + MAX_WATCHED] = {{.fd = s->wake[0], .events = POLLIN}};
    char drain[64];
    nfds_t n = 1;

    for (int64_t i = 0; i < s->n_live && n < 1 + MAX_WATCHED; i++)
        if (s->live[i]->child && plan_child_fd(s->live[i]->child) >= 0)
            fds[n++] = (struct pollfd){.fd = plan_child_fd(s->live[i]->child), .events = POLLIN};
    poll(fds, n, ms);
    while (read(s->wake[0], drain, sizeof(drain)) > 0)
        continue;
}

static void *thread_main(void *arg)
{
    struct scheduler *s = arg;

    while (!is_stopping(s)) {
        run_commands(s);
        wait_for_news(s, schedule_pass(s));
    }
    run_commands(s);
    return NULL;
}

static int make_directories(const char *state_dir, struct err *err)
{
    static const char *const names[] = {"jobs", "files", "tmp"};
    int rc = fs_mkdir_p(state_dir, true, err);

    for (size_t i = 0; rc == 0 && i < sizeof(names) / sizeof(names[0]); i++) {
        char *path = fs_join(state_dir, names[i]);
        if (strcmp(names[i], "tmp") == 0)
            rc = fs_remove_tree(path, err); /* of a castord that died */
        if (rc == 0)
            rc = fs_mkdir_p(path, true, err);
        free(path);
    }
    return rc;
}

static int load_jobs(struct scheduler *s, struct err *err)
{
    struct job *jobs = NULL;
    int64_t n = 0;
    int rc = store_list_live_jobs(s->store, &jobs, &n, err);

    if (rc != 0)
        return rc;
    for (int64_t i = 0; i < n; i++)
        schedule_add(s, &jobs[i]);
    free(jobs);
    return 0;
}

static void count_gpus(struct scheduler *s, int64_t seconds)
{
    struct err err = {0};

    s->gpu_slots = 0;
    if (devices_count_gpus(s->worker_path, seconds > 0 ? seconds : DEVICE_SECONDS, &s->gpu_slots,
                           &err) != 0)
        log_warn("scheduler",
                 "no GPU will be used: %s. Repair that and start castord again, or set the number "
                 "of GPU slots",
                 err.msg);
    else
        log_info("scheduler", "gpu_slots=%" PRId64, s->gpu_slots);
}

static int start_thread(struct scheduler *s, struct err *err)
{
    sigset_t all, old;
    int failed;

    /* Signals are for the program's main thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    failed = pthread_create(&s->thread, NULL, thread_main, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed)
        return err_set_errno(err, failed, "cannot start the scheduler thread");
    s->has_thread = true;
    return 0;
}

static struct scheduler *allocate(const struct scheduler_config *config)
{
    struct scheduler *s = xcalloc(1, sizeof(*s));
    pthread_condattr_t attr;

    s->state_dir = realpath(config->state_dir, NULL); /* job directories outlive our directory */
    s->worker_path = xstrdup(config->worker_path);
    s->organization = xstrdup(config->organization ? config->organization : "org-castor");
    s->cpu_slots = config->cpu_slots < 0 ? 1 : config->cpu_slots;
    s->gpu_slots = config->gpu_slots;
    s->grace_seconds = config->grace_seconds > 0 ? (double)config->grace_seconds : 30;
    s->silence_seconds =
        config->silence_seconds > 0 ? (double)config->silence_seconds : SILENCE_SECONDS;
    s->memory_wait_seconds =
        config->memory_wait_seconds > 0 ? (double)config->memory_wait_seconds : MEMORY_WAIT_SECONDS;
    s->plan_limits.seconds = config->plan_seconds > 0 ? config->plan_seconds : 600;
    s->plan_limits.least_download_rate = LEAST_DOWNLOAD_RATE;
    s->plan_limits.memory = config->plan_memory > 0 ? config->plan_memory : default_plan_memory;
    s->launcher = &launcher_local;
    hub_access_init(&s->hub, config->hub_endpoints, config->n_hub_endpoints,
                    s->state_dir ? s->state_dir : config->state_dir);
    s->lock_fd = s->wake[0] = s->wake[1] = -1;
    s->last = &s->first;
    s->ticked_at = clock_monotonic();
    pthread_mutex_init(&s->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    return s;
}

/* A castord that was killed a moment ago may have left a child between fork and exec, which shares
 * the lock for that moment; so a taken lock is tried for a while. */
static int take_lock(struct scheduler *s, struct err *err)
{
    char *path = fs_join(s->state_dir, "castord.lock");
    double until = clock_monotonic() + lock_patience_seconds;
    int rc;

    for (;;) {
        struct err why = {0};
        rc = fs_lock_file(path, &s->lock_fd, &why);
        if (rc == 0)
            break;
        if (rc != ERR_CONFLICT || clock_monotonic() >= until) {
            if (err)
                *err = why;
            break;
        }
        clock_sleep(0.02);
    }
    free(path);
    return rc;
}

int scheduler_create(const struct scheduler_config *config, struct scheduler **out, struct err *err)
{
    struct scheduler *s = NULL;
    int rc = 0;

    /* Whoever started this process may ignore it, and then the kernel throws away how children
     * ended. */
    signal(SIGCHLD, SIG_DFL);
    TRY(fs_mkdir_p(config->state_dir, true, err));
    s = allocate(config);
    if (!s->state_dir) {
        rc = err_set_errno(err, errno, "cannot find %s", config->state_dir);
        goto out;
    }
    TRY(take_lock(s, err));
    TRY(make_directories(s->state_dir, err));
    TRY(store_open(s->state_dir, &s->store, err));
    s->context = (struct change_context){
        .store = s->store, .state_dir = s->state_dir, .organization = s->organization};
    orphans_remove(s);
    TRY(load_jobs(s, err));
    if (s->gpu_slots < 0)
        count_gpus(s, config->device_seconds);
    if (pipe2(s->wake, O_CLOEXEC | O_NONBLOCK) != 0) {
        rc = err_set_errno(err, errno, "cannot make a pipe");
        goto out;
    }
    TRY(start_thread(s, err));
    *out = s;
    s = NULL;
out:
    scheduler_destroy(s);
    return rc;
}

void scheduler_destroy(struct scheduler *s)
{
    if (!s)
        return;
    if (s->has_thread) {
        pthread_mutex_lock(&s->mutex);
        s->stopping = true;
        pthread_mutex_unlock(&s->mutex);
        wake_up(s);
        pthread_join(s->thread, NULL);
    }
    schedule_clear(s);
    store_close(s->store);
    for (int i = 0; i < 2; i++)
        if (s->wake[i] >= 0)
            close(s->wake[i]);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->changed);
    hub_access_fini(&s->hub);
    free(s->state_dir);
    free(s->worker_path);
    free(s->organization);
    free(s);
}

static int touch(struct scheduler *s, void *args, struct err *err)
{
    return store_touch(s->store, (int64_t)clock_wall(), err);
}

int scheduler_healthy(struct scheduler *s, struct err *err)
{
    double now = clock_monotonic(), ticked_at, touched_at;
    int rc;

    pthread_mutex_lock(&s->mutex);
    ticked_at = s->ticked_at;
    touched_at = s->touched_at;
    pthread_mutex_unlock(&s->mutex);
    if (now - ticked_at > stale_tick_seconds)
        return err_set(err, ERR_TIMEOUT, "the scheduler has done nothing for %.0f s",
                       now - ticked_at);
    if (touched_at > 0 && now - touched_at < touch_seconds)
        return 0;
    rc = scheduler_post(s, touch, NULL, err);
    if (rc == 0) {
        pthread_mutex_lock(&s->mutex);
        s->touched_at = now;
        pthread_mutex_unlock(&s->mutex);
    }
    return rc;
}
