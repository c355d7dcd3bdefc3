#include "kernels/cuda/gemm.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "kernels/cuda/gemm_own.h"
#include "kernels/gemm_file.h"

struct gemm_plan {
    struct gemm_key key;
    bool usable; /* false: nobody has an algorithm for it        */
    int own;     /* 0: the library's; OWN; or APART */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c, d;
    cublasLtMatmulAlgo_t algo;
};

enum { PROPOSALS = 16, CANDIDATES = PROPOSALS + 2, ROUNDS = 8 };
enum {
    OWN = 1,
    APART = -1
}; /* our kernel; what the caller does instead is faster: struct gemm's apart */
enum { KEY_SUMS = 1 << 22 }; /* beside an epilogue's number */

/* Open addressing; plans never go away before the cache does. */
struct gemm_cache {
    const struct cuda_state *state;
    const struct blaslt *lt;
    struct gemm_plan **slots;
    size_t capacity, used;
    bool tuning;
};

struct gemm_cache *gemm_cache_create(const struct cuda_state *state)
{
    struct gemm_cache *cache = xcalloc(1, sizeof *cache);
    cache->state = state;
    cache->lt = &state->lt;
    cache->capacity = 256;
    cache->slots = xcalloc(cache->capacity, sizeof *cache->slots);
    return cache;
}

static void plan_destroy(const struct blaslt *lt, struct gemm_plan *plan)
{
    if (plan->a)
        lt->MatrixLayoutDestroy(plan->a);
    if (plan->b)
        lt->MatrixLayoutDestroy(plan->b);
    if (plan->c)
        lt->MatrixLayoutDestroy(plan->c);
    if (plan->d)
        lt->MatrixLayoutDestroy(plan->d);
    if (plan->desc)
        lt->MatmulDescDestroy(plan->desc);
    free(plan);
}

void gemm_cache_destroy(struct gemm_cache *cache)
{
    if (!cache)
        return;
    for (size_t i = 0; i < cache->capacity; i++) {
        if (cache->slots[i])
            plan_destroy(cache->lt, cache->slots[i]);
    }
    free(cache->slots);
    free(cache);
}

static int32_t alignment(const void *p)
{
    uintptr_t bits = (uintptr_t)p | 16;
    return (int32_t)(bits & -bits);
}

static struct gemm_key key_of(const struct gemm *g)
{
    struct gemm_key key;
    memset(&key, 0, sizeof key);
    key.m = g->m;
    key.n = g->n;
    key.k = g->k;
    key.lda = g->lda;
    key.ldb = g->ldb;
    key.ldc = g->c ? g->ldc : g->ldd;
    key.ldd = g->ldd;
    key.ld_aux = g->aux ? g->ld_aux : 0;
    key.trans_a = g->trans_a;
    key.trans_b = g->trans_b;
    key.type_in = (int32_t)g->type_in;
    key.type_out = (int32_t)g->type_out;
    key.epilogue = (int32_t)g->epilogue | (g->sums ? KEY_SUMS : 0);
    key.type_b = (int32_t)g->type_b;
    key.align_a = alignment(g->a);
    key.align_b = alignment(g->b);
    key.align_c = alignment(g->c ? g->c : g->d);
    key.align_d = alignment(g->d);
    return key;
}

/* FNV-1a over the key's bytes. */
static uint64_t key_hash(const struct gemm_key *key)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

static struct gemm_plan **cache_slot(struct gemm_cache *cache, const struct gemm_key *key)
{
    size_t i = (size_t)key_hash(key) & (cache->capacity - 1);
    while (cache->slots[i] && memcmp(&cache->slots[i]->key, key, sizeof *key) != 0)
        i = (i + 1) & (cache->capacity - 1);
    return &cache->slots[i];
}

static void cache_grow(struct gemm_cache *cache)
{
    struct gemm_plan **old = cache->slots;
    size_t n = cache->capacity;

    cache->capacity = n * 2;
    cache->slots = xcalloc(cache->capacity, sizeof *cache->slots);
    for (size_t i = 0; i < n; i++) {
        if (old[i])
            *cache_slot(cache, &old[i]->key) = old[i];
    }
    free(old);
}

static bool ok(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS;
}

static bool set(const struct blaslt *lt, cublasLtMatmulDesc_t desc,
                cublasLtMatmulDescAttributes_t name, const void *value, size_t bytes)
{
    return ok(lt->MatmulDescSetAttribute(desc, name, value, bytes));
}

static bool plan_describe(const struct blaslt *lt, struct gemm_plan *plan)
{
    const struct gemm_key *k = &plan->key;
    cudaDataType_t in = (cudaDataType_t)k->type_in, out = (cudaDataType_t)k->type_out;
    cudaDataType_t in_b = k->type_b ? (cudaDataType_t)k->type_b : in;
    cublasOperation_t op_a = k->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t op_b = k->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)k->epilogue;
    uint64_t a_rows = (uint64_t)(k->trans_a ? k->k : k->m);
    uint64_t a_cols = (uint64_t)(k->trans_a ? k->m : k->k);
    uint64_t b_rows = (uint64_t)(k->trans_b ? k->n : k->k);
    uint64_t b_cols = (uint64_t)(k->trans_b ? k->k : k->n);
    uint64_t m = (uint64_t)k->m, n = (uint64_t)k->n;

    return ok(lt->MatmulDescCreate(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
           set(lt, plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a) &&
           set(lt, plan->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b) &&
           set(lt, plan->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) &&
           (k->ld_aux == 0 || set(lt, plan->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &k->ld_aux,
                                  sizeof k->ld_aux)) &&
           ok(lt->MatrixLayoutCreate(&plan->a, in, a_rows, a_cols, k->lda)) &&
           ok(lt->MatrixLayoutCreate(&plan->b, in_b, b_rows, b_cols, k->ldb)) &&
           ok(lt->MatrixLayoutCreate(&plan->c, out, m, n, k->ldc)) &&
           ok(lt->MatrixLayoutCreate(&plan->d, out, m, n, k->ldd));
}

static bool prefer(const struct blaslt *lt, cublasLtMatmulPreference_t pref,
                   cublasLtMatmulPreferenceAttributes_t name, uint32_t value)
{
    return ok(lt->MatmulPreferenceSetAttribute(pref, name, &value, sizeof value));
}

/* How a product may be done. */
struct candidate {
    int own; /* as struct gemm_plan's */
    cublasLtMatmulAlgo_t algo;
};

/* The library's proposals, best guess first; returns how many. */
static int plan_propose(struct gemm_cache *cache, const struct gemm_plan *plan,
                        struct candidate *ways, int wanted)
{
    cublasLtMatmulHeuristicResult_t found[PROPOSALS];
    const struct gemm_key *k = &plan->key;
    const uint32_t ordered =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    const size_t workspace = GEMM_WORKSPACE;
    const struct blaslt *lt = cache->lt;
    cublasLtMatmulPreference_t pref = NULL;
    int count = 0;

    bool asked =
        ok(lt->MatmulPreferenceCreate(&pref)) &&
        ok(lt->MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                            &workspace, sizeof workspace)) &&
        prefer(lt, pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, ordered) &&
        prefer(lt, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)k->align_a) &&
        prefer(lt, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)k->align_b) &&
        prefer(lt, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)k->align_c) &&
        prefer(lt, pref, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)k->align_d) &&
        ok(lt->MatmulAlgoGetHeuristic(cache->state->blas, plan->desc, plan->a, plan->b, plan->c,
                                      plan->d, pref, wanted, found, &count));
    if (pref)
        lt->MatmulPreferenceDestroy(pref);
    for (int i = 0; asked && i < count; i++)
        ways[i].algo = found[i].algo;
    return asked ? count : 0;
}

static bool launch(struct gemm_cache *cache, const struct gemm_plan *plan,
                   const struct candidate *way, cudaStream_t stream, const struct gemm *g)
{
    if (way->own == APART)
        return g->apart(g->how, g->d) == 0;
    if (way->own)
        return gemm_own_run(cache->state, stream, g) == 0;
    return ok(cache->lt->Matmul(cache->state->blas, plan->desc, &g->alpha, g->a, plan->a, g->b,
                                plan->b, &g->beta, g->c ? g->c : g->d, plan->c, g->d, plan->d,
                                &way->algo, g->workspace, GEMM_WORKSPACE, stream));
}

/* A round runs every proposal once, so that all of them meet the same clock and neighbours. */
struct trial {
    cudaEvent_t mark[CANDIDATES + 1];
    float ms[CANDIDATES][ROUNDS]; /* infinity where it failed */
};

static bool trial_init(struct trial *t, int count)
{
    memset(t, 0, sizeof *t);
    for (int i = 0; i <= count; i++)
        if (cudaEventCreate(&t->mark[i]) != cudaSuccess)
            return false;
    return true;
}

static void trial_fini(struct trial *t)
{
    for (int i = 0; i <= CANDIDATES; i++)
        if (t->mark[i])
            cudaEventDestroy(t->mark[i]);
}

static bool run_round(struct gemm_cache *cache, const struct gemm_plan *plan,
                      const struct candidate *ways, int count, cudaStream_t stream,
                      const struct gemm *g, struct trial *t, int round)
{
    bool failed[CANDIDATES] = {false};

    if (cudaEventRecord(t->mark[0], stream) != cudaSuccess)
        return false;
    for (int i = 0; i < count; i++) {
        failed[i] = !launch(cache, plan, &ways[i], stream, g);
        if (cudaEventRecord(t->mark[i + 1], stream) != cudaSuccess)
            return false;
    }
    if (cudaEventSynchronize(t->mark[count]) != cudaSuccess)
        return false;
    for (int i = 0; i < count; i++) {
        float *ms = &t->ms[i][round];
        if (failed[i] || cudaEventElapsedTime(ms, t->mark[i], t->mark[i + 1]) != cudaSuccess)
            *ms = INFINITY;
    }
    return true;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The candidate with the least median; the first one when timing is impossible. */
static int plan_fastest(struct gemm_cache *cache, const struct gemm_plan *plan,
                        const struct candidate *ways, int count, cudaStream_t stream,
                        const struct gemm *g)
{
    struct gemm product = *g;
    struct trial t;
    void *scratch = NULL;
    int best = 0;

    if (g->beta != 0 && (!g->c || g->c == g->d)) { /* the caller's sum must not grow */
        size_t bytes = (size_t)(g->ldd * g->n) * (g->type_out == CUDA_R_32F ? 4 : 2);
        if (cudaMalloc(&scratch, bytes) != cudaSuccess) {
            (void)cudaGetLastError();
            return 0;
        }
        product.d = scratch;
        product.c = NULL;
    }
    bool timed = trial_init(&t, count);
    for (int r = 0; r < ROUNDS && timed; r++) /* the first one, a warm-up, is overwritten */
        timed = run_round(cache, plan, ways, count, stream, &product, &t, r > 0 ? r - 1 : 0);
    for (int i = 0; i < count && timed; i++)
        qsort(t.ms[i], ROUNDS - 1, sizeof t.ms[i][0], by_size);
    for (int i = 1; i < count && timed; i++)
        if (t.ms[i][(ROUNDS - 1) / 2] < t.ms[best][(ROUNDS - 1) / 2])
            best = i;
    trial_fini(&t);
    cudaFree(scratch);
    return best;
}

/* The heuristic reads no pointer values, but wants to see which ones are set. */
static bool plan_bind(const struct blaslt *lt, struct gemm_plan *plan, const struct gemm *g)
{
    return (!g->bias ||
            set(lt, plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias)) &&
           (!g->aux || set(lt, plan->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &g->aux,
                           sizeof g->aux)) &&
           (!g->scale_a || set(lt, plan->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &g->scale_a,
                               sizeof(void *))) &&
           (!g->scale_b ||
            set(lt, plan->desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &g->scale_b, sizeof(void *)));
}

static bool plan_choose(struct gemm_cache *cache, struct gemm_plan *plan, cudaStream_t stream,
                        const struct gemm *g)
{
    struct candidate ways[CANDIDATES] = {{0}};
    int count = 0;

    if (plan->key.epilogue < GEMM_EPILOGUE_DRELU && plan_describe(cache->lt, plan) &&
        plan_bind(cache->lt, plan, g))
        count = plan_propose(cache, plan, ways, cache->tuning ? PROPOSALS : 1);
    if (gemm_own_can(cache->state, g)) {
        if (count == 0 || cache->tuning)
            ways[count++].own = OWN;
        if (cache->tuning && g->apart)
            ways[count++].own = APART;
    }
    if (count == 0)
        return false;
    int best = count > 1 ? plan_fastest(cache, plan, ways, count, stream, g) : 0;
    plan->own = ways[best].own;
    plan->algo = ways[best].algo;
    return plan->own != APART;
}

static void cache_put(struct gemm_cache *cache, struct gemm_plan *plan)
{
    if ((cache->used + 1) * 2 > cache->capacity)
        cache_grow(cache);
    *cache_slot(cache, &plan->key) = plan;
    cache->used++;
}

static struct gemm_plan *plan_get(struct gemm_cache *cache, cudaStream_t stream,
                                  const struct gemm *g)
{
    struct gemm_key key = key_of(g);
    struct gemm_plan *plan = *cache_slot(cache, &key);
    if (plan)
        return plan;
    plan = xcalloc(1, sizeof *plan);
    plan->key = key;
    plan->usable = plan_choose(cache, plan, stream, g);
    cache_put(cache, plan);
    return plan;
}

bool gemm_supported(struct gemm_cache *cache, cudaStream_t stream, const struct gemm *g)
{
    return plan_get(cache, stream, g)->usable;
}

int gemm_run(struct gemm_cache *cache, cudaStream_t stream, const struct gemm *g)
{
    assert(g->workspace);
    struct gemm_plan *plan = plan_get(cache, stream, g);

    if (!plan->usable)
        return ERR_UNSUPPORTED;
    if (!plan->own && !plan_bind(cache->lt, plan, g))
        return ERR_DEVICE;
    const struct candidate way = {plan->own, plan->algo};
    return launch(cache, plan, &way, stream, g) ? 0 : ERR_DEVICE;
}

void gemm_cache_set_tuning(struct gemm_cache *cache, bool on)
{
    cache->tuning = on;
}

/* --- the file --- */

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(((struct gemm_file_plan *)0)->algo),
               "an algorithm is as long as the file's");

int gemm_cache_save(const struct gemm_cache *cache, const char *gpu, const char *path,
                    struct err *err)
{
    struct gemm_file_owner owner = {.gpu = gpu, .version = cache->lt->GetVersion()};
    struct gemm_file_plan *plans = xcalloc(cache->used + 1, sizeof *plans);
    int64_t n = 0;

    for (size_t i = 0; i < cache->capacity; i++) {
        const struct gemm_plan *plan = cache->slots[i];
        if (!plan || (!plan->usable && plan->own != APART))
            continue;
        plans[n].key = plan->key;
        plans[n].own = plan->own;
        memcpy(plans[n++].algo, &plan->algo, sizeof plan->algo);
    }
    int rc = gemm_file_save(path, &owner, plans, n, err);
    free(plans);
    return rc;
}

int gemm_cache_load(struct gemm_cache *cache, const char *gpu, const char *path, struct err *err)
{
    struct gemm_file_owner owner = {.gpu = gpu, .version = cache->lt->GetVersion()};
    struct gemm_file_plan *plans = NULL;
    int64_t n = 0;
    int rc = gemm_file_load(path, &owner, &plans, &n, err);

    for (int64_t i = 0; i < n; i++) {
        if (*cache_slot(cache, &plans[i].key))
            continue;
        struct gemm_plan *plan = xcalloc(1, sizeof *plan);
        plan->key = plans[i].key;
        memcpy(&plan->algo, plans[i].algo, sizeof plan->algo);
        plan->own = plans[i].own;
        plan->usable = plan->own > 0 || (plan->own == 0 && plan_describe(cache->lt, plan));
        cache_put(cache, plan);
    }
    free(plans);
    return rc;
}
