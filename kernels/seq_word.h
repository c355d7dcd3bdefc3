/* A sequence word as device implementations see it; kernels/device.h says what it is for. */
#ifndef CASTOR_KERNELS_SEQ_WORD_H
#define CASTOR_KERNELS_SEQ_WORD_H

#include "kernels/device.h"

struct seq_word {
    uint32_t *value;   /* pinned: the device reads it at the same address */
    uint32_t sleepers; /* host threads that a change must wake            */
};

#endif
