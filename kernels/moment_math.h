/*
 * AdamW's moments in 8 bits, the same on every device. Blocks of MOMENT_BLOCK elements share an
 * exponent, as block-wise optimizer states do (Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit
 * optimizers via block-wise quantization", ICLR 2022, section 2), so that a large value spoils no
 * more than its block. Where they look a dynamic code up in a table, ours is a small float whose
 * exponent counts down from the block's: first moments have a sign, 4 bits of exponent and 3 of
 * mantissa, second ones 5 and 3. Bit operations make it, and a block's largest value is all that an
 * update must know before it writes, so one pass over memory does.
 *
 * Rounding is stochastic, as adamw_math.h has it: a second moment moves by a thousandth a step,
 * which rounding to nearest would lose. Below the smallest exponent the code is linear, down to 0
 * for first moments. A second moment above 0 stays above 0: what it divides would explode.
 */
#ifndef CASTOR_KERNELS_MOMENT_MATH_H
#define CASTOR_KERNELS_MOMENT_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/rng.h" /* CASTOR_HD */

enum {
    MOMENT_BLOCK = 128,
    MOMENT_M_BINADES = 15, /* of normal codes, the block's own the highest */
    MOMENT_V_BINADES = 31,
    MOMENT_LEAST = 40, /* the least exponent: all codes are normal floats above it */
};

/* A block's exponent, biased as a float's: of the binade that holds what its largest magnitude
 * (bits) may round to. A block whose exponent is 0 has never been written; its codes are 0. */
CASTOR_HD static inline uint32_t moment_exponent(uint32_t largest)
{
    uint32_t e = (largest + (1u << 20)) >> 23;
    e = e < MOMENT_LEAST ? (uint32_t)MOMENT_LEAST : e;
    return e > 255 ? 255u : e;
}

/* The bits of the smallest normal value that codes of a block have. */
CASTOR_HD static inline uint32_t moment_low(uint32_t exponent, uint32_t binades)
{
    uint32_t e = exponent < MOMENT_LEAST ? (uint32_t)MOMENT_LEAST : exponent;
    return (e - (binades - 1)) << 23;
}

CASTOR_HD static inline float moment_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

CASTOR_HD static inline uint32_t moment_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* A magnitude as a code, in the upper 12 bits; of `random` the 20 upper bits. What lies below `low`
 * moves half of the way up to it, which is a linear scale over the binade below; what does not
 * stays, for that would be down. */
CASTOR_HD static inline uint32_t moment_encode(uint32_t magnitude, uint32_t low, uint32_t random)
{
    uint32_t least = low - (1u << 23); /* low / 2 */
    uint32_t half = moment_bits(fmaf(0.5f, moment_float(magnitude), moment_float(least)));
    return (magnitude > half ? magnitude : half) - least + (random >> 12);
}

/* The way back, of a code in the bits from the 20th on, the others 0. */
CASTOR_HD static inline float moment_decode(uint32_t code, uint32_t low)
{
    uint32_t bits = low - (1u << 23) + code;
    uint32_t twice = moment_bits(fmaf(2.0f, moment_float(bits), -moment_float(low)));
    return moment_float(bits < twice ? bits : twice);
}

/* Codes are 8 bits of a word, the lower ones where nothing else is said, so that vectors of words
 * need not be narrowed between steps. */
CASTOR_HD static inline uint32_t moment_m_code(float m, uint32_t low, uint32_t random)
{
    uint32_t bits = moment_bits(m), code = moment_encode(bits & 0x7fffffffu, low, random) >> 20;
    return (code > 127 ? 127u : code) | (bits >> 24 & 0x80u);
}

/* `code` in the upper bits, whatever the others are. */
CASTOR_HD static inline float moment_m_upper(uint32_t code, uint32_t low)
{
    uint32_t bits = moment_bits(moment_decode(code >> 4 & 0x07f00000u, low));
    return moment_float(bits | (code & 0x80000000u));
}

CASTOR_HD static inline float moment_m(uint32_t code, uint32_t low)
{
    return moment_m_upper(code << 24, low);
}

/* v is 0 or a normal float, not negative. */
CASTOR_HD static inline uint32_t moment_v_code(float v, uint32_t low, uint32_t random)
{
    uint32_t magnitude = moment_bits(v) & 0x7fffffffu, code = moment_encode(magnitude, low, random);
    uint32_t least = magnitude < 1u << 20 ? magnitude : 1u << 20; /* code 1 where v is not 0 */
    code = (code > least ? code : least) >> 20;
    return code > 255 ? 255u : code;
}

CASTOR_HD static inline float moment_v(uint32_t code, uint32_t low)
{
    return moment_decode(code << 20, low);
}

/* Random bits: of a block one draw, which gives both moments a start and a step, so that element i
 * of the block has start + i step. So each number is uniform, and every two of a block are
 * independent of one another (Dietzfelbinger, "Universal hashing and k-wise independent random
 * variables via integer arithmetic without primes", STACS 1996, theorem 3: 7 bits of i and 20 bits
 * of the result need 26 bits of arithmetic). */
struct moment_random {
    uint32_t m, m_step, v, v_step;
};

/* `block`: of the tensor that the stream is of. */
CASTOR_HD static inline struct moment_random moment_draw(uint64_t seed, uint32_t step,
                                                         uint32_t site, uint64_t block)
{
    struct rng_stream s = {seed, step, site, RNG_USE_MOMENT};
    struct rng_block b = rng_draw4(s, block);
    struct moment_random r = {b.v[0], b.v[1], b.v[2], b.v[3]};
    return r;
}

#endif
