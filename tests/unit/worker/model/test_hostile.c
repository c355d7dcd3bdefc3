/* Weight files made to harm, beyond what the readers' own tests show: tricks with the zip64
 * records, every name that a pickle could run, headers as large as the format allows. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/unit/worker/model/torch_maker.h"
#include "worker/model/weight_file.h"

static char dir[64], path[96];

static void make_dir(void)
{
    snprintf(dir, sizeof(dir), "/tmp/castor-hostile-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
    fs_remove_tree(dir, NULL);
}

TestSuite(hostile, .init = make_dir, .fini = remove_dir);

static void write_file(const char *name, const void *bytes, size_t n)
{
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "wb");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    cr_assert_eq(fclose(f), 0);
}

/* The error names the file, what is wrong, and what to do. */
static void expect_refused(enum err_code code, const char *what, const char *remedy)
{
    struct weight_file f;
    struct err err = {0};

    cr_assert_eq(weight_file_open(path, &f, &err), (int)code, "not %s but %d: %s", what, err.code,
                 err.msg);
    cr_expect_not_null(strstr(err.msg, path), "%s", err.msg);
    cr_expect_not_null(strstr(err.msg, what), "\"%s\" not in: %s", what, err.msg);
    cr_expect_not_null(strstr(err.msg, remedy), "\"%s\" not in: %s", remedy, err.msg);
}

/* --- zip --- */

#define PICKLE .data = "\x80\x02}.", .bytes = 4

/* An archive with zip64 records behind its directory: 56 bytes, then the locator's 20, then 22. */
static void make_zip64(struct buf *zip)
{
    const struct made_member m[] = {{.name = "m/data.pkl", PICKLE, .zip64 = true}};

    torch_make_zip(zip, m, 1, true);
}

Test(hostile, zip64_records_that_lie)
{
    enum { RECORD = 98, LOCATOR = 42 }; /* where they begin, counted from the end */
    static const struct {
        const char *what;
        size_t from_end;
        uint64_t value;
        int bytes;
    } lies[] = {
        {"a locator that is none", LOCATOR, 0, 4},
        {"a record before the file", LOCATOR - 8, UINT64_MAX, 8},
        {"a record behind the file", LOCATOR - 8, 1 << 20, 8},
        {"a record that is none", RECORD, 0, 4},
        {"a record inside itself", LOCATOR - 8, 0, 8},
        {"two disks", RECORD - 16, 1, 4},
        {"more members than bytes", RECORD - 32, UINT64_MAX, 8},
        {"one member too many", RECORD - 32, 2, 8},
        {"no members", RECORD - 32, 0, 8},
        {"a huge directory", RECORD - 40, UINT64_MAX, 8},
        {"a short directory", RECORD - 40, 46, 8},
        {"a directory behind the file", RECORD - 48, UINT64_MAX - 10, 8},
        {"a directory elsewhere", RECORD - 48, 0, 8},
    };

    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct buf zip = {0};
        struct weight_file f;
        struct err err = {0};

        make_zip64(&zip);
        for (int b = 0; b < lies[i].bytes; b++)
            zip.data[zip.len - lies[i].from_end + (size_t)b] = (char)(lies[i].value >> 8 * b);
        write_file("lie.bin", zip.data, zip.len);
        cr_expect_eq(weight_file_open(path, &f, &err), ERR_CORRUPT, "%s: %d %s", lies[i].what,
                     err.code, err.msg);
        cr_expect(strstr(err.msg, "lie.bin") && strstr(err.msg, "download it again"), "%s",
                  err.msg);
        buf_fini(&zip);
    }
}

/* Names of members are looked up, never opened: such a file harms nobody, and makes nothing. */
Test(hostile, members_named_outside)
{
    const struct made_member m[] = {{.name = "../data.pkl", PICKLE},
                                    {.name = "../../escaped", .data = "x", .bytes = 1},
                                    {.name = "/tmp/castor-escaped", .data = "x", .bytes = 1}};
    struct buf zip = {0};
    struct weight_file f;
    struct err err = {0};
    char outside[128];

    torch_make_zip(&zip, m, 3, false);
    write_file("out.bin", zip.data, zip.len);
    cr_assert_eq(weight_file_open(path, &f, &err), 0, "%s", err.msg);
    cr_expect_eq(f.n_tensors, 0);
    weight_file_close(&f);
    snprintf(outside, sizeof(outside), "%s/../../escaped", dir);
    cr_expect(!fs_exists(outside) && !fs_exists("/tmp/castor-escaped"));
    buf_fini(&zip);
}

/* A directory of a quarter of a GiB that is nowhere: refused by its size, unread. */
Test(hostile, directory_beyond_the_limit)
{
    struct buf zip = {0};

    make_zip64(&zip);
    char *record = zip.data + zip.len - 98;
    uint64_t begin = 0, bytes = (256u << 20) + 1, shift = (300u << 20);
    for (int b = 0; b < 8; b++) {
        record[40 + b] = (char)(bytes >> 8 * b);
        record[48 + b] = (char)(begin >> 8 * b);
    }
    char *locator = record + 56;
    for (int b = 0; b < 8; b++)
        locator[8 + b] = (char)(shift >> 8 * b);
    write_file("sparse.bin", zip.data, zip.len - 98);
    cr_assert_eq(truncate(path, (off_t)shift), 0);
    FILE *f = fopen(path, "ab");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(record, 1, 98, f), 98);
    fclose(f);
    buf_fini(&zip);
    expect_refused(ERR_CORRUPT, "does not fit the file", "download it again");
}

/* --- pickles --- */

static void write_pickle(const struct buf *pickle)
{
    const struct made_member m = {.name = "m/data.pkl", .data = pickle->data, .bytes = pickle->len};
    struct buf zip = {0};

    torch_make_zip(&zip, &m, 1, false);
    write_file("p.bin", zip.data, zip.len);
    buf_fini(&zip);
}

static const char *const FOREIGN_NAMES[] = {
    "os\nsystem",
    "os\npopen",
    "os\nexecvp",
    "posix\nsystem",
    "nt\nsystem",
    "pty\nspawn",
    "subprocess\nPopen",
    "subprocess\ncheck_output",
    "builtins\neval",
    "builtins\nexec",
    "builtins\ngetattr",
    "builtins\n__import__",
    "builtins\nopen",
    "builtins\ncompile",
    "__builtin__\neval",
    "__builtin__\napply",
    "sys\nexit",
    "shutil\nrmtree",
    "runpy\nrun_path",
    "importlib\nimport_module",
    "pickle\nloads",
    "marshal\nloads",
    "_codecs\nencode",
    "functools\npartial",
    "operator\nattrgetter",
    "operator\nmethodcaller",
    "types\nCodeType",
    "types\nFunctionType",
    "webbrowser\nopen",
    "socket\ncreate_connection",
    "urllib.request\nurlopen",
    "numpy.core.multiarray\n_reconstruct",
    "numpy\ndtype",
    "torch\nload",
    "torch\nload_library",
    "torch.hub\nload",
    "torch.jit\nload",
    "torch.storage\n_load_from_bytes",
    "torch._utils\n_rebuild_tensor",
    "torch._utils\n_rebuild_sparse_tensor",
    "torch._utils\n_rebuild_qtensor",
    "torch._utils\n_rebuild_device_tensor_from_numpy",
    "torch._tensor\n_rebuild_from_type_v2",
    "torch\nUntypedStorage",
    "torch\nComplexFloatStorage",
    "torch\nQInt8Storage",
    "torch\nfloat32",
    "torch\nSize",
    "torch\ndevice",
    "torch.nn.modules.linear\nLinear",
    "collections\nOrderedDict.fromkeys",
    "collections\ndefaultdict",
    "collections\nordereddict",
    " collections\nOrderedDict",
    "collections\nOrderedDict ",
    "torch._utils\n",
    "\nsystem",
    "\n",
};

Test(hostile, names_that_pickles_could_run)
{
    for (size_t i = 0; i < sizeof(FOREIGN_NAMES) / sizeof(FOREIGN_NAMES[0]); i++) {
        struct buf pickle = {0};

        buf_add(&pickle, "\x80\x02", 2);
        buf_printf(&pickle, "c%s\n(X", FOREIGN_NAMES[i]);
        buf_add(&pickle, "\x04\0\0\0", 4);
        buf_add_str(&pickle, "truetR.");
        write_pickle(&pickle);
        expect_refused(ERR_UNSUPPORTED, "nothing of it was run",
                       "Convert the model to safetensors");
        buf_fini(&pickle);
    }
}

/* --- safetensors --- */

static void write_header(const struct buf *header)
{
    struct buf file = {0};

    for (int i = 0; i < 8; i++)
        buf_add_char(&file, (char)((uint64_t)header->len >> 8 * i));
    buf_add(&file, header->data, header->len);
    write_file("h.safetensors", file.data, file.len);
    buf_fini(&file);
}

/* 100 MB, as large as the format allows, 5 of them tensors; the last one is wrong, so all of it is
 * looked at. */
Test(hostile, header_as_large_as_allowed, .timeout = 600)
{
    struct buf header = {0};
    clock_t start = clock();

    buf_add_char(&header, '{');
    for (int i = 0; header.len < 5000000; i++)
        buf_printf(&header, "\"t%d\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},", i);
    buf_add_str(&header, "\"last\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,1]}}");
    buf_reserve(&header, 100000000 - header.len);
    memset(header.data + header.len, ' ', 100000000 - header.len);
    header.len = 100000000;
    write_header(&header);
    buf_fini(&header);
    expect_refused(ERR_CORRUPT, "tensor last takes 1 bytes", "download it again");
    cr_expect_lt(clock() - start, 30 * CLOCKS_PER_SEC);
}

Test(hostile, every_refusal_says_what_to_do)
{
    static const char *const headers[] = {
        "",
        "{",
        "[]",
        "{}x",
        "{\"a\":1}",
        "{\"a\":{}}",
        "{\"a\":{\"dtype\":\"F32\"}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
        "{\"__metadata__\":{\"a\":[]}}",
    };

    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        struct buf header = {0};

        buf_add_str(&header, headers[i]);
        write_header(&header);
        expect_refused(ERR_CORRUPT, ": ", "download it again");
        buf_fini(&header);
    }
    write_file("s.safetensors", "\1", 1);
    expect_refused(ERR_CORRUPT, "too short", "download it again");
}
