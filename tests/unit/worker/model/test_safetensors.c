/* A file's header is the work of strangers. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"
#include "worker/model/safetensors.h"

static char dir[64];

static void make_dir(void)
{
    snprintf(dir, sizeof(dir), "/tmp/castor-safetensors-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
    fs_remove_tree(dir, NULL);
}

TestSuite(safetensors, .init = make_dir, .fini = remove_dir);

static char *path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static void write_raw(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    cr_assert_not_null(f);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

/* A file with this header and so many bytes of data; returns what opening says. */
static int open_header_n(const char *header, size_t header_bytes, size_t data_bytes,
                         struct err *err)
{
    struct safetensors_file f = {0};
    struct buf file = {0};
    char *path = path_of("raw.safetensors");
    int rc;

    for (int i = 0; i < 8; i++)
        buf_add_char(&file, (char)((uint64_t)header_bytes >> (8 * i)));
    buf_add(&file, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        buf_add_char(&file, (char)i);
    write_raw(path, file.data, file.len);
    buf_fini(&file);
    rc = safetensors_open(path, &f, err);
    if (rc == 0)
        safetensors_close(&f);
    else
        cr_assert_null(f.path, "the result was touched");
    return rc;
}

static int open_header(const char *header, size_t data_bytes, struct err *err)
{
    return open_header_n(header, strlen(header), data_bytes, err);
}

#define T4(name, a, b)                                                                             \
    "\"" name "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" a "," b "]}"
#define SHAPED(shape, a, b)                                                                        \
    "{\"t\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" a "," b "]}}"

Test(safetensors, good_headers)
{
    static const struct {
        const char *header;
        size_t data;
    } good[] = {
        {"{}", 0},
        {"{}    ", 0},
        {"{\"__metadata__\":{\"format\":\"pt\"}}", 0},
        {"{" T4("a", "0", "4") "}", 4},
        {"{" T4("b", "4", "8") "," T4("a", "0", "4") "}", 8}, /* any order */
        {SHAPED("[]", "0", "4"), 4},                          /* a scalar */
        {SHAPED("[2,0,9223372036854775807,3]", "0", "0"), 0}, /* nothing of it */
        {SHAPED("[1,1,1,1,1,1,1,1]", "0", "4"), 4},
        {"{\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,4]}," T4("a", "0", "4") "}",
         4},
        {"{\"t\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4],\"more\":1}}", 4},
    };

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct err err = {0};

        cr_assert_eq(open_header(good[i].header, good[i].data, &err), 0, "%s: %s", good[i].header,
                     err.msg);
    }
}

Test(safetensors, bad_headers)
{
    static const struct {
        const char *header;
        size_t data;
    } bad[] = {
        {"", 0},
        {"[]", 0},
        {" {}", 0},
        {"{", 0},
        {"{}x", 0},
        {"{}", 1},                                            /* data that nobody owns */
        {"{" T4("a", "0", "4") "}", 3},                       /* cut off */
        {"{" T4("a", "0", "4") "}", 5},                       /* too long */
        {"{" T4("a", "1", "5") "}", 5},                       /* a hole in front */
        {"{" T4("a", "0", "4") "," T4("b", "5", "9") "}", 9}, /* between */
        {"{" T4("a", "0", "4") "," T4("b", "3", "7") "}", 7}, /* overlap */
        {"{" T4("a", "0", "4") "," T4("b", "0", "4") "}", 4}, /* the same bytes twice */
        {"{" T4("a", "0", "4") "," T4("b", "0", "4") "}", 8},
        {"{" T4("a", "0", "4") "," T4("a", "4", "8") "}", 8}, /* a name twice */
        {"{" T4("a", "4", "0") "}", 4},                       /* backwards */
        {"{" T4("a", "-4", "0") "}", 4},
        {"{" T4("a", "0.0", "4") "}", 4},
        {"{" T4("a", "0", "18446744073709551620") "}", 4},
        {"{" T4("a", "9223372036854775803", "9223372036854775807") "}", 4},
        {SHAPED("[2]", "0", "4"), 4}, /* shape and length differ */
        {SHAPED("[1]", "0", "3"), 4},
        {SHAPED("[1]", "0", "8"), 4},
        {SHAPED("[-1]", "0", "4"), 4},
        {SHAPED("[1.0]", "0", "4"), 4},
        {SHAPED("[\"1\"]", "0", "4"), 4},
        {SHAPED("1", "0", "4"), 4},
        {SHAPED("[1,1,1,1,1,1,1,1,1]", "0", "4"), 4},     /* nine dimensions */
        {SHAPED("[4611686018427387905]", "0", "4"), 4},   /* x 4 = 2^64 + 4 */
        {SHAPED("[4294967296,4294967296]", "0", "0"), 0}, /* 2^64 */
        {SHAPED("[9223372036854775807,9223372036854775807]", "0", "4"), 4},
        {SHAPED("[[1]]", "0", "4"), 4}, /* too deep */
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4},
        {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4},
        {"{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
        {"{\"t\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{}}}", 4},
        {"{\"t\":[]}", 0},
        {"{\"t\":null}", 0},
        {"{\"__metadata__\":{\"format\":1}}", 0},
        {"{\"__metadata__\":\"pt\"}", 0},
        {"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4}, /* not UTF-8 */
        {"{\"\xc0\xaf\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4},
        {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err err = {0};

        cr_assert_eq(open_header(bad[i].header, bad[i].data, &err), ERR_CORRUPT, "%s gave %d: %s",
                     bad[i].header, err.code, err.msg);
    }
}

Test(safetensors, types_that_are_not_read)
{
    const char *const types[] = {"U16", "C64", "F4", "f32", ""};

    for (size_t i = 0; i < 5; i++) {
        struct err err = {0};
        char header[128];

        snprintf(header, sizeof(header),
                 "{\"t\":{\"dtype\":\"%s\",\"shape\":[2],\"data_offsets\":[0,4]}}", types[i]);
        cr_assert_eq(open_header(header, 4, &err), ERR_UNSUPPORTED, "%s", types[i]);
        cr_assert_not_null(strstr(err.msg, "tensor t"));
    }
}

Test(safetensors, depth_bombs)
{
    size_t n = 2000000;
    char *bomb = xmalloc(n);
    struct err err = {0};

    memset(bomb, '{', n);
    cr_assert_eq(open_header_n(bomb, n, 0, &err), ERR_CORRUPT);
    memset(bomb, '[', n);
    memcpy(bomb, "{\"t\":", 5);
    err = (struct err){0};
    cr_assert_eq(open_header_n(bomb, n, 0, &err), ERR_CORRUPT);
    free(bomb);
}

Test(safetensors, claims_beyond_the_file)
{
    const uint64_t claims[] = {3,          100,       100000000,  100000001,
                               1ull << 32, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};

    for (size_t i = 0; i < sizeof(claims) / sizeof(claims[0]); i++) {
        struct safetensors_file f;
        struct err err = {0};
        unsigned char file[10] = {[8] = '{', [9] = '}'};

        for (int b = 0; b < 8; b++)
            file[b] = (unsigned char)(claims[i] >> (8 * b));
        write_raw(path_of("claim"), file, sizeof(file));
        cr_assert_eq(safetensors_open(path_of("claim"), &f, &err), ERR_CORRUPT);
        cr_assert_not_null(strstr(err.msg, "claims a header of "), "read first: %s", err.msg);
    }
}

/* A sparse file that really is that long: beyond the format's limit is refused unread. */
Test(safetensors, header_over_the_limit)
{
    struct safetensors_file f;
    struct err err = {0};
    unsigned char file[9] = {0x01, 0xE1, 0xF5, 0x05, [8] = '{'}; /* 100,000,001 */

    write_raw(path_of("long"), file, sizeof(file));
    cr_assert_eq(truncate(path_of("long"), 100000009), 0);
    cr_assert_eq(safetensors_open(path_of("long"), &f, &err), ERR_CORRUPT);
    cr_assert_not_null(strstr(err.msg, "claims a header of 100000001"), "%s", err.msg);
}

Test(safetensors, not_files)
{
    struct safetensors_file f;
    struct err err = {0};

    cr_assert_eq(safetensors_open(dir, &f, &err), ERR_INVALID);
    err = (struct err){0};
    cr_assert_eq(safetensors_open(path_of("none"), &f, &err), ERR_NOT_FOUND);
    err = (struct err){0};
    cr_assert_eq(mkfifo(path_of("fifo"), 0600), 0);
    cr_assert_eq(safetensors_open(path_of("fifo"), &f, &err), ERR_INVALID);
}

static const float numbers[6] = {1, -2, NAN, INFINITY, 1e-40f, 0};
static const uint16_t halves[3] = {0x3c00, 0x7e00, 0xfbff};

static void write_sample(const char *path)
{
    const int64_t matrix[2] = {2, 3}, vector[1] = {3};
    struct safetensors_writer *w = NULL;
    struct err err = {0};

    cr_assert_eq(safetensors_writer_create(path, &w, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_writer_declare(w, "z.weight", DT_F32, 2, matrix, &err), 0);
    cr_assert_eq(safetensors_writer_declare(w, "a \"quoted\" n\xc3\xa4me", DT_F16, 1, vector, &err),
                 0);
    cr_assert_eq(safetensors_writer_declare(w, "scalar", DT_BF16, 0, NULL, &err), 0);
    cr_assert_eq(safetensors_writer_declare(w, "z.weight", DT_F32, 0, NULL, &err), ERR_INVALID);
    err = (struct err){0};
    cr_assert_eq(safetensors_writer_declare(w, "\xff", DT_F32, 0, NULL, &err), ERR_INVALID);
    err = (struct err){0};
    cr_assert_eq(safetensors_writer_data(w, numbers, 10, &err), 0); /* in pieces of any size */
    cr_assert_eq(safetensors_writer_data(w, (const char *)numbers + 10, 14, &err), 0);
    cr_assert_eq(safetensors_writer_data(w, halves, 6, &err), 0);
    cr_assert_eq(safetensors_writer_data(w, halves, 2, &err), 0);
    cr_assert(!fs_exists(path), "the file is there before it is finished");
    cr_assert_eq(safetensors_writer_finish(w, &err), 0, "%s", err.msg);
    safetensors_writer_destroy(w);
}

Test(safetensors, written_is_read)
{
    struct safetensors_file f;
    const struct safetensor *t;
    struct err err = {0};
    float got[6];
    uint16_t half;

    write_sample(path_of("sample"));
    cr_assert_eq(safetensors_open(path_of("sample"), &f, &err), 0, "%s", err.msg);
    cr_assert_eq(f.n_tensors, 3);
    t = safetensors_find(&f, "z.weight");
    cr_assert_not_null(t);
    cr_assert_eq(t->begin % 8, 0);
    cr_assert(t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->dtype == DT_F32);
    cr_assert_eq(safetensors_read(&f, t, 0, sizeof(got), got, &err), 0);
    cr_assert_arr_eq(got, numbers, sizeof(numbers)); /* NaN and all */
    t = safetensors_find(&f, "a \"quoted\" n\xc3\xa4me");
    cr_assert_not_null(t);
    cr_assert_eq(safetensors_read(&f, t, 4, 2, &half, &err), 0);
    cr_assert_eq(half, halves[2]);
    cr_assert_null(safetensors_find(&f, "z.weigh"));
    cr_assert_null(safetensors_find(&f, "__metadata__"));

    /* a file that shrinks under us is an error */
    t = safetensors_find(&f, "scalar");
    cr_assert_eq(truncate(path_of("sample"), (off_t)t->begin + 1), 0);
    cr_assert_eq(safetensors_read(&f, t, 0, 2, &half, &err), ERR_CORRUPT);
    safetensors_close(&f);
    safetensors_close(&f); /* idempotent */
}

/* Cut off anywhere, or with any one byte of the header changed: an error or a valid file, never
 * more. */
Test(safetensors, cut_and_changed)
{
    struct buf file = {0};
    struct err err = {0};
    size_t header;

    write_sample(path_of("sample"));
    cr_assert_eq(fs_read_file(path_of("sample"), 1 << 20, &file, &err), 0);
    for (size_t n = 0; n < file.len; n++) {
        struct safetensors_file f;

        err = (struct err){0};
        write_raw(path_of("cut"), file.data, n);
        cr_assert_eq(safetensors_open(path_of("cut"), &f, &err), ERR_CORRUPT, "cut to %zu", n);
    }
    header = 8 + (size_t)(unsigned char)file.data[0] + 256 * (size_t)(unsigned char)file.data[1];
    for (size_t i = 0; i < header; i++) {
        for (int bit = 0; bit < 8; bit++) {
            struct safetensors_file f;

            file.data[i] = (char)(file.data[i] ^ (1 << bit));
            write_raw(path_of("flip"), file.data, file.len);
            if (safetensors_open(path_of("flip"), &f, NULL) == 0) {
                for (int64_t t = 0; t < f.n_tensors; t++) {
                    void *data = xmalloc(f.tensors[t].bytes + 1);

                    cr_assert_eq(
                        safetensors_read(&f, &f.tensors[t], 0, f.tensors[t].bytes, data, &err), 0);
                    free(data);
                }
                safetensors_close(&f);
            }
            file.data[i] = (char)(file.data[i] ^ (1 << bit));
        }
    }
    buf_fini(&file);
}

Test(safetensors, unfinished_writer_leaves_nothing)
{
    const int64_t shape[1] = {4};
    struct safetensors_writer *w = NULL;
    struct err err = {0};
    char left[256];
    FILE *list;

    cr_assert_eq(safetensors_writer_create(path_of("half"), &w, &err), 0);
    cr_assert_eq(safetensors_writer_declare(w, "t", DT_F32, 1, shape, &err), 0);
    cr_assert_eq(safetensors_writer_data(w, numbers, 8, &err), 0);
    safetensors_writer_destroy(w);
    snprintf(left, sizeof(left), "ls -A %s", dir);
    list = popen(left, "r");
    cr_assert_not_null(list);
    cr_assert_null(fgets(left, sizeof(left), list), "%s was left", left);
    pclose(list);
    cr_assert_neq(safetensors_writer_create("/nonexistent/x", &w, &err), 0);
}
