/* The order of rows. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "worker/text/rows.h"

Test(rows, permute_is_a_permutation_and_a_mixed_one)
{
    for (int64_t n = 1; n < 3000; n = n < 70 ? n + 1 : n * 3 / 2) {
        char *seen = calloc((size_t)n, 1);
        int64_t fixed = 0, next = 0, last = -2;
        for (int64_t i = 0; i < n; i++) {
            int64_t p = rows_permute(i, n, 42, 1);
            cr_assert(p >= 0 && p < n && !seen[p], "n %d, index %d", (int)n, (int)i);
            seen[p] = 1;
            fixed += p == i;
            next += p == last + 1;
            last = p;
        }
        if (n > 100) { /* one of each is expected */
            cr_expect_lt(fixed, 8, "n %d", (int)n);
            cr_expect_lt(next, 8, "n %d", (int)n);
        }
        free(seen);
    }
}

/* Each place is taken about equally often by each row, over the epochs. */
Test(rows, permute_is_fair)
{
    enum { N = 10, EPOCHS = 10000 };
    int count[N][N] = {0};

    for (int64_t epoch = 0; epoch < EPOCHS; epoch++)
        for (int64_t i = 0; i < N; i++)
            count[i][rows_permute(i, N, 9, epoch)]++;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) /* sigma is 30 */
            cr_expect(abs(count[i][j] - EPOCHS / N) < 150, "row %d at %d: %d", j, i, count[i][j]);
}
