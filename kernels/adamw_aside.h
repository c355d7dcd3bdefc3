/*
 * AdamW on the CPU whose new master and moments go to other places than the old ones, which stay:
 * for updates that may have to be done again. Host memory moves the same bytes as for an update in
 * place, since what is written goes past the caches, which would read it first.
 */
#ifndef CASTOR_KERNELS_ADAMW_ASIDE_H
#define CASTOR_KERNELS_ADAMW_ASIDE_H

#include <stdbool.h>

#include "kernels/op_table.h"

/* Gradient and parameter in bfloat16, the master whole in float or split, moments in float? Other
 * updates are done in place on a copy. */
bool adamw_goes_aside(enum dtype grad, enum dtype param, enum dtype master, enum dtype moment);
/* The bits that op_table.adamw would give, in the calling thread; a clip that is not finite is the
 * caller's to see. master, m and v are aligned as the old ones are, all of them to 16 bytes where
 * an array begins and where decay ends. `kept`, likewise: what the parameters were, of a split
 * master; else NULL. */
void adamw_aside(const struct adamw_args *a, void *master, void *m, void *v, void *kept);

#endif
