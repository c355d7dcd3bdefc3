/* A Parquet file: every column that can be read, to the last row. */
#include <jansson.h>
#include <stdlib.h>

#include "tests/fuzz/fuzz.h"
#include "worker/text/parquet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct parquet *p = NULL;
    char why[200];
    bool got = true;

    if (parquet_open(fuzz_file("data.parquet", data, n), &p, NULL) != 0)
        return 0;
    for (int i = 0; i < parquet_columns(p); i++)
        (void)parquet_select(p, i, NULL);
    for (int64_t row_number = 0;; row_number++) {
        json_t *row = NULL;

        if (parquet_next(p, &got, &row, why, sizeof(why), NULL) != 0)
            break;
        if (got && (row_number >= parquet_rows(p) || (!row && !*why)))
            abort();
        if (row) {
            char *line = json_dumps(row, 0); /* text that is no UTF-8 would not come out */
            if (!line)
                abort();
            free(line);
        }
        json_decref(row);
        if (!got)
            break;
    }
    parquet_close(p);
    return 0;
}
