#include <string.h>

#include "worker/plan/plan.h"

int plan_fill_report(const struct plan *p, struct plan_report *report, struct err *err)
{
    struct plan_simulation sim;
    int rc = 0;

    TRY(plan_simulate(p, LIST_TRAIN, &sim, err));
    for (int t = 0; t < TIER_COUNT; t++) {
        report->memory[t] = sim.memory[t];
        /* Evaluation and sampling use the same addresses; what only they need is claimed too. */
        report->memory[t].by_purpose[PURPOSE_BUFFERS] += (int64_t)p->claim[t] - sim.memory[t].total;
        report->memory[t].total = (int64_t)p->claim[t];
    }
    memcpy(report->link_bytes, sim.link_bytes, sizeof report->link_bytes);
    report->step_seconds = sim.seconds;
    report->step_seconds_bound = sim.bound;
    report->step_seconds_clipped = sim.seconds_clipped;
    report->step_seconds_clipped_bound = sim.bound_clipped;
    report->measured = p->in.profile != NULL;
    report->instructions = p->lists[LIST_TRAIN].n;
    report->fits = true;
out:
    return rc;
}

static void print_instr(const struct plan *p, enum plan_list list, int64_t n, struct buf *out)
{
    const struct instr *i = &p->lists[list].items[n];
    buf_printf(out, "%5lld  %-8s %-8s", (long long)n, queue_name(i->queue), instr_op_name(i->op));
    if (i->block >= 0)
        buf_printf(out, " block %d", i->block);
    if (i->micro >= 0)
        buf_printf(out, " micro-batch %d", i->micro);
    if (i->chunk >= 0)
        buf_printf(out, " chunk %d %s", i->chunk, payload_name(i->payload));
    for (int w = 0; w < QUEUE_COUNT; w++) {
        if (i->wait[w] >= 0)
            buf_printf(out, " after %d", i->wait[w]);
        if (i->wait_prev[w] >= 0)
            buf_printf(out, " after %d of the pass before", i->wait_prev[w]);
    }
    buf_add_char(out, '\n');
}

void plan_print(const struct plan *p, enum plan_list list, struct buf *out)
{
    buf_printf(out, "list %s: %lld instructions, %lld blocks, %lld chunks, %lld places\n",
               plan_list_name(list), (long long)p->lists[list].n, (long long)p->in.model->n_blocks,
               (long long)p->chunks.n_chunks, (long long)p->n_places);
    for (int t = 0; t < TIER_COUNT; t++)
        buf_printf(out, "claim %-4s %12zu bytes\n", plan_tier_name(t), p->claim[t]);
    for (int64_t n = 0; n < p->lists[list].n; n++)
        print_instr(p, list, n, out);
}
