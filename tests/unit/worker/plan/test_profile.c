#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "worker/plan/profile.h"

Test(profile, survives_a_round_trip_and_refuses_nonsense)
{
    char path[] = "/tmp/profile-XXXXXX";
    struct device_profile in = {.device = "CPU",
                                .kind = "cpu",
                                .memory = 5,
                                .flops_f32 = 1e11,
                                .flops_bf16 = 2e11,
                                .flops_layer = 1.5e11,
                                .flops_fp8 = 3e11,
                                .multiprocessors = 7,
                                .layer_passes = 90,
                                .attn64_fwd = 1e10,
                                .attn64_bwd = 2e10,
                                .attn128_fwd = 3e10,
                                .attn128_bwd = 4e10,
                                .memory_rate = 3e10,
                                .h2d_rate = 4e10,
                                .d2h_rate = 5e10,
                                .h2d_both_rate = 2e10,
                                .d2h_both_rate = 3e10,
                                .host_memory_rate = 9e10,
                                .cpu_update_rate = 6e8,
                                .cpu_update_copy_rate = 5e8,
                                .cpu_update_aside_rate = 4e8,
                                .cpu_update_fp8_rate = 11e8,
                                .cpu_update_fp8_copy_rate = 9e8,
                                .copy_update_rate = 15e9,
                                .copy_update_fp8_rate = 16e9,
                                .disk_read_rate = 7e8,
                                .disk_write_rate = 8e8,
                                .disk_read_both_rate = 5e8,
                                .disk_write_both_rate = 6e8,
                                .disk_best = 1.25};
    struct device_profile out;
    struct err err = {0};
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(device_profile_save(path, &in, &err), 0, "%s", err.msg);
    cr_assert_eq(device_profile_load(path, &out, &err), 0, "%s", err.msg);
    cr_expect_str_eq(out.device, "CPU");
    cr_expect_eq(out.disk_write_rate, 8e8);
    cr_expect_eq(out.disk_write_both_rate, 6e8);
    cr_expect_eq(out.disk_best, 1.25);
    cr_expect_eq(out.multiprocessors, 7);
    cr_expect(out.attn64_fwd == 1e10 && out.attn64_bwd == 2e10);
    cr_expect(out.attn128_fwd == 3e10 && out.attn128_bwd == 4e10);
    cr_expect_eq(out.cpu_update_aside_rate, 4e8);
    cr_expect(out.cpu_update_fp8_rate == 11e8 && out.cpu_update_fp8_copy_rate == 9e8);
    cr_expect(out.copy_update_rate == 15e9 && out.copy_update_fp8_rate == 16e9);
    in.memory_rate = 0; /* a rate of nothing would make every plan take forever */
    cr_assert_eq(device_profile_save(path, &in, &err), 0);
    cr_expect_eq(device_profile_load(path, &out, &err), ERR_INVALID);
    remove(path);
}

/* As an H100's host measured: updates beside copies move more than updates alone. */
Test(profile, knows_how_fast_host_memory_has_been_seen)
{
    struct device_profile p = {.h2d_both_rate = 46.4e9,
                               .d2h_both_rate = 46.4e9,
                               .cpu_update_rate = 6.2e9,
                               .cpu_update_aside_rate = 5.3e9,
                               .cpu_update_copy_rate = 4.6e9,
                               .copy_update_rate = 28.4e9,
                               .cpu_update_fp8_rate = 8.1e9,
                               .cpu_update_fp8_copy_rate = 6.9e9,
                               .copy_update_fp8_rate = 34.3e9};
    cr_expect_float_eq(device_profile_host_shown(&p), 4.6e9 * 28 + 2 * 28.4e9, 1);
    p.copy_update_rate = 1e9;
    cr_expect_float_eq(device_profile_host_shown(&p), 6.2e9 * 28, 1);
    p.cpu_update_rate = p.cpu_update_copy_rate = p.cpu_update_aside_rate = 1e9;
    cr_expect_float_eq(device_profile_host_shown(&p), 6.9e9 * 14 + 2 * 34.3e9, 1);
    p.cpu_update_fp8_copy_rate = 1;
    p.cpu_update_fp8_rate = 8.1e9;
    cr_expect_float_eq(device_profile_host_shown(&p), 8.1e9 * 14, 1);
}

/* Heads of 48 take the time of heads of 64, and those of 192 that of 256. */
Test(profile, knows_attention_by_the_size_of_heads)
{
    struct device_profile p = {.flops_bf16 = 8e14,
                               .attn64_fwd = 2e14,
                               .attn64_bwd = 1e14,
                               .attn128_fwd = 4e14,
                               .attn128_bwd = 3e14};
    cr_expect_eq(device_profile_attention(&p, 64, false), 2e14);
    cr_expect_eq(device_profile_attention(&p, 64, true), 1e14);
    cr_expect_eq(device_profile_attention(&p, 48, true), 0.75e14);
    cr_expect_eq(device_profile_attention(&p, 128, false), 4e14);
    cr_expect_eq(device_profile_attention(&p, 80, true), 3e14 * 80 / 128);
    cr_expect_eq(device_profile_attention(&p, 256, false), 4e14);
    cr_expect_eq(device_profile_attention(&p, 192, true), 3e14 * 192 / 256);
    p.flops_bf16 = 1.5e14; /* no faster than products, which a bound takes it for */
    cr_expect_eq(device_profile_attention(&p, 128, false), 1.5e14);
}
