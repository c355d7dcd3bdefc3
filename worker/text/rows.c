#include "worker/text/rows.h"

#include <assert.h>
#include <string.h>

#include "core/rng.h"

enum {
    FEISTEL_ROUNDS = 8,
    /* Where the rounds' numbers of each use begin. */
    SITE_ORDER = 0,
    SITE_PACKING = FEISTEL_ROUNDS,
};

static uint32_t feistel_round(struct rng_stream stream, uint32_t round, uint32_t half)
{
    stream.site += round;
    return rng_draw(stream, half);
}

static uint64_t feistel(uint64_t x, int half_bits, struct rng_stream stream)
{
    uint32_t mask = half_bits == 32 ? UINT32_MAX : (UINT32_C(1) << half_bits) - 1;
    uint32_t left = (uint32_t)(x >> half_bits) & mask, right = (uint32_t)x & mask;

    for (uint32_t round = 0; round < FEISTEL_ROUNDS; round++) {
        uint32_t next = left ^ (feistel_round(stream, round, right) & mask);
        left = right;
        right = next;
    }
    return (uint64_t)left << half_bits | right;
}

static int64_t permute(int64_t index, int64_t n, struct rng_stream stream)
{
    uint64_t x = (uint64_t)index;
    int half_bits = 1;

    assert(index >= 0 && index < n);
    while ((UINT64_C(1) << (2 * half_bits)) < (uint64_t)n)
        half_bits++;
    do
        x = feistel(x, half_bits, stream);
    while (x >= (uint64_t)n);
    return (int64_t)x;
}

int64_t rows_permute(int64_t index, int64_t n, uint64_t seed, int64_t epoch)
{
    struct rng_stream stream = {
        .seed = seed, .step = (uint32_t)epoch, .site = SITE_ORDER, .use = RNG_USE_SHUFFLE};

    return permute(index, n, stream);
}

/* The packing order: the same kind of permutation, keyed apart from all epochs. */
static int64_t packing_order(int64_t index, int64_t n, uint64_t seed)
{
    struct rng_stream stream = {.seed = seed, .site = SITE_PACKING, .use = RNG_USE_SHUFFLE};

    return permute(index, n, stream);
}

struct open_rows {
    int64_t row[ROWS_WINDOW], room[ROWS_WINDOW]; /* oldest first */
    int n;
};

static void close_row(struct open_rows *open, int i)
{
    open->n--;
    memmove(&open->row[i], &open->row[i + 1], (size_t)(open->n - i) * sizeof(open->row[0]));
    memmove(&open->room[i], &open->room[i + 1], (size_t)(open->n - i) * sizeof(open->room[0]));
}

/* The row that takes an example of `length` tokens. */
static int64_t place(struct open_rows *open, int64_t length, int64_t row_length, int64_t *n_rows)
{
    int i = 0;

    while (i < open->n && open->room[i] < length)
        i++;
    if (i == open->n) {
        if (open->n == ROWS_WINDOW)
            close_row(open, 0);
        i = open->n++;
        open->row[i] = (*n_rows)++;
        open->room[i] = row_length;
    }
    int64_t row = open->row[i];
    open->room[i] -= length;
    if (open->room[i] == 0)
        close_row(open, i);
    return row;
}

int rows_init(struct rows *rows, const char *dir, const int64_t *starts, int64_t examples,
              int64_t row_length, bool packing, uint64_t seed, struct err *err)
{
    struct open_rows open = {0};
    struct rows r = {0};
    struct spool row_of = {0}, order = {0};
    int rc = 0;

    TRY(spool_zeros(&r.first_file, dir, sizeof(int64_t), examples + 2, err));
    TRY(spool_zeros(&r.members_file, dir, sizeof(int64_t), examples + 1, err));
    TRY(spool_zeros(&row_of, dir, sizeof(int64_t), examples + 1, err));
    TRY(spool_zeros(&order, dir, sizeof(int64_t), examples + 1, err));
    int64_t *f = r.first_file.map, *m = r.members_file.map, *of = row_of.map, *nth = order.map;
    /* nth[i]: the i-th example in packing order, of[i]: its row; f[row + 2] counts, so that after
     * the running sum f[row + 1] is where the row begins, and after filling where it ends. */
    for (int64_t i = 0; i < examples; i++) {
        nth[i] = packing ? packing_order(i, examples, seed) : i;
        int64_t length = starts[nth[i] + 1] - starts[nth[i]];
        assert(length >= 1 && length <= row_length);
        of[i] = packing ? place(&open, length, row_length, &r.n) : r.n++;
        f[of[i] + 2]++;
    }
    for (int64_t row = 0; row <= examples; row++)
        f[row + 1] += f[row];
    for (int64_t i = 0; i < examples; i++)
        m[f[of[i] + 1]++] = nth[i];
    r.first = f;
    r.members = m;
    *rows = r;
    r = (struct rows){0};
out:
    rows_fini(&r);
    spool_fini(&row_of);
    spool_fini(&order);
    return rc;
}

void rows_fini(struct rows *rows)
{
    spool_fini(&rows->first_file);
    spool_fini(&rows->members_file);
    memset(rows, 0, sizeof(*rows));
}
