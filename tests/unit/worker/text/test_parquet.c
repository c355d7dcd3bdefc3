/* Parquet files written by PyArrow (tests/golden/parquet_gen.py), and damaged ones. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/buf.h"
#include "core/fs.h"
#include "tests/unit/worker/text/scratch_dir.h"
#include "worker/text/parquet.h"

#define GOLDEN "tests/golden/parquet/"

/* All columns of all rows; NULL and the error where the file cannot be read. */
static json_t *read_all(const char *path, struct err *err)
{
    json_t *rows = json_array(), *row;
    struct parquet *p = NULL;
    char why[200];
    bool got = true;
    int rc = 0;

    TRY(parquet_open(path, &p, err));
    for (int i = 0; i < parquet_columns(p); i++)
        TRY(parquet_select(p, i, err));
    while (got) {
        row = NULL;
        TRY(parquet_next(p, &got, &row, why, sizeof(why), err));
        if (got)
            json_array_append_new(rows, row ? row : json_string(why));
    }
out:
    parquet_close(p);
    if (rc != 0) {
        cr_assert_neq(err->code, ERR_OK);
        json_decref(rows);
        return NULL;
    }
    return rows;
}

static json_t *read_golden(const char *name)
{
    json_t *rows = json_array();
    struct buf text = {0};
    struct err err = {0};
    char path[200];

    snprintf(path, sizeof(path), GOLDEN "%s.jsonl", name);
    cr_assert_eq(fs_read_file(path, 1 << 20, &text, &err), 0, "%s", err.msg);
    for (char *line = text.data; line && *line;) {
        char *end = strchr(line, '\n');
        json_t *row = json_loadb(line, (size_t)(end - line), 0, NULL);
        cr_assert_not_null(row, "%s", path);
        json_array_append_new(rows, row);
        line = end + 1;
    }
    buf_fini(&text);
    return rows;
}

static void compare(const char *name)
{
    char path[200];
    struct err err = {0};

    snprintf(path, sizeof(path), GOLDEN "%s.parquet", name);
    json_t *rows = read_all(path, &err), *golden = read_golden(name);
    cr_assert_not_null(rows, "%s: %s", name, err.msg);
    cr_expect_eq(json_array_size(rows), json_array_size(golden), "%s: %zu rows, not %zu", name,
                 json_array_size(rows), json_array_size(golden));
    for (size_t i = 0; i < json_array_size(golden); i++) {
        if (json_equal(json_array_get(rows, i), json_array_get(golden, i)))
            continue;
        char *a = json_dumps(json_array_get(rows, i), 0),
             *b = json_dumps(json_array_get(golden, i), 0);
        cr_assert_fail("%s, row %zu:\n%s\nis not\n%s", name, i + 1, a, b);
    }
    json_decref(rows);
    json_decref(golden);
}

Test(parquet, reads_what_pyarrow_wrote)
{
    DIR *dir = opendir(GOLDEN);
    int files = 0;

    cr_assert_not_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        char *dot = strstr(e->d_name, ".parquet");
        if (!dot)
            continue;
        *dot = '\0';
        compare(e->d_name);
        files++;
    }
    closedir(dir);
    cr_expect_geq(files, 30);
}

/* Whatever the bytes: an error or rows, soon. */
static void read_anything(struct scratch_dir *d, const char *bytes, size_t n)
{
    struct err err = {0};

    json_decref(read_all(scratch_dir_write(d, "f", bytes, n), &err));
}

Test(parquet, damaged_files_end_in_an_error_or_in_rows, .timeout = 600)
{
    static const char *const names[] = {"flat_snappy_v1", "chats_gzip_v2", "delta_v2",
                                        "pairs_brotli_v1"};
    struct scratch_dir d;

    scratch_dir_init(&d);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct buf bytes = {0};
        char path[200];
        snprintf(path, sizeof(path), GOLDEN "%s.parquet", names[i]);
        cr_assert_eq(fs_read_file(path, 1 << 20, &bytes, NULL), 0);
        for (size_t cut = 0; cut < bytes.len; cut += 1 + bytes.len / 100) {
            struct err err = {0};
            cr_expect_null(read_all(scratch_dir_write(&d, "f", bytes.data, cut), &err));
            cr_expect_neq(err.msg[0], '\0');
        }
        for (size_t at = 0; at < bytes.len; at += 1 + bytes.len / 900) {
            char kept = bytes.data[at];
            bytes.data[at] = (char)(kept ^ (1 << at % 8));
            read_anything(&d, bytes.data, bytes.len);
            bytes.data[at] = (char)0xFF;
            read_anything(&d, bytes.data, bytes.len);
            bytes.data[at] = kept;
        }
        buf_fini(&bytes);
    }
    scratch_dir_fini(&d);
}

/* tests/golden/parquet_gen.py says how each was made. */
Test(parquet, hostile_files_are_refused_with_a_reason, .timeout = 600)
{
    static const char *const cases[][2] = {
        {"bomb", "unpacks to too many times its size"},
        {"deep", "nested too deeply"},
        {"index", "values of column 'text' cannot be read"},
        {"footer", "has no footer at its end"},
        {"checksum", "another checksum"},
        {"lzo", "compressed with LZO; write it with zstd, snappy"},
        {"lz4_old", "compressed with the old LZ4 framing; write it with zstd, snappy"},
        {"codec_42", "compressed with an unknown codec; write it with zstd, snappy"},
        {"fixed", "holds a type that no text is made of"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct err err = {0};
        char path[200];
        snprintf(path, sizeof(path), GOLDEN "hostile/%s", cases[i][0]);
        cr_expect_null(read_all(path, &err), "%s", cases[i][0]);
        cr_expect_not_null(strstr(err.msg, cases[i][1]), "%s: %s", cases[i][0], err.msg);
    }
}

Test(parquet, bad_rows_are_told_and_the_next_is_read)
{
    struct err err = {0};
    json_t *rows = read_all(GOLDEN "hostile/latin1", &err);

    cr_assert_not_null(rows, "%s", err.msg);
    cr_expect_eq(json_array_size(rows), 3);
    cr_expect(json_is_object(json_array_get(rows, 0)));
    cr_expect_str_eq(json_string_value(json_array_get(rows, 1)), "\"text\" is not valid UTF-8");
    cr_expect(json_is_object(json_array_get(rows, 2)));
    json_decref(rows);
}
