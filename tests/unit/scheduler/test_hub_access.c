/* What a worker is told of its job's hub, and a job's own token from its creation to its end. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/job_dir.h"
#include "core/alloc.h"
#include "core/clock.h"
#include "core/fs.h"
#include "tests/unit/scheduler/harness.h"

TestSuite(hub_access, .init = test_setup, .fini = test_teardown, .timeout = 600);

static const char *const own_hub = "https://own.example",
                         *const other_hub = "https://other.example",
                         *const open_hub = "https://open.example:8443/x";

static void make_access(struct hub_access *a)
{
    const struct hub_endpoint listed[] = {
        {.url = (char *)other_hub, .token_file = "/etc/other-token", .cache_dir = "/srv/other"},
        {.url = (char *)open_hub},
    };

    setenv("HF_ENDPOINT", "https://Own.example/", 1);
    setenv("HF_TOKEN", "hf_servers_own", 1);
    setenv("HUGGING_FACE_HUB_TOKEN", "hf_servers_own", 1);
    setenv("HF_HUB_CACHE", "/srv/cache", 1);
    unsetenv("HF_TOKEN_PATH");
    unsetenv("HF_HUB_DISABLE_IMPLICIT_TOKEN");
    hub_access_init(a, listed, 2, "/state");
}

/* The value in a child's environment; NULL when it is absent. */
static const char *value_of(char **envp, const char *name)
{
    size_t n = strlen(name);
    const char *found = NULL;

    for (char **e = envp; *e; e++) {
        if (strncmp(*e, name, n) == 0 && (*e)[n] == '=') {
            cr_assert(!found, "%s stands there twice", name);
            found = *e + n + 1;
        }
    }
    return found;
}

static void expect(char **envp, const char *name, const char *wanted)
{
    const char *value = value_of(envp, name);

    if (wanted)
        cr_expect(value && strcmp(value, wanted) == 0, "%s is %s", name, value ? value : "absent");
    else
        cr_expect(!value, "%s is %s", name, value);
}

static bool mentions(char **envp, const char *text)
{
    for (char **e = envp; *e; e++)
        if (strstr(*e, text))
            return true;
    return false;
}

Test(hub_access, the_own_hub_is_used_as_the_environment_says)
{
    struct job_spec spec = {0};
    struct hub_access a;
    char **envp = NULL;

    make_access(&a);
    for (int i = 0; i < 2; i++) {
        spec.hub.endpoint = i ? (char *)own_hub : NULL;
        cr_assert(hub_access_environment(&a, &spec, state, "3", &envp, NULL) == 0);
        expect(envp, "HF_ENDPOINT", "https://Own.example/");
        expect(envp, "HF_TOKEN", "hf_servers_own");
        expect(envp, "HF_HUB_CACHE", "/srv/cache");
        expect(envp, "CUDA_VISIBLE_DEVICES", "3");
        expect(envp, "PATH", getenv("PATH"));
        hub_access_free_environment(envp);
    }
    hub_access_fini(&a);
}

Test(hub_access, a_listed_hub_gets_its_own_token_and_cache)
{
    struct job_spec spec = {.hub.endpoint = (char *)other_hub};
    struct hub_access a;
    char **envp = NULL;

    make_access(&a);
    cr_assert(hub_access_environment(&a, &spec, state, NULL, &envp, NULL) == 0);
    expect(envp, "HF_ENDPOINT", other_hub);
    expect(envp, "HF_TOKEN_PATH", "/etc/other-token");
    expect(envp, "HF_HUB_CACHE", "/srv/other");
    cr_expect(!mentions(envp, "hf_servers_own"));
    hub_access_free_environment(envp);

    spec.hub.endpoint = (char *)open_hub;
    cr_assert(hub_access_environment(&a, &spec, state, NULL, &envp, NULL) == 0);
    expect(envp, "HF_ENDPOINT", open_hub);
    expect(envp, "HF_TOKEN_PATH", NULL);
    expect(envp, "HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
    cr_expect(strncmp(value_of(envp, "HF_HUB_CACHE"), "/state/hub/open.example-", 24) == 0);
    cr_expect(!mentions(envp, "hf_servers_own"));
    hub_access_free_environment(envp);
    hub_access_fini(&a);
}

Test(hub_access, a_jobs_own_token_takes_the_place_of_every_other)
{
    char *path = fs_join(state, "hub-token");
    struct hub_access a;
    struct stat st;
    char **envp = NULL;

    make_access(&a);
    for (int i = 0; i < 2; i++) {
        struct job_spec spec = {.hub = {.endpoint = i ? xstrdup(other_hub) : NULL,
                                        .token = xstrdup("hf_the_jobs_own"),
                                        .has_token = true}};
        cr_assert(hub_access_keep_token(&spec, state, NULL) == 0);
        cr_expect(!spec.hub.token);
        cr_assert(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600 && st.st_size == 15);
        cr_assert(hub_access_environment(&a, &spec, state, NULL, &envp, NULL) == 0);
        expect(envp, "HF_TOKEN_PATH", path);
        expect(envp, "HF_ENDPOINT", i ? other_hub : "https://Own.example/");
        cr_expect(!mentions(envp, "hf_servers_own") && !mentions(envp, "hf_the_jobs_own"));
        hub_access_free_environment(envp);
        hub_access_drop_token(state);
        cr_expect(!fs_exists(path));
        struct err err = {0};
        cr_expect(hub_access_environment(&a, &spec, state, NULL, &envp, &err) == ERR_INVALID);
        cr_expect_str_eq(err.reason, "hub_token_gone");
        free(spec.hub.endpoint);
    }
    hub_access_fini(&a);
    free(path);
}

Test(hub_access, a_hub_that_is_not_listed_any_more_is_not_asked)
{
    struct job_spec spec = {.hub.endpoint = "https://gone.example"};
    struct hub_access a;
    char **envp = NULL;
    struct err err = {0};

    make_access(&a);
    cr_expect(hub_access_environment(&a, &spec, state, NULL, &envp, &err) == ERR_INVALID);
    cr_expect_str_eq(err.reason, "hub_not_allowed");
    cr_expect_null(envp);
    hub_access_fini(&a);
}

/* The job's directory has the token's file, soon, or has not. */
static void wait_token(const char *id, bool wanted)
{
    char *jobdir = xasprintf("%s/jobs/%s", state, id), *path = job_dir_hub_token(jobdir);

    for (int i = 0; i < 15000 && fs_exists(path) != wanted; i++)
        clock_sleep(0.02);
    cr_expect(fs_exists(path) == wanted, "%s", path);
    free(path);
    free(jobdir);
}

Test(hub_access, the_token_goes_when_the_job_ends)
{
    static const char *const token = ",\"hub\":{\"token\":\"hf_mine\"}";
    static const struct {
        const char *meta;
        int status;
    } cases[] = {{"{}", JOB_SUCCEEDED},
                 {"{\"plan\":\"refuse\"}", JOB_FAILED},
                 {"{\"run\":\"fail\"}", JOB_FAILED},
                 {"{\"run\":\"crash\"}", JOB_FAILED}};

    test_start(test_config());
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *id = test_create(cases[i].meta, token);
        struct job job = wait_for(id, -1);
        cr_expect(job.status == (enum job_status)cases[i].status, "case %zu", i);
        cr_expect(job.spec.hub.has_token && !job.spec.hub.token);
        wait_token(id, false);
        job_fini(&job);
        free(id);
    }
}

Test(hub_access, a_paused_job_keeps_its_token_and_a_cancelled_one_does_not)
{
    test_start(test_config());
    char *id =
        test_create("{\"steps\":\"10000\",\"delay\":\"0.02\"}", ",\"hub\":{\"token\":\"hf_mine\"}");

    wait_for_step(id, 2);
    steer_to(id, sched_post_pause, 0);
    struct job job = wait_for(id, JOB_PAUSED);
    wait_token(id, true);
    steer_to(id, sched_post_cancel, 0);
    wait_token(id, false);
    job_fini(&job);
    free(id);
}

Test(hub_access, a_restart_removes_the_tokens_of_ended_jobs)
{
    test_start(test_config());
    char *id = test_create("{}", ",\"hub\":{\"token\":\"hf_mine\"}");
    struct job job = wait_for(id, JOB_SUCCEEDED);
    char *jobdir = xasprintf("%s/jobs/%s", state, id), *path = job_dir_hub_token(jobdir);

    wait_token(id, false);
    scheduler_destroy(sched);
    cr_assert(fs_write_file_atomic(path, "hf_mine", 7, NULL) == 0);
    test_start(test_config());
    wait_token(id, false);
    job_fini(&job);
    free(path);
    free(jobdir);
    free(id);
}
