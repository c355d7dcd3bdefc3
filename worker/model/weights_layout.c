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

/* Between elements of a transpose and their places in the matrix, one way or the other. */
static void transpose(char *matrix, int64_t rows, int64_t cols, int64_t first, int64_t n,
                      char *elements, size_t size, bool scatter)
{
    int64_t row = first % rows, col = first / rows;

    for (int64_t i = 0; i < n; i++) {
        char *place = matrix + (size_t)(row * cols + col) * size;
        char *element = elements + (size_t)i * size;

        if (scatter)
            memcpy(place, element, size);
        else
            memcpy(element, place, size);
        if (++row == rows) {
            row = 0;
            col++;
        }
    }
}

void weights_scatter(void *matrix, int64_t rows, int64_t cols, int64_t first, int64_t n,
                     const void *elements, size_t element_bytes)
{
    transpose(matrix, rows, cols, first, n, (char *)elements, element_bytes, true);
}

void weights_gather(const void *matrix, int64_t rows, int64_t cols, int64_t first, int64_t n,
                    void *elements, size_t element_bytes)
{
    transpose((char *)matrix, rows, cols, first, n, elements, element_bytes, false);
}
