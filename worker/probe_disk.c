/*
 * The part of the probe that is about a disk: reads alone, writes alone, and both at a time, in
 * pieces as large as slices of optimizer state, through the file that is the disk tier.
 */
#include <math.h>
#include <pthread.h>

#include "core/clock.h"
#include "worker/memory/nvme.h"
#include "worker/probe.h"

enum {
    SLICE_BYTES = 48 << 20, /* 4 Mi elements of a master and two moments */
    SLICES = 22,            /* 1 GiB: halves for reads and writes at a time */
};
static const double long_enough = 4; /* seconds: a disk may be faster for the first one or two */

struct disk {
    struct nvme_file *file;
    void *memory[2]; /* of reads, of writes; a slice each */
    int next[2];     /* slice */
    double best;     /* device_profile.disk_best so far */
};

/* Bytes each way while a rate is measured, and those of its best second. */
struct meter {
    double begun, second_begun, bytes, second_bytes, best;
};

static struct meter meter_start(void)
{
    double t = clock_monotonic();
    return (struct meter){.begun = t, .second_begun = t};
}

/* Is it long enough? */
static bool meter_add(struct meter *m, double bytes)
{
    double t = clock_monotonic();
    m->bytes += bytes;
    m->second_bytes += bytes;
    if (t - m->second_begun >= 1) {
        m->best = fmax(m->best, m->second_bytes / (t - m->second_begun));
        m->second_begun = t;
        m->second_bytes = 0;
    }
    return t - m->begun >= long_enough;
}

static double meter_rate(const struct meter *m, struct disk *d)
{
    double rate = m->bytes / (clock_monotonic() - m->begun);
    d->best = fmax(d->best, m->best / rate);
    return rate;
}

/* The next slice; while both run, each keeps to its half. */
static int move_slice(struct disk *d, bool write, bool half, struct err *err)
{
    int slice = d->next[write]++ % (half ? SLICES / 2 : SLICES);
    if (half && write)
        slice += SLICES / 2;
    size_t at = (size_t)slice * SLICE_BYTES;
    return write ? nvme_file_write(d->file, d->memory[1], SLICE_BYTES, at, err)
                 : nvme_file_read(d->file, d->memory[0], SLICE_BYTES, at, err);
}

static int rate_alone(struct disk *d, bool write, double *rate, struct err *err)
{
    struct meter m = meter_start();
    int rc = 0;
    do
        TRY(move_slice(d, write, false, err));
    while (!meter_add(&m, SLICE_BYTES));
    *rate = meter_rate(&m, d);
out:
    return rc;
}

struct reader {
    struct disk *disk;
    struct err err;
    int rc;
};

static void *read_half(void *ud)
{
    struct reader *r = ud;
    for (int k = 0; k < SLICES / 2 && r->rc == 0; k++)
        r->rc = move_slice(r->disk, false, true, &r->err);
    return NULL;
}

/* As many bytes are read as written, as in a step: the slower way decides. */
static int rate_both(struct disk *d, double *rate, struct err *err)
{
    struct meter m = meter_start();
    int rc = 0;
    do {
        struct reader r = {.disk = d};
        pthread_t id;
        int code = pthread_create(&id, NULL, read_half, &r);
        if (code != 0)
            return err_set_errno(err, code, "cannot start a thread to measure the disk");
        for (int k = 0; k < SLICES / 2 && rc == 0; k++)
            rc = move_slice(d, true, true, err);
        pthread_join(id, NULL);
        if (rc == 0 && r.rc != 0) {
            *err = r.err;
            rc = r.rc;
        }
        TRY(rc);
    } while (!meter_add(&m, (double)SLICES / 2 * SLICE_BYTES));
    *rate = meter_rate(&m, d);
out:
    return rc;
}

int probe_disk(const char *directory, struct device_profile *out, struct err *err)
{
    struct device *host = NULL;
    struct disk d = {.best = 1};
    uint64_t state = 88172645463325252u;
    int rc = 0;

    TRY(device_open(DEVICE_CPU, 0, NULL, &host, err));
    for (int k = 0; k < 2; k++)
        TRY(device_host_alloc(host, SLICE_BYTES, "a probe buffer", &d.memory[k], err));
    for (size_t k = 0; k < SLICE_BYTES / sizeof state; k++) { /* nothing that compresses */
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((uint64_t *)d.memory[1])[k] = state;
    }
    TRY(nvme_file_create(directory, (size_t)SLICES * SLICE_BYTES, &d.file, err));
    for (int k = 0; k < SLICES; k++) /* the first time a file system has more to do */
        TRY(move_slice(&d, true, false, err));
    TRY(rate_alone(&d, true, &out->disk_write_rate, err));
    TRY(rate_alone(&d, false, &out->disk_read_rate, err));
    TRY(rate_both(&d, &out->disk_read_both_rate, err));
    out->disk_write_both_rate = out->disk_read_both_rate;
    out->disk_best = d.best;
out:
    nvme_file_destroy(d.file);
    for (int k = 0; k < 2; k++)
        if (d.memory[k])
            device_host_free(host, d.memory[k], SLICE_BYTES);
    if (host)
        device_close(host);
    return rc ? err_wrap(err, rc, "measuring the disk of %s", directory) : 0;
}
