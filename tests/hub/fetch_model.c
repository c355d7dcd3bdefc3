/* Fetches one model with the settings of the environment and prints its directory:
 *     fetch_model REFERENCE metadata|weights
 * check_fixture.py builds it, to compare our cache with that of huggingface_hub. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/hub/hub.h"

int main(int argc, char **argv)
{
    struct hub_config config = {.wait_scale = 0.05};
    struct hub_snapshot snapshot = {0};
    struct hub *hub = NULL;
    char *repo = NULL, *revision = NULL;
    struct err err = {0};
    int rc = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: fetch_model REFERENCE metadata|weights\n");
        return 2;
    }
    enum hub_want want = strcmp(argv[2], "weights") == 0 ? HUB_WANT_WEIGHTS : HUB_WANT_METADATA;
    TRY(hub_parse_reference(argv[1], &repo, &revision, &err));
    TRY(hub_create(&config, &hub, &err));
    TRY(hub_fetch_model(hub, repo, revision, want, &snapshot, &err));
    printf("%s\n", snapshot.directory);
out:
    if (rc != 0)
        fprintf(stderr, "%s %s: %s\n", err_code_name(err.code), err.reason, err.msg);
    hub_snapshot_fini(&snapshot);
    hub_destroy(hub);
    free(repo);
    free(revision);
    return rc != 0;
}
