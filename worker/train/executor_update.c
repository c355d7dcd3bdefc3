/* From gradients to new weights: reduce, norm, update. */
#include <stddef.h>

#include "kernels/master.h"
#include "worker/train/executor_impl.h"

int executor_run_reduce(struct executor *e, const struct instr *i, struct stream *s,
                        struct err *err)
{
    const struct chunk *c = &e->plan->chunks.chunks[i->chunk];
    const struct plan_chunk *pc = &e->plan->chunk[i->chunk];
    enum dtype type = chunk_grad_type(c, e->plan->types);
    char *sum = executor_at(e, i->src);
    int rc = 0;

    for (int64_t u = 1; u < c->uses; u++) {
        struct add_args a = {.n = c->n, .x = executor_at(e, pc->grad[u]), .y = sum};
        executor_begin(e, OP_ADD, &a, s);
        TRY(executor_end(e->ops->add(s, &a), e, i, s, err));
    }
    TRY(comm_all_reduce(e->config.data_comm, s, sum, c->n, type, err));
    struct sumsq_args a = {.n = c->n,
                           .narrow = c->narrow_grad,
                           .x = sum,
                           .partial =
                               (double *)executor_at(e, e->plan->io.partials) + pc->first_partial};
    executor_begin(e, OP_SUMSQ, &a, s);
    TRY(executor_end(e->ops->sumsq(s, &a), e, i, s, err));
    if (i->dst == NO_PLACE || i->dst == i->src)
        goto out;
    struct cast_args cast = {
        .n = c->n, .from = type, .to = e->ops->compute, .src = sum, .dst = executor_at(e, i->dst)};
    executor_begin(e, OP_CAST, &cast, s);
    TRY(executor_end(e->ops->cast(s, &cast), e, i, s, err));
out:
    return rc;
}

int executor_run_norm(struct executor *e, const struct instr *i, struct stream *s, struct err *err)
{
    struct clip_args a = {.n = e->plan->n_partials,
                          .partial = executor_at(e, e->plan->io.partials),
                          .max_norm = (float)e->config.max_grad_norm,
                          .loss_scale = e->scales_losses ? &executor_scalars(e)->loss_scale : NULL,
                          .result = &executor_scalars(e)->clip};
    executor_begin(e, OP_CLIP, &a, s);
    return executor_end(e->ops->clip(s, &a), e, i, s, err);
}

/* Where the parts of a slice's state lie; NULL for those that there are not. */
static void state_parts(char *state, const struct plan_slice *s, struct chunk_types types,
                        char *at[PART_COUNT])
{
    struct chunk_part parts[PART_COUNT];
    int n = chunk_state_parts(types, parts);

    for (int k = 0; k < PART_COUNT; k++)
        at[k] = NULL;
    for (int k = 0; k < n; k++) {
        at[parts[k].part] = state;
        state += chunk_part_bytes(&parts[k], s->n);
    }
}

/* AdamW on a slice, whose state is in a place: the part of every array that it is about. */
static struct adamw_args slice_args(struct executor *e, const struct instr *i, int32_t state,
                                    enum dtype grad_type)
{
    const struct chunk *c = &e->plan->chunks.chunks[i->chunk];
    const struct plan_slice *s = &e->plan->chunk[i->chunk].slices[i->slice];
    const struct chunk_types *types = &e->plan->types;
    size_t first = i->piece ? 0 : (size_t)s->first; /* in the places of gradient and parameter */
    char *param = (char *)executor_at(e, i->dst) + first * dtype_size(types->compute);
    char *at[PART_COUNT];
    int64_t decay = c->n_decay - s->first;

    state_parts(executor_at(e, state), s, *types, at);
    return (struct adamw_args){.n = s->n,
                               .n_decay = decay < 0      ? 0
                                          : decay < s->n ? decay
                                                         : s->n,
                               .beta1 = (float)e->config.beta1,
                               .beta2 = (float)e->config.beta2,
                               .eps = (float)e->config.epsilon,
                               .weight_decay = (float)e->config.weight_decay,
                               .grad_type = grad_type,
                               .master_type = types->master,
                               .moment_type = types->moment,
                               .param_type = types->compute,
                               .grad =
                                   (char *)executor_at(e, i->src) + first * dtype_size(grad_type),
                               .master = at[PART_MASTER] ? at[PART_MASTER] : param,
                               .m = at[PART_M],
                               .v = at[PART_V],
                               .m_exponent = (uint8_t *)at[PART_M_EXPONENT],
                               .v_exponent = (uint8_t *)at[PART_V_EXPONENT],
                               .param = at[PART_MASTER] ? param : NULL,
                               .seed = e->config.seed,
                               .site = (uint32_t)i->chunk,
                               .first = s->first};
}

int executor_run_update(struct executor *e, const struct instr *i, struct stream *s,
                        struct err *err)
{
    struct step_scalars *scalars = executor_scalars(e);
    enum dtype type = chunk_grad_type(&e->plan->chunks.chunks[i->chunk], e->plan->types);
    struct adamw_args a = slice_args(e, i, i->state, type);
    a.step = &scalars->adamw;
    a.clip = e->plan->in.clip ? &scalars->clip : &scalars->unclipped;
    executor_begin(e, OP_ADAMW, &a, s);
    return executor_end(e->ops->adamw(s, &a), e, i, s, err);
}

/* An update that is skipped leaves the parameters as they were: where the gradient has taken their
 * place they are made of the master again. */
static void restore_parameters(const struct adamw_args *a)
{
    master_round(a->param_type, a->param, a->master, a->n);
}

/* The update of a slice whose new state goes to its other place; the old one stays, and so do the
 * parameters that it needs to be done again, behind the second place. */
static int update_aside(struct executor *e, const struct host_job *job, struct adamw_args *a)
{
    const struct instr *i = job->instr;
    char *places[2] = {executor_at(e, i->state), executor_at(e, i->shadow)};
    const struct plan_slice *s = &e->plan->chunk[i->chunk].slices[i->slice];
    size_t state = plan_slice_bytes(e->plan, s);
    char *kept = chunk_has_whole_master(e->plan->types) ? NULL : places[1] + state;
    void *param = a->param ? a->param : a->master;
    char *to[PART_COUNT];

    state_parts(places[!job->swapped], s, e->plan->types, to);
    if (kept && i->op == INSTR_CONFIRM)
        update_pool_copy(e->updates, param, kept, (size_t)s->n * dtype_size(a->param_type));
    if (a->clip->finite)
        return update_pool_adamw_aside(e->updates, a, to, kept);
    update_pool_copy(e->updates, places[!job->swapped], places[job->swapped], state);
    if (!kept)
        restore_parameters(a);
    return 0;
}

/* On the cpu queue's thread: the gradient has travelled rounded; the coefficient lies where the
 * plan sent the step's scalars, but for a speculative update, which does not know it yet. */
int executor_host_update(void *ud, const struct host_job *job, struct err *err)
{
    static const struct clip_result unclipped = {.coef = 1.0f, .finite = 1};
    struct executor *e = ud;
    const struct instr *i = job->instr;
    bool two = i->shadow != NO_PLACE, speculative = two && i->op == INSTR_UPDATE;
    int32_t state = two && job->swapped ? i->shadow : i->state;
    struct adamw_args a = slice_args(e, i, state, e->ops->compute);
    int rc = 0;

    a.step = &job->adamw;
    a.clip = &unclipped;
    if (e->plan->in.clip && !speculative)
        a.clip = &((const struct step_scalars *)executor_at(e, e->plan->io.clip))->clip;
    bool holds = a.clip->finite && a.clip->coef == 1.0f; /* as of a clip that does nothing */
    if (speculative ? !job->speculates : two && job->speculates && holds) {
        /* its CONFIRM does it; or it has been done */
    } else if (two && job->speculates) {
        rc = update_aside(e, job, &a);
    } else if (a.grad == a.param && !a.clip->finite) {
        restore_parameters(&a);
    } else {
        rc = update_pool_adamw(e->updates, &a);
    }
    return executor_launched(rc, e, i, err);
}
