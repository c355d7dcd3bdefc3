/* castor-worker --profile: a few steps of a job, one of them watched op by op. */
#include <stdio.h>
#include <stdlib.h>

#include "core/clock.h"
#include "worker/train/run.h"
#include "worker/train/step_profile.h"

enum { WARM_UP = 4, TIMED = 7 };

static int finish(struct run *r, int64_t step, struct err *err)
{
    struct step_result result;
    return executor_collect(r->executor, (int)(step % STEP_SLOTS), &result, err);
}

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Steps follow one another as in training, two in flight. The median time of one. */
static int time_steps(struct run *r, int64_t *step, double *seconds, struct err *err)
{
    double at[TIMED + 1], took[TIMED];
    struct run_step given;
    int rc = 0;

    for (int k = 0; k < WARM_UP + TIMED + 1; k++) {
        TRY(run_queue_step(r, ++*step, &given, err));
        if (k > 0)
            TRY(finish(r, *step - 1, err));
        if (k >= WARM_UP)
            at[k - WARM_UP] = clock_monotonic();
    }
    TRY(finish(r, *step, err));
    for (int k = 0; k < TIMED; k++)
        took[k] = at[k + 1] - at[k];
    qsort(took, TIMED, sizeof took[0], by_size);
    *seconds = took[TIMED / 2];
out:
    return rc;
}

int run_profile(struct run *r, struct err *err)
{
    struct step_profile *p = NULL;
    struct buf table = {0};
    struct run_step given;
    double seconds;
    int64_t step = 0;
    int rc = 0;

    if (r->session.total_steps < WARM_UP + TIMED + 2) {
        rc = err_set(err, ERR_INVALID,
                     "a profile takes %d steps and the job has %lld; give it more data",
                     WARM_UP + TIMED + 2, (long long)r->session.total_steps);
        goto out;
    }
    TRY(time_steps(r, &step, &seconds, err));
    TRY(run_save_gemm_plans(r, err));
    TRY(step_profile_create(r->device, r->ops, &p, err));
    executor_watch(r->executor, step_profile_watch(p));
    TRY(run_queue_step(r, ++step, &given, err));
    executor_watch(r->executor, NULL);
    TRY(finish(r, step, err));
    TRY(step_profile_print(p, seconds, &table, err));
    printf("%s", buf_str(&table));
    r->end = RUN_CANCELLED;
out:
    buf_fini(&table);
    step_profile_destroy(p);
    return rc;
}
