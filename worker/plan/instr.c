#include "worker/plan/instr.h"

#include <assert.h>
#include <stdlib.h>

#include "core/alloc.h"

const char *instr_op_name(enum instr_op op)
{
    static const char *const names[INSTR_OP_COUNT] = {
        "FETCH", "EVICT", "STAGE",  "UNSTAGE", "GATHER", "DROP", "FORWARD",  "BACKWARD", "REDUCE",
        "SPILL", "NORM",  "UPDATE", "CONFIRM", "SEND",   "RECV", "SAVE_ACT", "LOAD_ACT"};
    assert(op < INSTR_OP_COUNT);
    return names[op];
}

const char *queue_name(enum queue q)
{
    static const char *const names[QUEUE_COUNT] = {"compute", "h2d",  "d2h",  "comm",
                                                   "cpu",     "read", "write"};
    assert(q < QUEUE_COUNT);
    return names[q];
}

struct instr instr_make(enum instr_op op, enum queue queue)
{
    struct instr i = {.op = op,
                      .queue = queue,
                      .block = -1,
                      .chunk = -1,
                      .micro = -1,
                      .slice = -1,
                      .src = NO_PLACE,
                      .dst = NO_PLACE,
                      .state = NO_PLACE,
                      .shadow = NO_PLACE,
                      .operands = -1};
    for (int w = 0; w < QUEUE_COUNT; w++)
        i.wait[w] = i.wait_prev[w] = -1;
    return i;
}

int64_t instr_list_add(struct instr_list *l, struct instr i)
{
    if (l->n == l->cap) {
        l->cap = l->cap ? 2 * l->cap : 64;
        l->items = xrealloc(l->items, (size_t)l->cap * sizeof *l->items);
    }
    l->items[l->n] = i;
    return l->n++;
}

void instr_list_fini(struct instr_list *l)
{
    free(l->items);
    *l = (struct instr_list){0};
}
