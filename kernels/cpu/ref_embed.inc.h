/* Reference ops, included once for each `real`: embedding, rotary positions, dropout, adds. */

static int embed_fwd(struct stream *s, const struct embed_args *a)
{
    const real *wte = a->wte, *wpe = a->wpe;
    real *out = a->out;

    for (int64_t n = 0; n < a->N; n++)
        for (int64_t c = 0; c < a->C; c++) {
            double x = (double)wte[a->tokens[n] * a->C + c] * (double)a->scale;
            if (wpe)
                x += (double)wpe[(a->positions[n] + a->wpe_offset) * a->C + c];
            out[n * a->C + c] = (real)x;
        }
    return 0;
}

static int embed_bwd(struct stream *s, const struct embed_args *a)
{
    const real *dout = a->dout;
    real *dwte = a->dwte, *dwpe = a->dwpe;

    for (int64_t n = 0; n < a->N; n++)
        for (int64_t c = 0; c < a->C; c++) {
            real d = dout[n * a->C + c];
            if (dwte)
                dwte[a->tokens[n] * a->C + c] += d * (real)a->scale;
            if (dwpe)
                dwpe[(a->positions[n] + a->wpe_offset) * a->C + c] += d;
        }
    return 0;
}

static void rope_pair(real *x, int64_t i, int64_t j, double c, double sn)
{
    double xi = (double)x[i], xj = (double)x[j];
    x[i] = (real)(xi * c - xj * sn);
    x[j] = (real)(xi * sn + xj * c);
}

static int rope(struct stream *s, const struct rope_args *a)
{
    int64_t half = a->rope_dim / 2, ldx = ld_or(a->ldx, a->heads * a->head_dim);

    for (int64_t n = 0; n < a->N; n++)
        for (int64_t h = 0; h < a->heads; h++) {
            real *x = (real *)a->x + n * ldx + h * a->head_dim;
            for (int64_t i = 0; i < half; i++) {
                double c = (double)a->cos_table[a->positions[n] * half + i];
                double sn = (double)a->sin_table[a->positions[n] * half + i];
                if (a->inverse)
                    sn = -sn;
                if (a->style == ROPE_HALF)
                    rope_pair(x, i, i + half, c, sn);
                else
                    rope_pair(x, 2 * i, 2 * i + 1, c, sn);
            }
        }
    return 0;
}

static int dropout_fwd(struct stream *s, const struct dropout_args *a)
{
    const real *x = a->x, *residual = a->residual;
    real *y = a->y;

    for (int64_t i = 0; i < a->n; i++) {
        double v = (double)x[i] * ref_dropout(&a->dropout, i);
        y[i] = (real)(residual ? (double)residual[i] + v : v);
    }
    return 0;
}

static int dropout_bwd(struct stream *s, const struct dropout_args *a)
{
    const real *dy = a->dy;
    real *dx = a->dx;

    for (int64_t i = 0; i < a->n; i++)
        dx[i] = (real)((double)dy[i] * ref_dropout(&a->dropout, i));
    return 0;
}

static int add(struct stream *s, const struct add_args *a)
{
    const real *x = a->x;
    real *y = a->y;

    for (int64_t i = 0; i < a->n; i++)
        y[i] += x[i];
    return 0;
}
