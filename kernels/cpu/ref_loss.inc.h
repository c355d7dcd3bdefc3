/* Reference ops, included once for each `real`: cross entropy with its gradient. */

static double loss_z(const struct loss_args *a, real logit)
{
    return ref_softcap((double)logit * (double)a->logit_scale, (double)a->softcap);
}

static void loss_row(const struct loss_args *a, int64_t n)
{
    real *logits = (real *)a->logits + n * ld_or(a->ldl, a->V);
    int64_t target = a->targets[n], best = 0;
    double max = -INFINITY, sum = 0;

    for (int64_t v = 0; v < a->V; v++) {
        max = fmax(max, loss_z(a, logits[v]));
        if (logits[v] > logits[best])
            best = v;
    }
    for (int64_t v = 0; v < a->V; v++)
        sum += exp(loss_z(a, logits[v]) - max);
    double lse = max + log(sum);
    ((real *)a->row_loss)[n] = target < 0 ? 0 : (real)(lse - loss_z(a, logits[target]));
    a->row_correct[n] = target >= 0 && best == target;
    if (!a->grad_scale)
        return;
    double scale = target < 0 ? 0 : (double)cpu_loss_factor(a) * (double)a->logit_scale;
    for (int64_t v = 0; v < a->V; v++) {
        double z = loss_z(a, logits[v]), p = exp(z - lse) - (v == target ? 1 : 0);
        logits[v] = target < 0 ? 0 : (real)(p * scale * ref_softcap_slope(z, (double)a->softcap));
    }
}

static int loss(struct stream *s, const struct loss_args *a)
{
    for (int64_t n = 0; n < a->N; n++)
        loss_row(a, n);
    return 0;
}
