/*
 * The op table: every computation that training needs, one prototype an op, filled by each backend
 * (kernels/cpu/: reference ops in float and double, fast ones in float and bfloat16; kernels/cuda/)
 * and bound to one compute type. Code above this line knows no backend.
 *
 * Rules that hold for every op
 * - `int op(struct stream *s, const struct X_args *a)`: queues the work on s, returns 0 or an enum
 *   err_code at once (launch status). It allocates nothing, synchronises nothing, knows no ranks.
 *   Pointers are device memory unless marked host; the args struct itself may be dropped when the
 *   call returns.
 * - Element types: `real` = the table's compute type (activations and weights), `grad` =
 *   weight-gradient accumulators, `stat` = statistics and losses; see struct op_table. Unmarked
 *   pointers are real.
 * - Matrices are row-major; "(N, C)" is N rows of C. ld* = elements from row to row, 0 = dense.
 * - Each output says `=` (assigned) or `+=` (accumulated). No op reads what it assigns. Inputs and
 *   outputs do not overlap unless the args say "may alias".
 * - A gradient is rounded to the compute type where it is consumed (sumsq, adamw: each element on
 *   load), so that it may travel in that type and placement cannot be seen in the numbers.
 * - Sums run in at least float32, in an order that depends on shapes alone: the same call gives the
 *   same bits every time.
 * - A NULL optional pointer switches the feature off; its comment says "or NULL".
 * - `workspace` must hold op_table.workspace(op, args) bytes (which looks at shapes only, so
 *   pointers may still be NULL); its contents are undefined before and after.
 * - Sizes are checked by the caller; a shape that the backend cannot do is ERR_UNSUPPORTED, nothing
 *   queued.
 */
#ifndef CASTOR_KERNELS_OP_TABLE_H
#define CASTOR_KERNELS_OP_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/rng.h"
#include "kernels/dtype.h"
#include "kernels/fp8_scale.h"
#include "kernels/quant.h"

struct stream;

enum op {
    OP_EMBED_FWD,
    OP_EMBED_BWD,
    OP_NORM_FWD,
    OP_NORM_BWD,
    OP_LINEAR_FWD,
    OP_LINEAR_BWD_DATA,
    OP_LINEAR_BWD_WEIGHT,
    OP_ACT_FWD,
    OP_ACT_BWD,
    OP_ROPE,
    OP_ATTN_FWD,
    OP_ATTN_BWD,
    OP_DROPOUT_FWD,
    OP_DROPOUT_BWD,
    OP_LOSS,
    OP_ADD,
    OP_SUMSQ,
    OP_CLIP,
    OP_ADAMW,
    OP_CAST,
    OP_ROUND8,
    OP_COUNT,
};
const char *op_name(enum op op);

enum norm_kind {
    NORM_LAYER,
    NORM_RMS,
    NORM_RMS_PLUS_ONE
}; /* plus one: scale by (1 + weight), Gemma */
enum act_kind { ACT_NONE, ACT_RELU, ACT_GELU_ERF, ACT_GELU_TANH, ACT_SILU };
enum accum { ACCUM_ASSIGN, ACCUM_ADD };
enum rope_style { ROPE_HALF, ROPE_INTERLEAVED }; /* pairs (i, i + dim/2) or (2i, 2i + 1) */

/* Inverted dropout. Element i of the tensor is dropped or not as kernels/dropout.h says of index
 * first + i, and if not, multiplied by 1 / (1 - p). `first` is the element's index in the whole
 * step's batch, so the mask does not depend on how the batch is cut into micro-batches. p == 0: no
 * dropout, nothing drawn. */
struct op_dropout {
    float p;
    struct rng_stream stream;
    int64_t first;
};

/* Weight gradients in the compute type instead of `grad`, for tables in bfloat16: half the memory.
 * What a call contributes is rounded to nearest, as it would be where it is consumed. Where that is
 * added to something other than zero the sum is rounded stochastically (kernels/adamw_math.h) by
 * the draws of `stream` with the element's index, and of the next site for a bias, so that what is
 * small against the sum counts in the mean. Tables whose compute type is `grad` have nothing to
 * narrow; those in float16 give ERR_UNSUPPORTED. */
enum { NARROW_SITES = 4 }; /* that a call may draw from: the stream's, and those behind it */
struct op_narrow {
    bool on;
    struct rng_stream stream;
};

/* out = wte[tokens] * scale + wpe[positions + wpe_offset] */
struct embed_args {
    int64_t N, C, V, P;       /* rows, width, vocabulary, rows of wpe */
    const int32_t *tokens;    /* (N), in [0, V)                       */
    const int32_t *positions; /* (N), positions + wpe_offset in [0, P) */
    const void *wte;          /* (V, C)                               */
    const void *wpe;          /* (P, C) or NULL                       */
    int64_t wpe_offset;
    float scale;
    void *out; /* (N, C) = */
    /* backward */
    const void *dout; /* (N, C)                */
    void *dwte;       /* (V, C) grad +=, or NULL; rows summed in ascending row order */
    void *dwpe;       /* (P, C) grad +=, or NULL; likewise                           */
    void *workspace;
};

/* sum = x + residual; y = norm(sum) * weight + bias. Without a residual, sum is x itself. */
struct norm_args {
    enum norm_kind kind;
    int64_t N, C;
    int64_t ld; /* of every matrix */
    float eps;
    const void *x;        /* (N, C) */
    const void *residual; /* (N, C) or NULL */
    const void *weight;   /* (C) or NULL    */
    const void *bias;     /* (C) or NULL    */
    void *sum;            /* (N, C) =, needed with a residual; may alias x or residual */
    void *y;              /* (N, C) = */
    void *mean;           /* (N) stat =, or NULL for RMS */
    void *rstd;           /* (N) stat = */
    /* backward: x is the normalised input (forward's sum), mean and rstd are inputs */
    const void *dy; /* (N, C) */
    const void
        *dresidual; /* (N, C) or NULL: gradient of the residual stream, added to dx; may alias dx */
    void *dx;       /* (N, C) =  */
    void *dweight;  /* (C) grad +=, or NULL */
    void *dbias;    /* (C) grad +=, or NULL */
    struct op_narrow narrow; /* of dweight and dbias */
    void *workspace;
};

/* A weight that lies quantised (kernels/quant.h): its pointer is that of a whole tensor's codes,
 * and the matrix begins at element `first` of it. The product is that of the decoded matrix,
 * rounded to the compute type. */
struct op_quant {
    enum quant_format format; /* QUANT_NONE: it does not */
    int64_t first;
    const float *scales;
};

/* y = act(alpha x w^T + bias) + residual, w (O, I) as in PyTorch's nn.Linear
 *
 * With fp8 the operands of the product are what round8 made of x, w and dy, x and w in e4m3 and dy
 * in e5m2: those with an 8, and x, w and dy themselves are not looked at. In each the dimension
 * that is summed over comes last. Everything else is as without: bias, residual, activations, and
 * dbias, which adds up dy itself. */
struct linear_args {
    int64_t N, I, O;
    bool fp8;
    const void *x8;  /* forward (N, I), bwd_weight (I, N) */
    const void *w8;  /* forward (O, I), bwd_data (I, O)   */
    const void *dy8; /* bwd_data (N, O), bwd_weight (O, N) */
    const struct fp8_scale *x_scale, *w_scale, *dy_scale;
    float alpha;           /* times the product, forward and backward; 0 = 1 */
    int64_t ldx, ldy;      /* of x/dx and of y/dy/pre/residual */
    const void *x;         /* (N, I) */
    const void *w;         /* (O, I) */
    struct op_quant quant; /* of w, at which linear_bwd_weight does not look */
    const void *bias;      /* (O) or NULL */
    const void *residual;  /* (N, O) or NULL; may alias y */
    enum act_kind act;
    void *pre; /* (N, O) = alpha x w^T + bias, or NULL: kept for backward of act */
    void *y;   /* (N, O) = */
    /* linear_bwd_data: dx = alpha dy w, times act'(pre_x) where x was act(pre_x) */
    const void *dy;      /* (N, O) */
    enum act_kind act_x; /* the activation that made x, or ACT_NONE */
    const void *pre_x;   /* (N, I), needed with act_x (ReLU: x itself will do) */
    enum accum dx_accum; /* with ACCUM_ADD the product is added to dx (act_x must be ACT_NONE) */
    void *dx;            /* (N, I) */
    void *dbias_x;       /* (I) grad, as dbias, or NULL: column sums of dx, the gradient of a bias
                            that was added in front of act_x; with one alone */
    /* linear_bwd_weight: dw += alpha dy^T x, dbias += column sums of dy */
    enum accum
        dw_accum; /* of dw, dbias and dbias_x; ACCUM_ASSIGN for the first micro-batch of a step */
    void *dw;     /* (O, I) grad, or NULL */
    void *dbias;  /* (O) grad, or NULL    */
    struct op_narrow narrow; /* likewise         */
    void *workspace;
};

/* The linear_bwd_weight whose dbias is the dbias_x of `a`, a linear_bwd_data that has run. */
struct linear_args linear_bias_below(const struct linear_args *a);

/* Plain: y (N, F) = act(x (N, F)). Gated: y (N, F) = act(gate) * up with x (N, 2F) = [gate | up].
 */
struct act_args {
    enum act_kind act;
    bool gated;
    int64_t N, F;
    const void *x;
    void *y; /* =; plain: may alias x */
    /* backward */
    const void *dy; /* (N, F) */
    void *dx;       /* shape of x, =; plain: may alias dy */
};

/* A matrix rounded to 8 bits as a whole: each element times the power of two of
 * kernels/fp8_scale.h, to the nearest value of the format, as it lies, transposed, or both. The
 * matrix is x, or made of it element by element without being stored: an activation's output, or
 * the gradient of its input, as act_args says, rounded to real before all else. A matrix that holds
 * a NaN or an infinity counts as NaN throughout.
 *
 * What an activation is made of can be rounded to e4m3 beside its output, and its gradient made of
 * that: x8, dense. */
enum round8_of { ROUND8_X, ROUND8_ACT, ROUND8_ACT_GRAD };
struct round8_args {
    enum round8_of of;
    enum fp8_format format; /* ROUND8_ACT: e4m3; ROUND8_ACT_GRAD: e5m2; else ERR_UNSUPPORTED */
    enum act_kind act;
    bool gated;
    int64_t N, C;          /* of the matrix: act_args' F, or 2F for the gradient where gated */
    int64_t ldx;           /* of ROUND8_X alone                                              */
    const void *x;         /* (N, C) or as act_args' x                                       */
    struct op_quant quant; /* of x, with ROUND8_X and dense rows                   */
    const void *dy;        /* ROUND8_ACT_GRAD: as act_args' dy                     */
    void *x8; /* x, of one byte: ROUND8_ACT =, or NULL; ROUND8_ACT_GRAD: what there is instead of x,
                 or NULL */
    struct fp8_scale *x_scale; /* of x8; of ROUND8_ACT as `scale`                      */
    bool known;                /* scale->amax is this matrix's. Else it is 0, and becomes it */
    struct fp8_scale *scale;   /* one, device memory; back = where there are rows or cols */
    void *rows;                /* (N, C) of one byte =, or NULL */
    void *cols;                /* (C, N) of one byte =, or NULL: the transpose */
    void *workspace;
};

/* Rotary position embedding (Su et al., "RoFormer", 2021) in place on `heads` heads of each row. */
struct rope_args {
    enum rope_style style;
    bool inverse; /* rotate back: the gradient */
    int64_t N, heads, head_dim, rope_dim, ldx;
    const int32_t *positions; /* (N) */
    const float *cos_table;   /* (positions, rope_dim / 2) */
    const float *sin_table;
    void *x; /* (N, heads, head_dim), rows ldx apart; in place */
};

/* Causal attention. Row b has T queries and S >= T keys; query i stands at key index i + S - T and
 * sees the keys max(first_key[b][i], i + S - T - window + 1) .. i + S - T. score = softcap(q k^T *
 * scale) + bias, which is alibi_slopes[h] * (key index - query index), or, where alibi_scale is not
 * 0, alibi_rounded(alibi_slopes[h], alibi_scale, key index - first_key[b][i]) (kernels/alibi.h).
 * Heads h of q share the k and v of head h * KV / H. Probability (b, h, i, j) is dropped by index
 * ((b * H + h) * T + i) * S + j, b counted from dropout.first / (H * T * S). */
struct attn_args {
    int64_t B, T, S, H, KV, D;
    int64_t ldq, ldk, ldv, ldo; /* elements from token to token; of the gradients too */
    float scale;
    float softcap;             /* 0 = none: cap * tanh(score / cap)              */
    int64_t window;            /* 0 = all                                        */
    const int32_t *first_key;  /* (B, T) or NULL: packed rows         */
    const float *alibi_slopes; /* (H) or NULL                         */
    float alibi_scale;         /* 0 = ALiBi as published, else Falcon's */
    struct op_dropout dropout;
    const void *q; /* (B, T, H, D)  */
    const void *k; /* (B, S, KV, D) */
    const void *v; /* (B, S, KV, D) */
    void *o;       /* (B, T, H, D) = */
    void *lse;     /* (B, H, T) stat =: log of the sum of exponentials, for backward */
    /* backward: o and lse are inputs, T == S */
    const void *dout;   /* (B, T, H, D), rows ldo */
    void *dq, *dk, *dv; /* = */
    void *workspace;
};

/* y = residual + dropout(x); backward dx = dropout mask of dy. p may be 0. */
struct dropout_args {
    int64_t n; /* elements */
    struct op_dropout dropout;
    const void *x;
    const void *residual; /* or NULL */
    void *y;              /* =; may alias x or residual */
    const void *dy;
    void *dx; /* =; may alias dy */
};

/* Dynamic loss scaling (Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2),
 * kept on the device so that no step waits for the host: loss multiplies gradients by `scale`, clip
 * divides by it and afterwards moves it. A step whose gradients are not finite is skipped and
 * halves the scale; `interval` good ones in a row double it. Factors of two, so nothing else
 * changes. */
struct loss_scale {
    float scale;
    int32_t good;     /* steps since it last moved */
    int32_t skipped;  /* in all                    */
    int32_t interval; /* 2000 in PyTorch           */
};
CASTOR_HD static inline struct loss_scale loss_scale_after(struct loss_scale s, int finite)
{
    const float least = 1.0f / 16384, most = 16777216.0f;
    if (!finite) {
        s.scale = s.scale > least ? s.scale * 0.5f : least;
        s.good = 0;
        s.skipped++;
    } else if (++s.good >= s.interval) {
        s.scale = s.scale < most ? s.scale * 2.0f : most;
        s.good = 0;
    }
    return s;
}

/* Cross entropy with its gradient in one pass over the logits (in place). Rows with target < 0 have
 * loss 0 and gradient 0. z = softcap(logits * logit_scale). */
struct loss_args {
    int64_t N, V, ldl;      /* rows, vocabulary; ldl = elements from row to row, 0 = V */
    float logit_scale;      /* 1; positive */
    float softcap;          /* 0 = none */
    const int32_t *targets; /* (N) */
    void *logits;           /* (N, V); with grad_scale: = gradient of sum(row_loss) * *grad_scale */
    const float *grad_scale; /* one float in device memory (1 / target tokens of the step), or NULL:
                                loss only */
    const struct loss_scale *loss_scale; /* device memory, or NULL: 1; times grad_scale */
    void *row_loss;                      /* (N) stat = */
    int32_t *row_correct; /* (N) = 1 when the target has the largest logit (the lowest index wins),
                             else 0 */
};

/* y += x, both grad */
struct add_args {
    int64_t n;
    const void *x;
    void *y;
};

/* partial[i] = sum of squares of block i of x, in double. Blocks of SUMSQ_BLOCK elements, the last
 * one shorter. */
enum { SUMSQ_BLOCK = 1 << 16 };
struct sumsq_args {
    int64_t n;
    bool narrow;     /* x is real    */
    const void *x;   /* (n) grad     */
    double *partial; /* (ceil(n / SUMSQ_BLOCK)) = */
};

/* The sum of all partials, in double: groups of CLIP_GROUP neighbours are added in index order,
 * then the groups' sums in theirs. norm = sqrt(sum) / scale; coef = min(1, max_norm / (norm +
 * 1e-6)) / scale, as torch.nn.utils.clip_grad_norm_; max_norm 0: no clipping. */
enum { CLIP_GROUP = 256 };
struct clip_result {
    double norm;
    float coef;      /* every gradient is multiplied by this */
    int32_t clipped; /* 1 when max_norm was exceeded        */
    int32_t
        finite; /* 0: NaN or infinity among the gradients; then coef is 0 and no update may run */
    int32_t pad;
};
struct clip_args {
    int64_t n;
    const double *partial; /* (n) */
    float max_norm;
    struct loss_scale *loss_scale; /* one, device memory: read, then moved; or NULL: 1 */
    struct clip_result *result;    /* one, device memory, = */
};

/* AdamW (Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019), in PyTorch's
 * order of operations, arithmetic of kernels/adamw_math.h on every device, so that where an update
 * runs cannot be seen in the numbers. Skips everything when !clip->finite.
 *
 * Master and moments are of the table's master type, or (not in the double table) bfloat16, rounded
 * stochastically: up or down with the odds that make the expected value exact, so that changes
 * smaller than half a step are not lost. The random bits are a function of (seed, step, site,
 * first + i), whatever is updated where. A split master is the bfloat16 parameter and a remainder
 * of 16 bits beside it: the same float as a whole one, to the bit.
 *
 * Moments may also be 8-bit codes, MOMENT_BLOCK of them to an exponent (kernels/moment_math.h),
 * rounded stochastically, too. Then n_decay is a multiple of MOMENT_BLOCK or n, and first one. */
struct adamw_step { /* one, device memory; changes every step */
    float lr;
    float bias1, bias2; /* 1 - beta1^t, 1 - beta2^t */
    uint32_t step;      /* its number: of the random bits */
};
struct adamw_args {
    int64_t n, n_decay; /* weight decay applies to elements [0, n_decay) */
    float beta1, beta2, eps, weight_decay;
    const struct adamw_step *step;
    const struct clip_result *clip;
    enum dtype
        grad_type; /* the gradient's; rounded to param_type on its way, if that is narrower */
    enum dtype master_type; /* f32 (f64 in the double table), bf16, or i16: split */
    enum dtype moment_type; /* f32 (f64 in the double table), bf16, or u8: codes */
    enum dtype param_type;  /* of the parameter, wherever it lies    */
    const void *grad;       /* (n) of grad_type                      */
    void *master;           /* (n) of master_type, in place; the remainder of a split one */
    void *m, *v;            /* (n) of moment_type, in place          */
    uint8_t *m_exponent, *v_exponent; /* (n / MOMENT_BLOCK, rounded up) of codes, in place */
    void *param; /* (n) of param_type = master rounded to nearest, bf16 with ties away from zero, or
                    NULL when master is it; may be where grad is, when their types are equal.
                    Beside a split master in place, and apart from grad */
    uint64_t seed;
    uint32_t site; /* of the random bits: which tensor this is part of, below 2^28 */
    int64_t first; /* likewise: the place of element 0 in it; a multiple of 4      */
};

struct cast_args {
    int64_t n;
    enum dtype from, to;
    const void *src;
    void *dst; /* = rounded to nearest even */
};

struct op_table {
    const char *name;   /* "cpu-ref-f64", "cpu-f32", "cuda-bf16" */
    enum dtype compute; /* real: activations and weights         */
    enum dtype grad;    /* weight gradients                      */
    enum dtype stat;    /* statistics and losses                 */
    enum dtype master;  /* master weights and moments            */

    int (*embed_fwd)(struct stream *s, const struct embed_args *a);
    int (*embed_bwd)(struct stream *s, const struct embed_args *a);
    int (*norm_fwd)(struct stream *s, const struct norm_args *a);
    int (*norm_bwd)(struct stream *s, const struct norm_args *a);
    int (*linear_fwd)(struct stream *s, const struct linear_args *a);
    int (*linear_bwd_data)(struct stream *s, const struct linear_args *a);
    int (*linear_bwd_weight)(struct stream *s, const struct linear_args *a);
    int (*act_fwd)(struct stream *s, const struct act_args *a);
    int (*act_bwd)(struct stream *s, const struct act_args *a);
    int (*rope)(struct stream *s, const struct rope_args *a);
    int (*attn_fwd)(struct stream *s, const struct attn_args *a);
    int (*attn_bwd)(struct stream *s, const struct attn_args *a);
    int (*dropout_fwd)(struct stream *s, const struct dropout_args *a);
    int (*dropout_bwd)(struct stream *s, const struct dropout_args *a);
    int (*loss)(struct stream *s, const struct loss_args *a);
    int (*add)(struct stream *s, const struct add_args *a);
    int (*sumsq)(struct stream *s, const struct sumsq_args *a);
    int (*clip)(struct stream *s, const struct clip_args *a);
    int (*adamw)(struct stream *s, const struct adamw_args *a);
    int (*cast)(struct stream *s, const struct cast_args *a);
    int (*round8)(struct stream *s, const struct round8_args *a);

    /* Bytes of workspace that `op` needs for these args (a pointer to the op's args struct). */
    size_t (*workspace)(enum op op, const void *args);
};

#endif
