/* The update threads: an update cut among them has the bits of the op called once. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "kernels/device.h"
#include "kernels/moment_math.h"
#include "worker/train/update_pool.h"

/* One update's arrays; parameters and gradients in bf16. */
struct arrays {
    uint16_t *grad, *param;
    char *master, *m, *v;
    size_t state; /* bytes of an element of master and moments */
    int64_t n;
};

static void fill(void *p, size_t bytes, enum dtype type, uint64_t seed)
{
    int64_t n = (int64_t)(bytes / dtype_size(type));
    float *x = xcalloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(int32_t)(seed >> 32) * 1e-11f;
    }
    dtype_convert(type, p, DT_F32, x, n);
    free(x);
}

static struct arrays arrays_make(int64_t n, enum dtype state)
{
    struct arrays a = {.n = n, .state = dtype_size(state)};
    size_t half = (size_t)n * 2, whole = (size_t)n * a.state;
    a.grad = xcalloc(1, half);
    a.param = xcalloc(1, half);
    a.master = xcalloc(1, whole);
    a.m = xcalloc(1, whole);
    a.v = xcalloc(1, whole);
    fill(a.grad, half, DT_BF16, 1);
    fill(a.master, whole, state, 2);
    fill(a.m, whole, state, 3);
    for (int64_t i = 0; i < n; i++) /* second moments are squares */
        memcpy(a.v + (size_t)i * a.state, "\0\0\x80\x3b" + 4 - a.state, a.state);
    return a;
}

static void arrays_free(struct arrays *a)
{
    free(a->grad);
    free(a->param);
    free(a->master);
    free(a->m);
    free(a->v);
}

static struct adamw_args args_of(struct arrays *a, enum dtype state)
{
    static const struct adamw_step step = {.lr = 1e-2f, .bias1 = 0.1f, .bias2 = 0.05f, .step = 3};
    static const struct clip_result clip = {.coef = 0.5f, .finite = 1};
    return (struct adamw_args){.n = a->n,
                               .n_decay = a->n / 3,
                               .beta1 = 0.9f,
                               .beta2 = 0.95f,
                               .eps = 1e-8f,
                               .weight_decay = 0.1f,
                               .step = &step,
                               .clip = &clip,
                               .grad_type = DT_BF16,
                               .master_type = state,
                               .moment_type = state,
                               .param_type = DT_BF16,
                               .grad = a->grad,
                               .master = a->master,
                               .m = a->m,
                               .v = a->v,
                               .param = a->param,
                               .seed = 9,
                               .site = 4,
                               .first = 512};
}

static void expect_same(const struct arrays *a, const struct arrays *b)
{
    size_t half = (size_t)a->n * 2, whole = (size_t)a->n * a->state;
    cr_expect_arr_eq(a->param, b->param, half);
    cr_expect_arr_eq(a->master, b->master, whole);
    cr_expect_arr_eq(a->m, b->m, whole);
    cr_expect_arr_eq(a->v, b->v, whole);
}

/* Moments that are codes lie where bfloat16 ones would; zeros are what they begin as. */
static void code_moments(struct arrays *x, struct adamw_args *a)
{
    size_t bytes = (size_t)x->n * x->state;
    memset(x->m, 0, bytes);
    memset(x->v, 0, bytes);
    a->moment_type = DT_U8;
    a->m_exponent = (uint8_t *)x->m + x->n;
    a->v_exponent = (uint8_t *)x->v + x->n;
    a->n_decay = a->n_decay / MOMENT_BLOCK * MOMENT_BLOCK;
}

static void check_bits(int threads, int64_t n, enum dtype state, bool codes)
{
    struct arrays whole = arrays_make(n, state), cut = arrays_make(n, state);
    struct adamw_args a = args_of(&whole, state), b = args_of(&cut, state);
    struct update_pool *pool = NULL;
    struct device *cpu = NULL;
    struct stream *s = NULL;
    struct err err = {0};

    if (codes) {
        code_moments(&whole, &a);
        code_moments(&cut, &b);
    }
    cr_assert_eq(device_open(DEVICE_CPU, 0, NULL, &cpu, &err), 0, "%s", err.msg);
    cr_assert_eq(device_stream_create(cpu, 0, &s, &err), 0, "%s", err.msg);
    cr_assert_eq(update_pool_create(threads, NULL, &pool, &err), 0, "%s", err.msg);
    for (int k = 0; k < 3; k++) { /* one behind the other, as a plan pushes them */
        cr_assert_eq(device_ops(cpu, DT_F32)->adamw(s, &a), 0);
        cr_assert_eq(update_pool_adamw(pool, &b), 0);
    }
    expect_same(&whole, &cut);
    update_pool_destroy(pool);
    device_stream_destroy(cpu, s);
    device_close(cpu);
    arrays_free(&whole);
    arrays_free(&cut);
}

Test(update_pool, cutting_an_update_changes_no_bit)
{
    int64_t sizes[] = {1, 4, 1 << 16, (1 << 16) + 1, 300007};
    for (int threads = 1; threads <= 4; threads++) {
        for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
            check_bits(threads, sizes[k], DT_F32, false);
            check_bits(threads, sizes[k], DT_BF16, false);
            check_bits(threads, sizes[k], DT_F32, true);
        }
    }
}

static void *copy_of(const void *from, size_t bytes)
{
    void *to = aligned_alloc(DEVICE_ALIGN, (bytes / DEVICE_ALIGN + 1) * DEVICE_ALIGN);
    cr_assert(to);
    return from ? memcpy(to, from, bytes) : memset(to, 0xa5, bytes);
}

/* The state that an update in place leaves, elsewhere; the old one stays, and of a split master the
 * parameters as they were. */
static void check_aside(int64_t n, enum dtype master, enum dtype moment)
{
    size_t half = (size_t)n * 2,
           bytes[] = {(size_t)n * dtype_size(master), (size_t)n * dtype_size(moment),
                      (size_t)n * dtype_size(moment)};
    struct arrays x = arrays_make(n, DT_F32);
    struct adamw_args a = args_of(&x, DT_F32), b;
    void *old[3], *b_old[3], *new[3], *kept = NULL, *param;
    char *to[PART_COUNT] = {NULL};
    struct update_pool *pool = NULL;

    fill(x.param, half, DT_BF16, 5);
    a.master_type = master;
    a.moment_type = moment;
    a.n_decay = n / 3 / CHUNK_ALIGN * CHUNK_ALIGN;
    void *from[] = {x.master, x.m, x.v};
    for (int k = 0; k < 3; k++) {
        old[k] = copy_of(from[k], bytes[k]);
        b_old[k] = copy_of(from[k], bytes[k]);
        to[PART_MASTER + k] = new[k] = copy_of(NULL, bytes[k]);
    }
    b = a;
    b.master = b_old[0];
    b.m = b_old[1];
    b.v = b_old[2];
    b.param = param = copy_of(x.param, half);
    kept = master == DT_I16 ? copy_of(NULL, half) : NULL;
    cr_assert_eq(update_pool_create(3, NULL, &pool, NULL), 0);
    cr_assert_eq(update_pool_adamw_aside(pool, &b, to, kept), 0);
    for (int k = 0; k < 3; k++)
        cr_expect_arr_eq(b_old[k], old[k], bytes[k]);
    if (kept)
        cr_expect_arr_eq(kept, x.param, half);
    cr_assert_eq(update_pool_adamw(pool, &a), 0);
    cr_expect_arr_eq(param, x.param, half);
    for (int k = 0; k < 3; k++) {
        cr_expect_arr_eq(new[k], from[k], bytes[k], "%s master, %s moments, part %d",
                         dtype_name(master), dtype_name(moment), k);
        free(old[k]);
        free(b_old[k]);
        free(new[k]);
    }
    free(kept);
    free(param);
    update_pool_destroy(pool);
    arrays_free(&x);
}

Test(update_pool, an_update_aside_has_the_bits_of_one_in_place)
{
    static const int64_t sizes[] = {1, 127, 1 << 16, 300007};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        check_aside(sizes[k], DT_F32, DT_F32);
        check_aside(sizes[k], DT_I16, DT_F32);
        check_aside(sizes[k], DT_I16, DT_BF16);
        check_aside(sizes[k], DT_F32, DT_BF16);
    }
}

/* Threads that sleep between updates must not miss one, nor do a piece twice: a sum of equal
 * gradients counts the updates that reached each element. */
Test(update_pool, every_piece_of_every_update_is_done_once)
{
    enum { N = 3 << 16, UPDATES = 400 };
    struct arrays x = arrays_make(N, DT_F32);
    struct adamw_args a = args_of(&x, DT_F32);
    struct update_pool *pool = NULL;
    float *m = (float *)x.m;

    cr_assert_eq(update_pool_create(4, NULL, &pool, NULL), 0);
    for (int64_t i = 0; i < N; i++)
        memcpy(&x.grad[i], "\x80\x40", 2); /* 4.0, halved by the clip coefficient */
    memset(m, 0, N * sizeof *m);
    a.beta1 = 0.5f;
    for (int k = 0; k < UPDATES; k++) {
        for (int64_t i = 0; i < N; i += 4099)
            m[i] = 0;
        cr_assert_eq(update_pool_adamw(pool, &a), 0);
        float after = 1.0f; /* of a moment that was 0 */
        for (int64_t i = 0; i < N; i += 4099)
            cr_assert_float_eq(m[i], after, 0, "update %d, element %lld", k, (long long)i);
    }
    update_pool_destroy(pool);
    arrays_free(&x);
}

static atomic_llong pieces, largest, elements;

static int count_piece(struct stream *s, const struct adamw_args *a)
{
    long long before = atomic_load(&largest);
    while (before < a->n && !atomic_compare_exchange_weak(&largest, &before, a->n))
        continue;
    atomic_fetch_add(&pieces, 1);
    atomic_fetch_add(&elements, a->n);
    return 0;
}

/* A slice of the disk's among 15 threads: all have as much to do, and none waits for others'
 * leftovers.
 */
Test(update_pool, threads_have_equal_parts)
{
    enum { N = 4 << 20 };
    struct arrays x = arrays_make(N, DT_BF16);
    struct adamw_args a = args_of(&x, DT_BF16);
    const struct op_table counts = {.adamw = count_piece};
    struct update_pool *pool = NULL;
    for (int threads = 1; threads <= 15; threads += 7) {
        pieces = largest = elements = 0;
        cr_assert_eq(update_pool_create(threads, &counts, &pool, NULL), 0);
        cr_assert_eq(update_pool_adamw(pool, &a), 0);
        cr_expect_eq(elements, N);
        cr_expect_eq(pieces % threads, 0, "%lld pieces for %d threads", pieces, threads);
        cr_expect_leq(largest, N / pieces + MOMENT_BLOCK, "%lld elements", largest);
        update_pool_destroy(pool);
    }
    arrays_free(&x);
}

Test(update_pool, tells_what_the_op_refused)
{
    struct arrays x = arrays_make(1000, DT_F32);
    struct adamw_args a = args_of(&x, DT_F32);
    struct update_pool *pool = NULL;

    a.moment_type = DT_F16; /* no moments in half precision */
    cr_assert_eq(update_pool_create(2, NULL, &pool, NULL), 0);
    cr_expect_eq(update_pool_adamw(pool, &a), ERR_UNSUPPORTED);
    update_pool_destroy(pool);
    arrays_free(&x);
}

Test(update_pool, copies_what_memcpy_would)
{
    enum { N = (9 << 20) + 5 };
    char *from = xmalloc(N), *to = xmalloc(N + 1);
    struct update_pool *pool = NULL;

    cr_assert_eq(update_pool_create(3, NULL, &pool, NULL), 0);
    for (int i = 0; i < N; i++)
        from[i] = (char)(i * 31 + (i >> 13));
    to[N] = 77;
    update_pool_copy(pool, to, from, N);
    cr_expect_arr_eq(to, from, N);
    update_pool_copy(pool, to, NULL, N);
    memset(from, 0, N);
    cr_expect_arr_eq(to, from, N);
    cr_expect_eq(to[N], 77);
    update_pool_destroy(pool);
    free(from);
    free(to);
}

/* --- processors --- */

/* The processors of all of the process's update threads; returns how many threads there are, and
 * fails where two have the same one or one has several. */
static int bound_to(cpu_set_t *all)
{
    DIR *tasks = opendir("/proc/self/task");
    int n = 0;

    CPU_ZERO(all);
    cr_assert_not_null(tasks);
    for (struct dirent *e = readdir(tasks); e; e = readdir(tasks)) {
        char *path = xasprintf("/proc/self/task/%s/comm", e->d_name);
        struct buf name = {0};
        cpu_set_t own;
        if (e->d_name[0] != '.' && fs_read_file(path, 64, &name, NULL) == 0 &&
            strcmp(buf_str(&name), "castor-adamw\n") == 0) {
            cr_assert_eq(sched_getaffinity((pid_t)strtol(e->d_name, NULL, 10), sizeof own, &own),
                         0);
            cr_expect_eq(CPU_COUNT(&own), 1);
            CPU_OR(all, all, &own);
            n++;
        }
        buf_fini(&name);
        free(path);
    }
    closedir(tasks);
    return n;
}

/* A job's part of a machine (cores.h), say those of one NUMA node: its updates run nowhere else, a
 * thread on each of its processors but the first. */
Test(update_pool, threads_of_a_gpus_job_stay_on_its_part)
{
    cpu_set_t usable, part, used;
    struct update_pool *p = NULL;
    struct err err = {0};
    int n = 0;

    cr_assert_eq(sched_getaffinity(0, sizeof usable, &usable), 0);
    if (CPU_COUNT(&usable) < 2)
        cr_skip_test("one processor has no parts");
    CPU_ZERO(&part); /* the upper half, at least two */
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0 && n < 2 + (CPU_COUNT(&usable) - 2) / 2; cpu--)
        if (CPU_ISSET(cpu, &usable)) {
            CPU_SET(cpu, &part);
            n++;
        }
    cr_assert_eq(sched_setaffinity(0, sizeof part, &part), 0);
    cr_assert_eq(update_pool_create(n, NULL, &p, &err), 0, "%s", err.msg);
    cr_expect_eq(bound_to(&used), n - 1);
    cr_expect_eq(CPU_COUNT(&used), n - 1, "two threads share a processor");
    for (int cpu = 0, first = 1; cpu < CPU_SETSIZE; cpu++) {
        cr_expect_eq(CPU_ISSET(cpu, &used) != 0, CPU_ISSET(cpu, &part) && !first, "processor %d",
                     cpu);
        first = first && !CPU_ISSET(cpu, &part);
    }
    update_pool_destroy(p);
}
