/* The public operations against a hub that behaves. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "tests/unit/worker/hub/fixture.h"

static struct fixture fx;

static void start(void)
{
    fixture_start(&fx);
}

static void stop(void)
{
    fixture_stop(&fx);
}

TestSuite(hub, .init = start, .fini = stop, .timeout = 600);

static struct hub *client_with(const char *token, bool offline)
{
    struct hub_config config = {.endpoint = fx.endpoint,
                                .token = token,
                                .cache_dir = fx.cache,
                                .offline = offline,
                                .wait_scale = 0.01};
    struct hub *hub = NULL;

    cr_assert_eq(hub_create(&config, &hub, NULL), 0);
    return hub;
}

static struct hub_snapshot fetch(struct hub *hub, const char *repo, const char *revision,
                                 enum hub_want want)
{
    struct hub_snapshot s = {0};
    struct err err = {0};

    cr_assert_eq(hub_fetch_model(hub, repo, revision, want, &s, &err), 0, "%s", err.msg);
    return s;
}

static bool has_file(const struct hub_snapshot *s, const char *name)
{
    for (int64_t i = 0; i < s->n_files; i++)
        if (strcmp(s->files[i], name) == 0)
            return true;
    return false;
}

Test(hub, metadata_comes_without_weights_but_with_their_size)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot s = fetch(hub, "org/tiny", "main", HUB_WANT_METADATA);

    cr_expect_eq(s.n_files, 2);
    cr_expect_str_eq(s.files[0], "config.json");
    cr_expect_str_eq(s.files[1], "tokenizer.json");
    cr_expect_eq(s.weight_bytes, TINY_WEIGHT_BYTES);
    cr_expect_eq(fixture_count(&fx, "store", NULL, NULL), 0);
    cr_expect_eq(fixture_count(&fx, NULL, NULL, "safetensors"), 0);
    hub_snapshot_fini(&s);
    s = fetch(hub, "org/sharded", "main", HUB_WANT_METADATA);
    cr_expect_eq(s.weight_bytes, 2 * SHARD_BYTES + 1);
    cr_expect(has_file(&s, "model.safetensors.index.json"));
    cr_expect_eq(fixture_count(&fx, "store", NULL, NULL), 0);
    hub_snapshot_fini(&s);
    hub_destroy(hub);
}

Test(hub, weights_are_those_of_the_repository)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot s;

    fixture_expect_whole(&fx, hub, "org/tiny");
    fixture_expect_whole(&fx, hub, "org/sharded");
    fixture_expect_whole(&fx, hub, "org/bin");
    cr_expect_eq(fixture_count(&fx, NULL, "GET", "flax"), 0);
    cr_expect_eq(fixture_count(&fx, NULL, "GET", ".py"), 0);
    s = fetch(hub, "org/tiny", "main", HUB_WANT_WEIGHTS);
    cr_expect_eq(s.n_files, 3);
    cr_expect(has_file(&s, "model.safetensors") && !has_file(&s, "pytorch_model.bin"));
    hub_snapshot_fini(&s);
    hub_destroy(hub);
}

Test(hub, what_is_there_is_not_asked_for_again)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot first = fetch(hub, "org/sharded", "main", HUB_WANT_WEIGHTS);

    fixture_set_faults(&fx, "[]");
    struct hub_snapshot again = fetch(hub, "org/sharded", "main", HUB_WANT_WEIGHTS);
    cr_expect_eq(fixture_count(&fx, NULL, NULL, NULL), 1, "only the revision is looked up");
    cr_expect_str_eq(again.directory, first.directory);
    hub_snapshot_fini(&again);
    fixture_set_faults(&fx, "[]");
    again = fetch(hub, "org/sharded", first.commit, HUB_WANT_WEIGHTS);
    cr_expect_eq(fixture_count(&fx, NULL, NULL, NULL), 0, "a commit never changes");
    cr_expect_eq(again.n_files, first.n_files);
    hub_snapshot_fini(&again);
    hub_snapshot_fini(&first);
    hub_destroy(hub);
}

Test(hub, a_revision_moves_and_shares_what_stayed)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot old = fetch(hub, "org/tiny", "main", HUB_WANT_WEIGHTS);
    struct buf ref = {0};

    fixture_put(&fx, "org/tiny", "config.json", "{\"new\": 1}", 10);
    fixture_set_faults(&fx, "[]");
    struct hub_snapshot new = fetch(hub, "org/tiny", "main", HUB_WANT_WEIGHTS);
    cr_expect_str_neq(new.commit, old.commit);
    cr_expect_eq(fixture_count(&fx, "store", NULL, NULL), 0, "the weights are the same blob");
    fixture_expect_whole(&fx, hub, "org/tiny");
    char *path = xasprintf("%s/models--org--tiny/refs/main", fx.cache);
    cr_assert_eq(fs_read_file(path, 100, &ref, NULL), 0);
    cr_expect_str_eq(buf_str(&ref), new.commit);
    free(path);
    buf_fini(&ref);
    hub_snapshot_fini(&old);
    hub_snapshot_fini(&new);
    hub_destroy(hub);
}

Test(hub, other_branches_and_former_names)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot s;
    char old[] = "{\"branch\": true}";

    fixture_put(&fx, "org/tiny@refs%2Fpr%2F1", "config.json", old, strlen(old));
    fixture_put(&fx, "org/tiny@refs%2Fpr%2F1", "model.safetensors", "w", 1);
    s = fetch(hub, "org/tiny", "refs/pr/1", HUB_WANT_WEIGHTS);
    cr_expect_eq(s.weight_bytes, 1);
    hub_snapshot_fini(&s);
    s = fetch(hub, "old", "main", HUB_WANT_METADATA);
    cr_expect_eq(s.weight_bytes, TINY_WEIGHT_BYTES);
    cr_expect_not_null(strstr(s.directory, "/models--old/"));
    hub_snapshot_fini(&s);
    hub_destroy(hub);
}

Test(hub, offline_serves_the_cache_and_nothing_else)
{
    struct hub *online = fixture_client(&fx), *offline = client_with("", true);
    struct hub_snapshot s = fetch(online, "org/sharded", "main", HUB_WANT_METADATA);
    char *listing = xasprintf("%s/models--org--sharded/trees/%s.json", fx.cache, s.commit);

    fixture_set_faults(&fx, "[]");
    fixture_expect(offline, "org/tiny", HUB_WANT_METADATA, ERR_NOT_FOUND, "hub_offline");
    fixture_expect(offline, "org/sharded", HUB_WANT_METADATA, ERR_OK, NULL);
    fixture_expect(offline, "org/sharded", HUB_WANT_WEIGHTS, ERR_NOT_FOUND, "hub_offline");
    cr_expect_eq(fixture_count(&fx, NULL, NULL, NULL), 0);
    hub_snapshot_fini(&s);
    s = fetch(online, "org/sharded", "main", HUB_WANT_WEIGHTS);
    hub_snapshot_fini(&s);
    fixture_expect(offline, "org/sharded", HUB_WANT_WEIGHTS, ERR_OK, NULL);
    /* Files that were fetched one by one leave no listing. */
    cr_assert_eq(unlink(listing), 0);
    s = fetch(offline, "org/sharded", "main", HUB_WANT_WEIGHTS);
    cr_expect_eq(s.weight_bytes, 2 * SHARD_BYTES + 1);
    cr_expect_eq(s.n_files, 4);
    char *shard = fs_join(s.directory, "model-00002-of-00002.safetensors");
    cr_assert_eq(unlink(shard), 0);
    fixture_expect(offline, "org/sharded", HUB_WANT_WEIGHTS, ERR_CORRUPT, "hub_corrupt");
    free(shard);
    hub_snapshot_fini(&s);
    free(listing);
    hub_destroy(online);
    hub_destroy(offline);
}

Test(hub, the_environment_can_forbid_requests)
{
    setenv("HF_HUB_OFFLINE", "1", 1);
    struct hub *hub = fixture_client(&fx);

    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_NOT_FOUND, "hub_offline");
    cr_expect_eq(fixture_count(&fx, NULL, NULL, NULL), 0);
    hub_destroy(hub);
}

Test(hub, an_unreachable_hub_is_replaced_by_a_complete_cache)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_config dead_config = {
        .endpoint = "http://127.0.0.1:1", .token = "", .cache_dir = fx.cache, .wait_scale = 0.001};
    struct hub *dead = NULL;

    cr_assert_eq(hub_create(&dead_config, &dead, NULL), 0);
    fixture_expect(dead, "org/tiny", HUB_WANT_METADATA, ERR_NET, "hub_unavailable");
    fixture_expect(hub, "org/tiny", HUB_WANT_METADATA, ERR_OK, NULL);
    fixture_expect(dead, "org/tiny", HUB_WANT_METADATA, ERR_OK, NULL);
    fixture_expect(dead, "org/tiny", HUB_WANT_WEIGHTS, ERR_NET, "hub_unavailable");
    hub_destroy(dead);
    hub_destroy(hub);
}

Test(hub, accounts_decide)
{
    struct hub *nobody = client_with("", false), *wrong = client_with("hf_wrong", false);
    struct hub *other = client_with("hf_other", false), *granted = client_with("hf_granted", false);
    struct hub_snapshot s;

    fixture_expect(nobody, "org/none", HUB_WANT_METADATA, ERR_NOT_FOUND, "model_not_found");
    fixture_expect(nobody, "org/private", HUB_WANT_METADATA, ERR_NOT_FOUND, "model_not_found");
    fixture_expect(nobody, "org/gated", HUB_WANT_METADATA, ERR_PERMISSION, "gated_model");
    fixture_expect(nobody, "org/disabled", HUB_WANT_METADATA, ERR_PERMISSION, "model_disabled");
    fixture_expect(wrong, "org/tiny", HUB_WANT_METADATA, ERR_PERMISSION, "hub_unauthorized");
    fixture_expect(other, "org/none", HUB_WANT_METADATA, ERR_NOT_FOUND, "model_not_found");
    fixture_expect(other, "org/gated", HUB_WANT_METADATA, ERR_PERMISSION, "gated_model");
    s = fetch(other, "org/private", "main", HUB_WANT_WEIGHTS);
    cr_expect(s.is_private && !s.gated);
    hub_snapshot_fini(&s);
    s = fetch(granted, "org/gated", "main", HUB_WANT_WEIGHTS);
    cr_expect(s.gated && !s.is_private);
    hub_snapshot_fini(&s);
    hub_destroy(nobody);
    hub_destroy(wrong);
    hub_destroy(other);
    hub_destroy(granted);
}

Test(hub, revisions_that_are_not_there)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot s = {0};
    struct err err = {0};

    cr_expect_eq(hub_fetch_model(hub, "org/tiny", "v9", HUB_WANT_METADATA, &s, &err),
                 ERR_NOT_FOUND);
    cr_expect_str_eq(err.reason, "revision_not_found");
    err_clear(&err);
    cr_expect_eq(hub_fetch_model(hub, "org/tiny", "../x", HUB_WANT_METADATA, &s, &err),
                 ERR_INVALID);
    cr_expect_eq(hub_fetch_model(hub, "../tiny", "main", HUB_WANT_METADATA, &s, NULL), ERR_INVALID);
    hub_destroy(hub);
}

Test(hub, the_token_goes_to_the_hub_only)
{
    struct hub *hub = client_with("hf_granted", false);
    json_t *request;
    size_t i;

    fixture_expect_whole(&fx, hub, "org/tiny");
    json_t *log = fixture_log(&fx);
    json_array_foreach(log, i, request)
    {
        bool to_hub = strcmp(json_string_value(json_object_get(request, "server")), "hub") == 0;
        cr_expect_eq(json_is_true(json_object_get(request, "authorized")), to_hub, "%s",
                     json_string_value(json_object_get(request, "path")));
    }
    cr_expect_eq(fixture_count(&fx, "store", "GET", NULL), 1);
    json_decref(log);
    hub_destroy(hub);
}

/* What one account may read is not there for the next one, though the cache is the same. */
Test(hub, a_cache_does_not_give_access)
{
    struct hub *nobody = client_with("", false), *granted = client_with("hf_granted", false);
    struct hub *offline = client_with("", true), *dead = NULL;
    struct hub_config dead_config = {.endpoint = "http://127.0.0.1:1",
                                     .token = "hf_granted",
                                     .cache_dir = fx.cache,
                                     .wait_scale = 0.001};
    struct hub_snapshot s = fetch(granted, "org/gated", "main", HUB_WANT_WEIGHTS), again = {0};
    struct err err = {0};

    /* A commit never changes, but who may read it does: the hub is asked, and only that. */
    fixture_set_faults(&fx, "[]");
    again = fetch(granted, "org/gated", s.commit, HUB_WANT_WEIGHTS);
    cr_expect_eq(fixture_count(&fx, NULL, NULL, "auth-check"), 1);
    cr_expect_eq(fixture_count(&fx, NULL, NULL, NULL), 2);
    hub_snapshot_fini(&again);
    cr_expect_eq(hub_fetch_model(nobody, "org/gated", s.commit, HUB_WANT_WEIGHTS, &again, &err),
                 ERR_PERMISSION);
    cr_expect_str_eq(err.reason, "gated_model");
    fixture_expect(nobody, "org/gated", HUB_WANT_WEIGHTS, ERR_PERMISSION, "gated_model");

    cr_assert_eq(hub_create(&dead_config, &dead, NULL), 0);
    err = (struct err){0};
    cr_expect_eq(hub_fetch_model(dead, "org/gated", "main", HUB_WANT_WEIGHTS, &again, &err),
                 ERR_NET);
    cr_expect_str_eq(err.reason, "hub_unavailable");
    cr_expect_not_null(strstr(err.msg, "may be gated or private"), "%s", err.msg);
    fixture_expect(offline, "org/gated", HUB_WANT_WEIGHTS, ERR_OK, NULL);
    hub_snapshot_fini(&s);
    hub_destroy(dead);
    hub_destroy(offline);
    hub_destroy(granted);
    hub_destroy(nobody);
}

/* A repository can become private, and one that others have put in the cache may be. */
Test(hub, an_unknown_standing_is_asked_for)
{
    struct hub *nobody = client_with("", false), *granted = client_with("hf_granted", false);
    struct hub_snapshot s = fetch(granted, "org/private", "main", HUB_WANT_WEIGHTS), again = {0};
    char *note = xasprintf("%s/models--org--private/.public", fx.cache);
    char *other = xasprintf("%s/models--org--tiny/.public", fx.cache);

    cr_expect(!fs_exists(note));
    cr_expect_eq(hub_fetch_model(nobody, "org/private", s.commit, HUB_WANT_WEIGHTS, &again, NULL),
                 ERR_NOT_FOUND);
    hub_snapshot_fini(&s);
    s = fetch(nobody, "org/tiny", "main", HUB_WANT_METADATA);
    cr_assert_eq(unlink(other), 0);
    fixture_set_faults(&fx, "[]");
    again = fetch(nobody, "org/tiny", s.commit, HUB_WANT_METADATA);
    cr_expect_eq(fixture_count(&fx, NULL, NULL, NULL), 1);
    cr_expect(fs_exists(other));
    hub_snapshot_fini(&again);
    hub_snapshot_fini(&s);
    free(other);
    free(note);
    hub_destroy(granted);
    hub_destroy(nobody);
}

Test(hub, a_cache_without_links)
{
    setenv("HF_HUB_DISABLE_SYMLINKS", "1", 1);
    struct hub *hub = fixture_client(&fx), *offline = client_with("", true);
    struct hub_snapshot s = fetch(hub, "org/tiny", "main", HUB_WANT_WEIGHTS);
    char *weights = fs_join(s.directory, "model.safetensors");
    struct stat st;

    cr_assert_eq(lstat(weights, &st), 0);
    cr_expect(S_ISREG(st.st_mode) && st.st_size == TINY_WEIGHT_BYTES);
    fixture_set_faults(&fx, "[]");
    fixture_expect_whole(&fx, hub, "org/tiny");
    cr_expect_eq(fixture_count(&fx, NULL, NULL, NULL), 1);
    fixture_expect(offline, "org/tiny", HUB_WANT_WEIGHTS, ERR_OK, NULL);
    free(weights);
    hub_snapshot_fini(&s);
    hub_destroy(offline);
    hub_destroy(hub);
}

Test(hub, what_a_commit_does_not_have_is_noted)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot s = fetch(hub, "org/bin", "main", HUB_WANT_METADATA);
    const char *const names[] = {"tokenizer.json", "model.safetensors", "config.json"};

    for (int i = 0; i < 3; i++) {
        char *note = xasprintf("%s/models--org--bin/.no_exist/%s/%s", fx.cache, s.commit, names[i]);
        cr_expect_eq(fs_exists(note), i < 2, "%s", note);
        free(note);
    }
    hub_snapshot_fini(&s);
    hub_destroy(hub);
}

/* An administrator's cache that jobs may only read. */
Test(hub, a_cache_that_cannot_be_written_serves_what_it_holds)
{
    struct hub *hub = fixture_client(&fx);
    char *listing, *locks = fs_join(fx.cache, ".locks");
    struct hub_snapshot s = fetch(hub, "org/tiny", "main", HUB_WANT_WEIGHTS), again;

    /* What the root user may always write stands in the way as a file instead. */
    listing = xasprintf("%s/models--org--tiny/trees", fx.cache);
    cr_assert_eq(fs_remove_tree(listing, NULL), 0);
    cr_assert_eq(fs_write_file_atomic(listing, "", 0, NULL), 0);
    cr_assert_eq(fs_remove_tree(locks, NULL), 0);
    cr_assert_eq(fs_write_file_atomic(locks, "", 0, NULL), 0);
    again = fetch(hub, "org/tiny", "main", HUB_WANT_WEIGHTS);
    cr_expect_str_eq(again.directory, s.directory);
    hub_snapshot_fini(&again);
    hub_snapshot_fini(&s);
    free(locks);
    free(listing);
    hub_destroy(hub);
}

struct progress {
    int calls, cancel_at;
    int64_t last_all, total;
    bool went_back, passed_total;
};

static int on_progress(void *ud, const char *file, int64_t file_done, int64_t file_total,
                       int64_t all_done, int64_t all_total)
{
    struct progress *p = ud;

    if (all_total > 0) {
        p->went_back |= all_done < p->last_all;
        p->passed_total |= all_done > all_total || file_done > file_total;
        p->last_all = all_done;
        p->total = all_total;
    }
    return ++p->calls == p->cancel_at;
}

static struct hub *client_with_progress(struct progress *p)
{
    struct hub_config config = {.endpoint = fx.endpoint,
                                .token = "",
                                .cache_dir = fx.cache,
                                .progress = on_progress,
                                .progress_ud = p};
    struct hub *hub = NULL;

    cr_assert_eq(hub_create(&config, &hub, NULL), 0);
    return hub;
}

Test(hub, progress_rises_to_the_total)
{
    struct progress p = {0};
    struct hub *hub = client_with_progress(&p);

    fixture_set_faults(
        &fx, "[{\"match\": \"store GET\", \"action\": \"slow\", \"rate\": 200000, \"times\": 1}]");
    fixture_expect_whole(&fx, hub, "org/tiny");
    cr_expect_geq(p.calls, 3);
    cr_expect_leq(p.calls, 20, "%d calls in about 1.5 s", p.calls);
    cr_expect(!p.went_back && !p.passed_total);
    cr_expect_eq(p.total, TINY_WEIGHT_BYTES + 25);
    cr_expect_eq(p.last_all, p.total);
    hub_destroy(hub);
}

Test(hub, a_download_can_be_cancelled_and_goes_on_later)
{
    struct progress p = {.cancel_at = 2};
    struct hub *hub = client_with_progress(&p);

    fixture_set_faults(
        &fx, "[{\"match\": \"store GET\", \"action\": \"slow\", \"rate\": 200000, \"times\": 1}]");
    fixture_expect(hub, "org/tiny", HUB_WANT_WEIGHTS, ERR_CANCELLED, NULL);
    fixture_expect_whole(&fx, hub, "org/tiny");
    char *range = fixture_last_range(&fx);
    cr_expect_str_neq(range, "", "it did not resume");
    free(range);
    hub_destroy(hub);
}

Test(hub, a_damaged_cache_is_repaired)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot s = fetch(hub, "org/tiny", "main", HUB_WANT_WEIGHTS);
    char *weights = fs_join(s.directory, "model.safetensors");
    char *config = fs_join(s.directory, "config.json");
    char *listing = xasprintf("%s/models--org--tiny/trees/%s.json", fx.cache, s.commit);

    cr_assert_eq(truncate(weights, 100), 0);
    fixture_expect_whole(&fx, hub, "org/tiny");
    /* A link that leads out of the cache is not believed, even with the right size. */
    char *outside = fs_join(fx.dir, "outside");
    cr_assert_eq(fs_write_file_atomic(outside, "{\"model_type\": \"LLAMA\"}", 23, NULL), 0);
    unlink(config);
    cr_assert_eq(symlink(outside, config), 0);
    fixture_expect_whole(&fx, hub, "org/tiny");
    cr_assert_eq(fs_write_file_atomic(listing, "{\"format_version\": 1, \"files\"", 28, NULL), 0);
    fixture_expect_whole(&fx, hub, "org/tiny");
    free(outside);
    free(listing);
    free(config);
    free(weights);
    hub_snapshot_fini(&s);
    hub_destroy(hub);
}

Test(hub, an_unusable_cache_directory_is_named)
{
    struct hub *hub = fixture_client(&fx);
    struct hub_snapshot s = {0};
    struct err err = {0};

    cr_assert_eq(fs_write_file_atomic(fx.cache, "file", 4, NULL), 0);
    cr_expect_eq(hub_fetch_model(hub, "org/tiny", "main", HUB_WANT_METADATA, &s, &err), ERR_IO);
    cr_expect(strstr(err.msg, fx.cache) && strstr(err.msg, "HF_HUB_CACHE"), "%s", err.msg);
    hub_destroy(hub);
}
