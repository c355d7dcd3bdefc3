/*
 * The trail: which instruction of the compute stream the device has come to. Faults of a kernel are
 * reported at a later call, of whatever instruction that is; so behind each instruction the stream
 * itself writes a number into pinned memory, which outlives the fault, and the first number that is
 * missing belongs to the one that failed.
 */
#include <stdlib.h>

#include "core/alloc.h"
#include "worker/train/executor_impl.h"

int executor_trail_init(struct executor *e, struct err *err)
{
    int64_t longest = 0;
    for (int list = 0; list < LIST_COUNT; list++)
        if (e->plan->lists[list].n > longest)
            longest = e->plan->lists[list].n;
    e->trail.cap = 2 * STEP_SLOTS * (longest + 1); /* more than can be under way */
    e->trail.prints = xcalloc((size_t)e->trail.cap, sizeof *e->trail.prints);
    return device_word_create(e->device, &e->trail.word, err);
}

void executor_trail_fini(struct executor *e)
{
    device_word_destroy(e->device, e->trail.word);
    free(e->trail.prints);
}

int executor_trail_mark(struct executor *e, enum plan_list list, const struct instr *i,
                        struct stream *s, struct err *err)
{
    struct trail *t = &e->trail;
    t->prints[t->issued % (uint32_t)t->cap] = (struct footprint){e->step, list, i};
    return device_word_stream_set(e->device, t->word, ++t->issued, s, err);
}

int executor_trail_explain(const struct executor *e, int rc, struct err *err)
{
    const struct trail *t = &e->trail;
    if (rc != ERR_DEVICE || !t->word)
        return rc;
    uint32_t done = device_word_value(t->word);
    if (t->issued - done == 0 || t->issued - done > (uint32_t)t->cap)
        return rc;
    const struct footprint *f = &t->prints[done % (uint32_t)t->cap];
    return err_wrap(err, rc, "the device was at step %lld, %s %s block %d chunk %d micro-batch %d",
                    (long long)f->step, plan_list_name(f->list), instr_op_name(f->instr->op),
                    f->instr->block, f->instr->chunk, f->instr->micro);
}
