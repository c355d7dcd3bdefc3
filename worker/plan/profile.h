/*
 * The device profile: what a machine can do, measured once by `castor-worker --probe` and kept as
 * JSON, so that plans are made without touching a device. Rates are sustained ones. Bytes per
 * second count each byte moved once.
 */
#ifndef CASTOR_WORKER_PLAN_PROFILE_H
#define CASTOR_WORKER_PLAN_PROFILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"

struct device_profile {
    char device[64];              /* the device's name                    */
    char kind[16];                /* "cpu" | "cuda"                       */
    int64_t memory;               /* bytes of the compute device          */
    int64_t memory_free;          /* of these, what a process found free  */
    double flops_f32, flops_bf16; /* GEMM, multiply-add = 2               */
    int64_t multiprocessors;      /* of a GPU; 0 of a CPU                 */
    /* A fit to layers of two widths: the rate of their products, as if all multiprocessors had work
     * to the end (kernels/op_cost.h), and how often a layer, forward and backward, moves its rows
     * of hidden values through device memory; attention apart. */
    double flops_layer, layer_passes;
    /* Causal attention over rows of 1,024, its operations counted as block_flops does: forward and
     * backward, with heads of 64 and of 128. */
    double attn64_fwd, attn64_bwd, attn128_fwd, attn128_bwd;
    /* Of a layer's products in 8 bits, roundings apart; where the device has none, flops_layer. */
    double flops_fp8;
    double memory_rate;                  /* device memory, bytes read + written a second */
    double h2d_rate, d2h_rate;           /* pinned                                       */
    double h2d_both_rate, d2h_both_rate; /* each, while the other runs                   */
    /* Bytes read + written a second by all processors, past the caches, at best, alone or with what
     * copies read and write at that time; no less than all that is read and written at a time while
     * the rates below are measured. It is a ceiling: no plan is faster. */
    double host_memory_rate;
    double cpu_update_rate;       /* AdamW on the CPU, parameters a second        */
    double cpu_update_copy_rate;  /* while copies run both ways                   */
    double cpu_update_aside_rate; /* alone, the new state to another place        */
    /* Likewise with split masters and 8-bit moments: half of the bytes. */
    double cpu_update_fp8_rate, cpu_update_fp8_copy_rate;
    /* h2d and d2h, each, while both and updates run: of float states, of these */
    double copy_update_rate, copy_update_fp8_rate;
    double disk_read_rate, disk_write_rate;           /* past the page cache, of one volume */
    double disk_read_both_rate, disk_write_both_rate; /* each, while the other runs      */
    /* Others may use that disk, too: how many times these rates it did in the best second of their
     * measuring, 1 or more. A ceiling as host_memory_rate is. */
    double disk_best;
};

/* Where no machine has been measured: the rates of an H100 with 16 cores. It only ranks plans. */
extern const struct device_profile device_profile_nominal;

/* Operations of attention a second at heads of that size: kernels are for heads of 64, 128 and 256,
 * and do with smaller ones as if they were these. No more than flops_bf16. */
double device_profile_attention(const struct device_profile *p, int64_t head_dim, bool backward);

int device_profile_load(const char *path, struct device_profile *out, struct err *err);
/* The kept profile of a kind. False where there is none, and where it cannot be read: then the log
 * says what to do. One of another version, whose numbers may mean something else, cannot. */
bool device_profile_find(const char *kind, struct device_profile *out);
int device_profile_save(const char *path, const struct device_profile *p, struct err *err);
/* The most bytes of host memory a second that the rates of copies and updates show: what
 * host_memory_rate is at least. */
double device_profile_host_shown(const struct device_profile *p);
/* $XDG_CACHE_HOME/castor/profile-<kind>.json or ~/.cache/...; fresh string. */
char *device_profile_path(const char *kind);

#endif
