/* The device profile: any file; what loads is kept by saving it. */
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/fuzz/fuzz.h"
#include "worker/plan/profile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct device_profile p = {0}, again = {0};

    if (device_profile_load(fuzz_file("profile.json", data, n), &p, NULL) != 0)
        return 0;
    char *copy = fs_join(fuzz_dir(), "copy.json");
    if (device_profile_save(copy, &p, NULL) != 0 || device_profile_load(copy, &again, NULL) != 0 ||
        memcmp(&p, &again, sizeof(p)) != 0)
        abort();
    free(copy);
    return 0;
}
