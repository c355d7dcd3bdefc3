/* The hub's answers and the cache's copies of them: one JSON text read as each of them. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "tests/fuzz/fuzz.h"
#include "worker/hub/listing.h"
#include "worker/hub/reference.h"
#include "worker/hub/select.h"

static const char ENDPOINT[] = "http://127.0.0.1:1", REPO[] = "castor/model";

/* What a listing holds is safe to join to a path, and survives the cache. */
static void use(struct listing *l, const json_t *index)
{
    struct selection selection = {0};
    struct listing again = {0};
    json_t *cached;

    for (int64_t i = 0; i < l->n; i++)
        if (!reference_path_is_safe(l->files[i].path) || l->files[i].size < 0)
            abort();
    cached = listing_to_cached(l);
    if (listing_from_cached(cached, &again, NULL) != 0 || again.n != l->n)
        abort();
    listing_fini(&again);
    json_decref(cached);
    if (select_files(l, &selection, NULL) == 0) {
        if (selection.index)
            (void)select_shards(l, index, &selection, NULL);
        if (select_weight_bytes(&selection) < 0)
            abort();
    }
    select_fini(&selection);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct listing_info info;
    struct listing l = {0};
    json_t *json = NULL;

    if (json_parse_limited((const char *)data, n, 1 << 20, JSON_MAX_DEPTH_FILE, &json, NULL) != 0)
        return 0;
    if (listing_read_info(json, ENDPOINT, REPO, "main", &info, NULL) == 0 &&
        !reference_is_sha1(info.commit))
        abort();
    if (listing_add_page(&l, json, ENDPOINT, REPO, NULL) == 0 && listing_finish(&l, NULL) == 0)
        use(&l, json);
    listing_fini(&l);
    if (listing_from_cached(json, &l, NULL) == 0) {
        use(&l, json_object_get(json, "index"));
        listing_fini(&l);
    }
    json_decref(json);
    return 0;
}
