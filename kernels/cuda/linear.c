/*
 * Row-major matrices are their transposes in BLAS order, so with w (O, I):
 *   y  (N, O) = x w^T   is  y^T  (O, N) = w x^T     A = w^T-stored, transposed; B = x
 *   dx (N, I) = dy w    is  dx^T (I, N) = w^T dy^T  A = w, B = dy
 *   dw (O, I) = dy^T x  is  dw^T (I, O) = x^T dy    A = x, B = dy transposed
 * Fused in the product: bias, residual (as beta C), ReLU where nothing must be kept, the tanh-GELU
 * gradient, accumulation. The library's fused activations want rows of whole 16 bytes and 16-bit
 * types; everything else runs as a pass of its own over the product's result. On Hopper a kernel of
 * ours (product.h) also applies tanh-GELU, and, where that is faster than the passes, the slope of
 * ReLU with the sums of the bias's gradient.
 *
 * An output is made of its input as that is kept, rounded: a plan may keep an activation or make it
 * again, and both give the same bits.
 *
 * A quantised weight is decoded into the workspace first, so that the product is that of any other:
 * a pass that costs what it writes, a few per cent of a product of some thousand rows.
 *
 * A wide O that is no multiple of 8, such as a vocabulary of 50,257, is cut in two: products of
 * 16-bit types with such a side run at a sixth of the speed. The last few columns are a product of
 * their own.
 */
#include "kernels/cuda/linear.h"

#include <assert.h>

#include "kernels/cuda/fp8.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product.h"

static cudaDataType_t blas_type(enum dtype t)
{
    assert(t == DT_F32 || t == DT_BF16 || t == DT_F16);
    return t == DT_F32 ? CUDA_R_32F : t == DT_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static int64_t row_stride(int64_t ld, int64_t dense)
{
    return ld ? ld : dense;
}

static float alpha_of(const struct linear_args *a)
{
    return a->alpha != 0 ? a->alpha : 1;
}

static bool rows_aligned(const void *p, int64_t ld)
{
    return ((uintptr_t)p & 15) == 0 && ld % 8 == 0;
}

/* y's product, before any activation, into `to`. */
static struct gemm forward_product(enum dtype real, const struct linear_args *a, void *to)
{
    int64_t ldy = row_stride(a->ldy, a->O);
    struct gemm g = {
        .trans_a = true,
        .m = a->O,
        .n = a->N,
        .k = a->I,
        .type_in = blas_type(real),
        .type_out = blas_type(real),
        .a = a->w,
        .lda = a->I,
        .b = a->x,
        .ldb = row_stride(a->ldx, a->I),
        .d = to,
        .ldd = ldy,
        .alpha = alpha_of(a),
        .epilogue = a->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT,
        .bias = a->bias,
        .workspace = a->workspace,
    };
    return g;
}

/* Try to do the activation in the product; false leaves *g as it was. */
static bool fuse_activation(struct stream *s, enum dtype real, const struct linear_args *a,
                            struct gemm *g)
{
    struct gemm fused = *g;

    if (real == DT_F32 || a->residual || !rows_aligned(a->y, g->ldd) || a->O % 8 != 0)
        return false;
    fused.d = a->y;
    if (a->act == ACT_RELU && !a->pre) {
        fused.epilogue = a->bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    } else if (a->act == ACT_GELU_TANH && rows_aligned(a->pre, g->ldd)) {
        fused.epilogue = (cublasLtEpilogue_t)GEMM_EPILOGUE_GELU;
        fused.aux = a->pre;
        fused.ld_aux = g->ldd;
    } else {
        return false;
    }
    if (!gemm_supported(s->state->gemms, s->handle, &fused))
        return false;
    *g = fused;
    return true;
}

/* With fp8, the op's product is that of its operands in 8 bits. */
static int narrow_operands(struct stream *s, enum dtype real, const struct linear_args *a,
                           enum op op, struct gemm *g)
{
    struct fp8_operand x = {a->x8, a->x_scale}, w = {a->w8, a->w_scale}, dy = {a->dy8, a->dy_scale};

    if (!a->fp8)
        return 0;
    if (real != DT_BF16)
        return ERR_UNSUPPORTED;
    if (op == OP_LINEAR_FWD)
        return fp8_operands(s, w, FP8_E4M3, x, g);
    return fp8_operands(s, op == OP_LINEAR_BWD_DATA ? w : x, FP8_E5M2, dy, g);
}

/* --- wide and odd --- */

enum { WIDE = 1024, EVEN = 8 }; /* narrower ones are not worth a second launch */

static bool is_wide_and_odd(enum dtype real, const struct linear_args *a)
{
    return real != DT_F32 && !a->fp8 && a->O > WIDE && a->O % EVEN != 0 && a->I % EVEN == 0 &&
           a->ldy % EVEN == 0 && a->ldy != 0;
}

static const void *past(const void *p, int64_t elements, enum dtype t)
{
    return p ? (const char *)p + (size_t)elements * dtype_size(t) : NULL;
}

/* The layer's outputs [first, first + n) as a layer. */
static struct linear_args columns(enum dtype real, const struct linear_args *a, int64_t first,
                                  int64_t n)
{
    struct linear_args part = *a;
    part.O = n;
    part.w = past(a->w, first * a->I, real);
    part.bias = past(a->bias, first, real);
    part.residual = past(a->residual, first, real);
    part.pre = (void *)past(a->pre, first, real);
    part.y = (void *)past(a->y, first, real);
    part.dy = past(a->dy, first, real);
    enum dtype grad = a->narrow.on ? real : DT_F32;
    part.dw = (void *)past(a->dw, first * a->I, grad);
    part.dbias = (void *)past(a->dbias, first, grad);
    part.narrow.stream.site += first > 0 ? NARROW_SITES / 2 : 0;
    return part;
}

static struct linear_args even_columns(enum dtype real, const struct linear_args *a)
{
    return columns(real, a, 0, a->O / EVEN * EVEN);
}

static struct linear_args last_columns(enum dtype real, const struct linear_args *a)
{
    return columns(real, a, a->O / EVEN * EVEN, a->O % EVEN);
}

/* --- quantised weights --- */

static size_t decoded_bytes(enum dtype real, const struct linear_args *a)
{
    return ((size_t)(a->O * a->I) * dtype_size(real) + 255) / 256 * 256;
}

/* The args of the same product with the matrix at the front of the workspace. */
static int decode_weight(struct stream *s, enum dtype real, const struct linear_args *a,
                         struct linear_args *plain)
{
    *plain = *a;
    if (a->quant.format == QUANT_NONE)
        return 0;
    plain->quant = (struct op_quant){0};
    plain->w = a->workspace;
    plain->workspace = (char *)a->workspace + decoded_bytes(real, a);
    return launch_quant_decode(s->handle, real, &a->quant, a->w, a->O * a->I, a->workspace);
}

/* --- the three ops --- */

static int forward(struct stream *s, enum dtype real, const struct linear_args *a)
{
    struct gemm_cache *cache = s->state->gemms;
    struct gemm g = forward_product(real, a, a->pre ? a->pre : a->y);
    int rc = narrow_operands(s, real, a, OP_LINEAR_FWD, &g);

    if (rc != 0)
        return rc;
    if (a->act == ACT_NONE && !a->pre) {
        if (a->residual) {
            g.c = a->residual;
            g.ldc = g.ldd;
            g.beta = 1.0f;
        }
        return gemm_run(cache, s->handle, &g);
    }
    if (a->act != ACT_NONE && fuse_activation(s, real, a, &g))
        return gemm_run(cache, s->handle, &g);
    if (!a->pre && a->residual == a->y)
        return ERR_UNSUPPORTED; /* the product would overwrite the residual */
    rc = gemm_run(cache, s->handle, &g);
    if (rc != 0)
        return rc;
    return launch_act_rows(s->handle, real, a->act, a->N, a->O, g.ldd, g.d, a->residual, a->y);
}

int linear_fwd(struct stream *s, enum dtype real, const struct linear_args *a)
{
    struct linear_args plain;
    int rc = decode_weight(s, real, a, &plain);

    if (rc != 0 || !is_wide_and_odd(real, &plain))
        return rc ? rc : forward(s, real, &plain);
    struct linear_args even = even_columns(real, &plain), last = last_columns(real, &plain);
    rc = forward(s, real, &even);
    return rc ? rc : forward(s, real, &last);
}

/* A data gradient through an activation: the product's call, and what is to be done. */
struct slope {
    struct stream *s;
    enum dtype real;
    const struct linear_args *a;
    const struct gemm *plain;
};

/* The product and a pass. */
static int slope_by_pass(const void *how, void *dx)
{
    const struct slope *p = how;
    struct gemm g = *p->plain;
    g.d = dx;
    int rc = gemm_run(p->s->state->gemms, p->s->handle, &g);
    return rc ? rc
              : launch_act_grad_rows(p->s->handle, p->real, p->a->act_x, p->a->N, p->a->I, g.ldd,
                                     p->a->pre_x, dx);
}

/* A product that applies the slope itself; false: there is none. */
static bool slope_product(const struct slope *p, struct gemm *g)
{
    const struct linear_args *a = p->a;
    *g = *p->plain;
    if ((a->act_x != ACT_GELU_TANH && a->act_x != ACT_RELU) || p->real == DT_F32 || a->I % 8 != 0 ||
        !rows_aligned(a->dx, g->ldd) || !rows_aligned(a->pre_x, g->ldd))
        return false;
    g->epilogue =
        a->act_x == ACT_RELU ? (cublasLtEpilogue_t)GEMM_EPILOGUE_DRELU : CUBLASLT_EPILOGUE_DGELU;
    g->aux = (void *)a->pre_x; /* read only with these epilogues */
    g->ld_aux = g->ldd;
    g->how = p;
    return true;
}

static int slope_without_sums(const struct slope *p, void *dx)
{
    struct gemm g;
    if (!slope_product(p, &g))
        return slope_by_pass(p, dx);
    g.d = dx;
    g.apart = slope_by_pass;
    if (!gemm_supported(p->s->state->gemms, p->s->handle, &g))
        return slope_by_pass(p, dx);
    return gemm_run(p->s->state->gemms, p->s->handle, &g);
}

static int slope_and_sums(const struct slope *p, void *dx, enum accum accum, void *sums,
                          const struct op_narrow *narrow)
{
    int rc = slope_without_sums(p, dx);
    return rc ? rc
              : launch_colsum(p->s->handle, p->real, p->a->N, p->a->I, p->plain->ldd, dx, accum,
                              sums, narrow, p->a->workspace);
}

static int slope_then_sums(const void *how, void *dx)
{
    const struct slope *p = how;
    char *behind = (char *)p->a->workspace + workspace_colsum(p->a->N, p->a->I);
    return slope_and_sums(p, dx, ACCUM_ASSIGN, behind, &(struct op_narrow){0});
}

static int data_through_slope(const struct slope *p)
{
    const struct linear_args *a = p->a;
    struct gemm g;
    if (!a->dbias_x)
        return slope_without_sums(p, a->dx);
    if (slope_product(p, &g)) {
        g.sums = a->workspace;
        g.apart = slope_then_sums;
        if (gemm_supported(p->s->state->gemms, p->s->handle, &g)) {
            int rc = gemm_run(p->s->state->gemms, p->s->handle, &g);
            return rc ? rc
                      : launch_colsum_parts(p->s->handle, product_row_tiles(a->N), a->I, g.sums,
                                            a->dw_accum, a->dbias_x, &a->narrow);
        }
    }
    return slope_and_sums(p, a->dx, a->dw_accum, a->dbias_x, &a->narrow);
}

static int backward_data(struct stream *s, enum dtype real, const struct linear_args *a)
{
    int64_t ldx = row_stride(a->ldx, a->I);
    struct gemm g = {
        .m = a->I,
        .n = a->N,
        .k = a->O,
        .type_in = blas_type(real),
        .type_out = blas_type(real),
        .a = a->w,
        .lda = a->I,
        .b = a->dy,
        .ldb = row_stride(a->ldy, a->O),
        .d = a->dx,
        .ldd = ldx,
        .alpha = alpha_of(a),
        .beta = a->dx_accum == ACCUM_ADD ? 1.0f : 0.0f,
        .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
        .workspace = a->workspace,
    };
    int rc = narrow_operands(s, real, a, OP_LINEAR_BWD_DATA, &g);

    if (rc != 0)
        return rc;
    assert(a->act_x == ACT_NONE || a->dx_accum == ACCUM_ASSIGN);
    if (a->act_x == ACT_NONE)
        return gemm_run(s->state->gemms, s->handle, &g);
    const struct slope slope = {s, real, a, &g};
    return data_through_slope(&slope);
}

/* The small sum first: what it loses by being rounded on its way is small, too. */
int linear_bwd_data(struct stream *s, enum dtype real, const struct linear_args *a)
{
    struct linear_args plain;
    if (a->dbias_x && a->narrow.on && real == DT_F16)
        return ERR_UNSUPPORTED;
    int rc = decode_weight(s, real, a, &plain);

    plain.narrow.on = plain.narrow.on && real == DT_BF16;
    if (rc != 0 || !is_wide_and_odd(real, &plain) || plain.act_x != ACT_NONE)
        return rc ? rc : backward_data(s, real, &plain);
    struct linear_args even = even_columns(real, &plain), last = last_columns(real, &plain);
    even.dx_accum = ACCUM_ADD;
    rc = backward_data(s, real, &last);
    return rc ? rc : backward_data(s, real, &even);
}

/* The sides of an op's product in the order of struct gemm. */
static size_t spread_operands(enum op op, const struct linear_args *a)
{
    return op == OP_LINEAR_FWD        ? fp8_workspace(a->O, a->N, a->I)
           : op == OP_LINEAR_BWD_DATA ? fp8_workspace(a->I, a->N, a->O)
                                      : fp8_workspace(a->I, a->O, a->N);
}

/* Bytes of workspace that the product itself may use. */
static size_t narrow_product_at(enum op op, const struct linear_args *a)
{
    size_t copies = a->fp8 ? spread_operands(op, a) : 0;
    return GEMM_WORKSPACE + copies;
}

/* The library's product would round the sum to nearest, so where that is to be rounded
 * stochastically the product goes behind what it works in. */
static void *narrow_product(const struct linear_args *a)
{
    return (char *)a->workspace + narrow_product_at(OP_LINEAR_BWD_WEIGHT, a);
}

static int backward_weight(struct stream *s, enum dtype real, const struct linear_args *a)
{
    int64_t ldy = row_stride(a->ldy, a->O);
    bool add = a->dw_accum == ACCUM_ADD, apart = add && a->narrow.on;
    int rc = 0;

    if (a->dw) {
        struct gemm g = {
            .trans_b = true,
            .m = a->I,
            .n = a->O,
            .k = a->N,
            .type_in = blas_type(real),
            .type_out = a->narrow.on ? blas_type(real) : CUDA_R_32F,
            .a = a->x,
            .lda = row_stride(a->ldx, a->I),
            .b = a->dy,
            .ldb = ldy,
            .d = apart ? narrow_product(a) : a->dw,
            .ldd = a->I,
            .alpha = alpha_of(a),
            .beta = add && !apart ? 1.0f : 0.0f,
            .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
            .workspace = a->workspace,
        };
        rc = narrow_operands(s, real, a, OP_LINEAR_BWD_WEIGHT, &g);
        if (rc == 0)
            rc = gemm_run(s->state->gemms, s->handle, &g);
    }
    if (rc == 0 && a->dw && apart)
        rc = launch_narrow_add(s->handle, a->O * a->I, narrow_product(a), a->narrow.stream, a->dw);
    if (rc == 0 && a->dbias)
        rc = launch_colsum(s->handle, real, a->N, a->O, ldy, a->dy, a->dw_accum, a->dbias,
                           &a->narrow, a->workspace);
    return rc;
}

int linear_bwd_weight(struct stream *s, enum dtype real, const struct linear_args *a)
{
    struct linear_args own = *a;
    if (a->narrow.on && real == DT_F16)
        return ERR_UNSUPPORTED;
    own.narrow.on = a->narrow.on && real == DT_BF16;
    if (!is_wide_and_odd(real, a))
        return backward_weight(s, real, &own);
    struct linear_args even = even_columns(real, &own), last = last_columns(real, &own);
    int rc = backward_weight(s, real, &even);
    return rc ? rc : backward_weight(s, real, &last);
}

size_t linear_workspace(enum op op, enum dtype real, const struct linear_args *a)
{
    bool decodes = a->quant.format != QUANT_NONE && op != OP_LINEAR_BWD_WEIGHT;
    size_t sums = op == OP_LINEAR_BWD_WEIGHT ? workspace_colsum(a->N, a->O) : 0;
    size_t tiles = (size_t)product_row_tiles(a->N) * (size_t)a->I * sizeof(float);
    size_t product = narrow_product_at(op, a);
    if (op == OP_LINEAR_BWD_WEIGHT && a->narrow.on && a->dw_accum == ACCUM_ADD)
        product += (size_t)a->O * (size_t)a->I * dtype_size(DT_BF16);
    if (op == OP_LINEAR_BWD_DATA && a->act_x != ACT_NONE) {
        sums = workspace_colsum(a->N, a->I) + (size_t)a->I * sizeof(float);
        sums = sums > tiles ? sums : tiles;
    }
    return (sums > product ? sums : product) + (decodes ? decoded_bytes(real, a) : 0);
}
