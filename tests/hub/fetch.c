/* Fetches one model, or one split of a data set, with the settings of the environment and prints
 * its directory:
 *     fetch REFERENCE metadata|weights
 *     fetch hf://datasets/REFERENCE SPLIT
 * check_fixture.py builds it, to compare our cache with that of huggingface_hub. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/job_spec.h"
#include "worker/hub/hub.h"

static int fetch_dataset(struct hub *hub, const char *reference, const char *split,
                         struct hub_snapshot *out, struct err *err)
{
    struct spec_file file = {0};
    char why[160];
    bool converted;
    int rc;

    if (!spec_file_parse(reference, &file, why, sizeof(why)))
        return err_set(err, ERR_INVALID, "%s", why);
    struct hub_data_query query = {
        .repo = file.repo, .revision = file.revision, .path = file.folder, .split = split};
    rc = hub_fetch_dataset(hub, &query, out, &converted, err);
    spec_file_fini(&file);
    return rc;
}

static int fetch_model(struct hub *hub, const char *reference, const char *what,
                       struct hub_snapshot *out, struct err *err)
{
    enum hub_want want = strcmp(what, "weights") == 0 ? HUB_WANT_WEIGHTS : HUB_WANT_METADATA;
    char *repo = NULL, *revision = NULL;
    int rc = 0;

    TRY(hub_parse_reference(reference, &repo, &revision, err));
    TRY(hub_fetch_model(hub, repo, revision, want, out, err));
out:
    free(repo);
    free(revision);
    return rc;
}

int main(int argc, char **argv)
{
    struct hub_config config = {.wait_scale = 0.05};
    struct hub_snapshot snapshot = {0};
    struct hub *hub = NULL;
    struct err err = {0};
    int rc = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: fetch REFERENCE metadata|weights|SPLIT\n");
        return 2;
    }
    TRY(hub_create(&config, &hub, &err));
    if (strncmp(argv[1], "hf://datasets/", 14) == 0)
        TRY(fetch_dataset(hub, argv[1], argv[2], &snapshot, &err));
    else
        TRY(fetch_model(hub, argv[1], argv[2], &snapshot, &err));
    printf("%s\n", snapshot.directory);
out:
    if (rc != 0)
        fprintf(stderr, "%s %s: %s\n", err_code_name(err.code), err.reason, err.msg);
    hub_snapshot_fini(&snapshot);
    hub_destroy(hub);
    return rc != 0;
}
