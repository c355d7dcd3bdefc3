#include "worker/plan/profile.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"
#include "core/log.h"

const struct device_profile device_profile_nominal = {.flops_f32 = 4e14,
                                                      .flops_bf16 = 8e14,
                                                      .multiprocessors = 132,
                                                      .flops_layer = 8e14,
                                                      .attn64_fwd = 2.7e14,
                                                      .attn64_bwd = 2.4e14,
                                                      .attn128_fwd = 4e14,
                                                      .attn128_bwd = 3e14,
                                                      .flops_fp8 = 1.3e15,
                                                      .layer_passes = 50,
                                                      .memory_rate = 3.0e12,
                                                      .h2d_rate = 55.2e9,
                                                      .d2h_rate = 55.1e9,
                                                      .h2d_both_rate = 43.6e9,
                                                      .d2h_both_rate = 43.6e9,
                                                      .host_memory_rate = 160e9,
                                                      .cpu_update_rate = 4.4e9,
                                                      .cpu_update_copy_rate = 3.4e9,
                                                      .cpu_update_aside_rate = 4.0e9,
                                                      .cpu_update_fp8_rate = 5.4e9,
                                                      .cpu_update_fp8_copy_rate = 5.0e9,
                                                      .copy_update_rate = 43.6e9,
                                                      .copy_update_fp8_rate = 43.6e9,
                                                      .disk_read_rate = 1.6e9,
                                                      .disk_write_rate = 2.6e9,
                                                      .disk_read_both_rate = 1.0e9,
                                                      .disk_write_both_rate = 1.0e9,
                                                      .disk_best = 1};

enum { PROFILE_VERSION = 12, PROFILE_MAX_BYTES = 1 << 16 };

struct rate_field {
    const char *key;
    size_t offset;
};
static const struct rate_field rates[] = {
    {"flops_f32", offsetof(struct device_profile, flops_f32)},
    {"flops_bf16", offsetof(struct device_profile, flops_bf16)},
    {"flops_layer", offsetof(struct device_profile, flops_layer)},
    {"flops_fp8", offsetof(struct device_profile, flops_fp8)},
    {"layer_passes", offsetof(struct device_profile, layer_passes)},
    {"attn64_fwd", offsetof(struct device_profile, attn64_fwd)},
    {"attn64_bwd", offsetof(struct device_profile, attn64_bwd)},
    {"attn128_fwd", offsetof(struct device_profile, attn128_fwd)},
    {"attn128_bwd", offsetof(struct device_profile, attn128_bwd)},
    {"memory_rate", offsetof(struct device_profile, memory_rate)},
    {"h2d_rate", offsetof(struct device_profile, h2d_rate)},
    {"d2h_rate", offsetof(struct device_profile, d2h_rate)},
    {"h2d_both_rate", offsetof(struct device_profile, h2d_both_rate)},
    {"d2h_both_rate", offsetof(struct device_profile, d2h_both_rate)},
    {"host_memory_rate", offsetof(struct device_profile, host_memory_rate)},
    {"cpu_update_rate", offsetof(struct device_profile, cpu_update_rate)},
    {"cpu_update_copy_rate", offsetof(struct device_profile, cpu_update_copy_rate)},
    {"cpu_update_aside_rate", offsetof(struct device_profile, cpu_update_aside_rate)},
    {"cpu_update_fp8_rate", offsetof(struct device_profile, cpu_update_fp8_rate)},
    {"cpu_update_fp8_copy_rate", offsetof(struct device_profile, cpu_update_fp8_copy_rate)},
    {"copy_update_rate", offsetof(struct device_profile, copy_update_rate)},
    {"copy_update_fp8_rate", offsetof(struct device_profile, copy_update_fp8_rate)},
    {"disk_read_rate", offsetof(struct device_profile, disk_read_rate)},
    {"disk_write_rate", offsetof(struct device_profile, disk_write_rate)},
    {"disk_read_both_rate", offsetof(struct device_profile, disk_read_both_rate)},
    {"disk_write_both_rate", offsetof(struct device_profile, disk_write_both_rate)},
    {"disk_best", offsetof(struct device_profile, disk_best)},
};
enum { N_RATES = sizeof rates / sizeof rates[0] };

static double *rate_of(struct device_profile *p, const struct rate_field *f)
{
    return (double *)((char *)p + f->offset);
}

int device_profile_load(const char *path, struct device_profile *out, struct err *err)
{
    struct device_profile p = {0};
    const char *device = NULL, *kind = NULL;
    int64_t version = 0;
    json_t *j = NULL;
    int rc = 0;

    TRY(json_parse_file(path, PROFILE_MAX_BYTES, JSON_MAX_DEPTH_FILE, &j, err));
    TRY(json_get_int64(j, "", "v", true, PROFILE_VERSION, PROFILE_VERSION, &version, err));
    TRY(json_get_string(j, "", "device", true, &device, err));
    TRY(json_get_string(j, "", "kind", true, &kind, err));
    TRY(json_get_int64(j, "", "memory", true, 0, INT64_MAX, &p.memory, err));
    TRY(json_get_int64(j, "", "memory_free", true, 0, p.memory, &p.memory_free, err));
    TRY(json_get_int64(j, "", "multiprocessors", true, 0, 1 << 20, &p.multiprocessors, err));
    for (int r = 0; r < N_RATES; r++)
        TRY(json_get_double(j, "", rates[r].key, true, 1.0, 1e21, rate_of(&p, &rates[r]), err));
    snprintf(p.device, sizeof p.device, "%s", device);
    snprintf(p.kind, sizeof p.kind, "%s", kind);
    *out = p;
out:
    json_decref(j);
    return rc ? err_wrap(err, rc, "device profile %s (remove it and run castor-worker --probe)",
                         path)
              : 0;
}

bool device_profile_find(const char *kind, struct device_profile *out)
{
    char *path = device_profile_path(kind);
    struct err err = {0};
    bool there = fs_exists(path), found = there && device_profile_load(path, out, &err) == 0;
    if (there && !found)
        log_warn("profile", "%s", err.msg);
    free(path);
    return found;
}

int device_profile_save(const char *path, const struct device_profile *p, struct err *err)
{
    json_t *j =
        json_pack("{s:i, s:s, s:s, s:I, s:I, s:I}", "v", PROFILE_VERSION, "device", p->device,
                  "kind", p->kind, "memory", (json_int_t)p->memory, "memory_free",
                  (json_int_t)p->memory_free, "multiprocessors", (json_int_t)p->multiprocessors);
    struct device_profile copy = *p;
    for (int r = 0; r < N_RATES; r++)
        json_object_set_new(j, rates[r].key, json_real(*rate_of(&copy, &rates[r])));
    char *line = json_to_line(j);
    int rc = fs_write_file_atomic(path, line, strlen(line), err);
    free(line);
    json_decref(j);
    return rc;
}

/* A parameter's gradient, master and moments in, these and the parameter out; with split masters
 * and 8-bit moments half of it. */
static const double update_bytes = 28, update_fp8_bytes = 14;

double device_profile_host_shown(const struct device_profile *p)
{
    double shown[] = {
        p->h2d_both_rate + p->d2h_both_rate,
        p->cpu_update_rate * update_bytes,
        p->cpu_update_aside_rate * update_bytes,
        p->cpu_update_copy_rate * update_bytes + 2 * p->copy_update_rate,
        p->cpu_update_fp8_rate * update_fp8_bytes,
        p->cpu_update_fp8_copy_rate * update_fp8_bytes + 2 * p->copy_update_fp8_rate,
    };
    double most = 0;
    for (size_t k = 0; k < sizeof shown / sizeof shown[0]; k++)
        most = fmax(most, shown[k]);
    return most;
}

double device_profile_attention(const struct device_profile *p, int64_t head_dim, bool backward)
{
    int64_t width = head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
    double forward_rate = width == 64 ? p->attn64_fwd : p->attn128_fwd;
    double backward_rate = width == 64 ? p->attn64_bwd : p->attn128_bwd;
    double rate = (backward ? backward_rate : forward_rate) * (double)head_dim / (double)width;
    return fmin(rate, p->flops_bf16);
}

char *device_profile_path(const char *kind)
{
    const char *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    if (cache && cache[0] == '/')
        return xasprintf("%s/castor/profile-%s.json", cache, kind);
    return xasprintf("%s/.cache/castor/profile-%s.json", home ? home : "/tmp", kind);
}
