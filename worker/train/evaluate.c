#include <math.h>

#include "core/buf.h"
#include "worker/train/run.h"
#include "worker/train/sample.h"

int run_evaluate(struct run *r, struct err *err)
{
    const struct session *s = &r->session;
    struct step_result sum = {0};
    struct dataset_stats stats;
    int64_t targets = 0;
    int rc = 0;

    if (!s->validation) {
        r->state.eval_step = r->state.step;
        return 0;
    }
    TRY(run_phase(r, PHASE_EVALUATING, err));
    dataset_get_stats(s->validation, &stats);
    for (int64_t row = 0; row < stats.rows; row += s->micro_batch) {
        struct batch b;
        struct step_result one;
        executor_batch(r->executor, 0, 0, &b);
        TRY(dataset_fill(s->validation, 0, row, &b, err));
        targets += b.n_targets;
        TRY(executor_eval(r->executor, &one, err));
        sum.loss_sum += one.loss_sum;
        sum.correct += one.correct;
        if (*r->options->terminate) /* the host is going: an evaluation can be done again */
            return 0;
    }
    struct run_state *st = &r->state;
    double n = targets > 0 ? (double)targets : 1;
    st->valid_loss = sum.loss_sum / n;
    st->valid_accuracy = (double)sum.correct / n;
    double least = s->spec.optimization.early_stopping.min_delta;
    bool best = isfinite(st->valid_loss) &&
                (isnan(st->best_loss) || st->valid_loss < st->best_loss - least);
    if (best) {
        st->best_loss = st->valid_loss;
        st->best_step = st->step;
        st->without_gain = 0;
    } else {
        st->without_gain++;
    }
    st->eval_step = st->step;
    struct event e = {.type = EVENT_EVAL,
                      .eval = {.step = st->step,
                               .loss = st->valid_loss,
                               .accuracy = st->valid_accuracy,
                               .target_tokens = targets,
                               .full = true,
                               .best = best}};
    TRY(event_write(&r->events, &e, err));
out:
    return rc;
}

int run_sample(struct run *r, struct err *err)
{
    const struct job_spec *spec = &r->session.spec;
    struct buf text = {0};
    int rc = 0;

    if (spec->n_sample_prompts > 0)
        TRY(run_phase(r, PHASE_EVALUATING, err));
    for (int64_t k = 0; k < spec->n_sample_prompts && !*r->options->terminate; k++) {
        struct sample_request request = {.prompt = spec->sample_prompts[k],
                                         .prompt_index = k,
                                         .max_tokens = spec->sample_tokens,
                                         .seed = (uint64_t)spec->seed,
                                         .step = r->state.step};
        buf_clear(&text);
        TRY(sample_text(r->executor, r->plan, r->session.tokenizer, &request, &text, err));
        struct event e = {.type = EVENT_SAMPLE,
                          .sample = {.step = r->state.step,
                                     .prompt_index = k,
                                     .prompt = spec->sample_prompts[k],
                                     .completion = buf_str(&text)}};
        TRY(event_write(&r->events, &e, err));
    }
out:
    buf_fini(&text);
    return rc;
}
