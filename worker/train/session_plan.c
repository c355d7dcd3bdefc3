/*
 * The plan of a session, and with it how many rows pass through the model at a time where the job
 * leaves that open. More of them read the weights, and add to the gradients, less often; fewer keep
 * less for backward. Planning takes seconds for large models, so numbers of micro-batches are
 * halved or doubled as long as that is faster; where those first tried do not fit, all rows at once
 * are tried before more of them.
 */
#include "worker/train/session.h"

#include "core/units.h"

/* More rows at a time than this gain nothing. */
enum { MOST_MICRO_TOKENS = 65536 };

/* A change that gains less is not worth leaving the rows that any machine would start with. */
static const double worth = 0.99;

struct choice {
    struct session *s;
    const struct op_table *ops;
    const struct device_profile *profile;
    const struct session_memory *memory;
    struct plan *plan; /* the best so far, or NULL */
    double seconds;
    int64_t rows;
};

static int make_plan(const struct choice *c, struct plan **out, struct err *err)
{
    struct plan_input in;
    int rc = 0;

    TRY(session_plan_input(c->s, c->ops, c->profile, c->memory, &in, err));
    TRY(plan_build(&in, out, err));
out:
    return rc;
}

/* In so many micro-batches: is that the best so far? What does not fit is not. */
static bool try_parts(struct choice *c, int64_t parts)
{
    int64_t rows = (c->s->spec.hyper.batch_size.value + parts - 1) / parts;
    struct plan *plan = NULL;

    session_set_micro_batch(c->s, rows);
    if ((rows > 1 && rows * c->s->seq_length > MOST_MICRO_TOKENS) || make_plan(c, &plan, NULL) != 0)
        return false;
    double seconds = plan_seconds(plan);
    if (c->plan && !(seconds < c->seconds * worth)) {
        plan_destroy(plan);
        return false;
    }
    plan_destroy(c->plan);
    c->plan = plan;
    c->seconds = seconds;
    c->rows = rows;
    return true;
}

static void choose(struct choice *c)
{
    int64_t batch = c->s->spec.hyper.batch_size.value, first = c->s->micro_batches;
    bool gpu = c->s->device == DEVICE_CUDA, fewer = false, had, better;

    if (try_parts(c, first) && !gpu)
        return;
    for (int64_t parts = first / 2; c->plan && parts >= 1 && try_parts(c, parts); parts /= 2)
        fewer = true;
    if (!c->plan && first > 1) /* one alone has narrow gradients, which may be what fits */
        try_parts(c, 1);
    for (int64_t parts = first; !fewer && parts < batch;) {
        parts = 2 * parts < batch ? 2 * parts : batch;
        had = c->plan != NULL;
        better = try_parts(c, parts);
        if (had ? !better : better && !gpu)
            break;
    }
}

int session_plan(struct session *s, const struct op_table *ops,
                 const struct device_profile *profile, const struct session_memory *memory,
                 struct plan **out, struct err *err)
{
    struct choice c = {.s = s, .ops = ops, .profile = profile, .memory = memory};
    int rc = 0;

    if (s->micro_batch_open)
        choose(&c);
    if (c.plan)
        session_set_micro_batch(s, c.rows);
    else
        TRY(make_plan(&c, &c.plan, err));
    *out = c.plan;
out:
    return rc;
}

void session_tell_fit(struct session *s, const struct op_table *ops,
                      const struct device_profile *profile, const struct session_memory *now,
                      struct err *err)
{
    struct err was = *err, why = {0};
    struct plan *p = NULL;
    int rc = session_plan(s, ops, profile, now, &p, &why);

    err_clear(err);
    if (rc == 0)
        err_set(err, was.code,
                "%s. In what is left now the job fits, with %.1f MiB of device memory and %.1f MiB "
                "of host memory: start it again",
                was.msg, mib((double)p->claim[TIER_GPU]), mib((double)p->claim[TIER_HOST]));
    else
        err_set(err, was.code, "%s. In what is left now %s", was.msg, why.msg);
    err_set_reason(err, (int)was.code, "insufficient_memory");
    plan_destroy(p);
}

bool session_fits_alone(struct session *s, const struct op_table *ops,
                        const struct device_profile *profile, size_t device)
{
    struct session_memory whole = {.device = device};
    struct plan *p = NULL;

    host_memory_look("/", HOST_WHOLE, &whole.host);
    bool fits = session_plan(s, ops, profile, &whole, &p, NULL) == 0;
    plan_destroy(p);
    return fits;
}
