#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "worker/model/weights_names.h"

int64_t weights_blocks(const struct decoder_config *c, enum file_layout layout)
{
    return layout == FILE_GROUPED_QKV ? c->heads + 2 * c->kv_heads : 1;
}

struct row_block weights_block(const struct decoder_config *c, enum file_layout layout,
                               int64_t rows, int64_t i)
{
    int64_t queries = c->heads / c->kv_heads, group, member, head;

    assert(layout != FILE_TRANSPOSED);
    if (layout == FILE_ROWS)
        return (struct row_block){.rows = rows};
    group = i / (queries + 2);
    member = i % (queries + 2);
    if (member < queries)
        head = group * queries + member;
    else
        head = c->heads + (member - queries) * c->kv_heads + group;
    return (struct row_block){
        .file_row = i * c->head_dim, .our_row = head * c->head_dim, .rows = c->head_dim};
}

struct transpose {
    char *matrix; /* (rows, cols) */
    char *elements;
    int64_t rows, cols;
    size_t size;
    bool scatter; /* elements into the matrix, else the other way */
};

static void move(const struct transpose *t, int64_t row, int64_t col, int64_t element)
{
    char *place = t->matrix + (size_t)(row * t->cols + col) * t->size;
    char *other = t->elements + (size_t)element * t->size;
    memcpy(t->scatter ? place : other, t->scatter ? other : place, t->size);
}

/* Whole columns [col, end), the first of them at `element`: a strip of 32 at a
 * time, whose lines the first cache level holds on both sides. Compiled for each size, so that an
 * element is one load and one store. */
static inline void move_strips(struct transpose t, int64_t col, int64_t end, int64_t element,
                               size_t size)
{
    enum { STRIP = 32 };
    size_t across = (size_t)t.cols * size, down = (size_t)t.rows * size;

    for (int64_t c0 = col; c0 < end; c0 += STRIP) {
        int64_t c1 = c0 + STRIP < end ? c0 + STRIP : end;
        for (int64_t r = 0; r < t.rows; r++) {
            char *place = t.matrix + (size_t)r * across + (size_t)c0 * size;
            char *other = t.elements + (size_t)(element + (c0 - col) * t.rows + r) * size;
            for (int64_t c = c0; c < c1; c++, place += size, other += down)
                memcpy(t.scatter ? place : other, t.scatter ? other : place, size);
        }
    }
}

static void move_columns(const struct transpose *t, int64_t col, int64_t end, int64_t element)
{
    if (t->size == 2)
        move_strips(*t, col, end, element, 2);
    else if (t->size == 4)
        move_strips(*t, col, end, element, 4);
    else
        move_strips(*t, col, end, element, t->size);
}

/* Elements [first, first + n) of the transpose: the rest of a column, whole ones, the start of one.
 */
static void transpose(const struct transpose *t, int64_t first, int64_t n)
{
    int64_t row = first % t->rows, col = first / t->rows, done = 0;

    for (; row > 0 && row < t->rows && done < n; row++)
        move(t, row, col, done++);
    col += first % t->rows > 0;
    int64_t whole = (n - done) / t->rows;
    move_columns(t, col, col + whole, done);
    done += whole * t->rows;
    for (row = 0; done < n; row++)
        move(t, row, col + whole, done++);
}

void weights_scatter(void *matrix, int64_t rows, int64_t cols, int64_t first, int64_t n,
                     const void *elements, size_t element_bytes)
{
    struct transpose t = {matrix, (char *)elements, rows, cols, element_bytes, true};
    transpose(&t, first, n);
}

void weights_gather(const void *matrix, int64_t rows, int64_t cols, int64_t first, int64_t n,
                    void *elements, size_t element_bytes)
{
    struct transpose t = {(char *)matrix, elements, rows, cols, element_bytes, false};
    transpose(&t, first, n);
}
