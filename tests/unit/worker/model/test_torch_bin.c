/* PyTorch's .bin files: what torch.save wrote (tests/golden/torch_bin_gen.py), and hostile ones. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "tests/unit/worker/model/rig.h"
#include "tests/unit/worker/model/torch_maker.h"
#include "worker/model/torch_bin.h"
#include "worker/model/weights.h"

#define ROOT "tests/golden/torch_bin/"

static char dir[64], path[96];

static void make_dir(void)
{
    snprintf(dir, sizeof(dir), "/tmp/castor-torch-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/t.bin", dir);
}

static void remove_dir(void)
{
    fs_remove_tree(dir, NULL);
}

TestSuite(torch_bin, .init = make_dir, .fini = remove_dir);

static void write_bytes(const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    cr_assert_not_null(f);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    cr_assert_eq(fclose(f), 0);
}

static void expect_refused(enum err_code code, const char *text)
{
    struct torch_bin f;
    struct err err = {0};

    cr_assert_eq(torch_bin_open(path, &f, &err), (int)code, "not %s but: %s", text, err.msg);
    cr_assert_not_null(strstr(err.msg, text), "\"%s\" not in: %s", text, err.msg);
}

static void expect_values(const struct torch_bin *f, const char *name, int64_t n,
                          const double *want)
{
    const struct torch_tensor *t = torch_bin_find(f, name);
    struct err err = {0};
    char raw[256];
    double got[16];

    cr_assert_not_null(t, "%s", name);
    cr_assert_eq(t->elements, n, "%s", name);
    for (int64_t first = 0; first < n; first++) { /* from any element on */
        cr_assert_eq(torch_bin_read(f, t, first, n - first, raw, &err), 0, "%s", err.msg);
        dtype_convert(DT_F64, got, t->dtype, raw, n - first);
        for (int64_t i = first; i < n; i++)
            cr_assert_eq(got[i - first], want[i], "%s[%d] is %g", name, (int)i, got[i - first]);
    }
}

Test(torch_bin, views_and_types)
{
    struct torch_bin f;
    struct err err = {0};
    const double base[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    const double turned[12] = {0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11};
    const double column[3] = {1, 5, 9}, block[4] = {6, 7, 10, 11}, pair[2] = {1.5, -2};
    const double box[12] = {0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11};
    int64_t longs[2];

    cr_assert_eq(torch_bin_open(ROOT "views.bin", &f, &err), 0, "%s", err.msg);
    cr_assert_eq(f.n_tensors, 17);
    expect_values(&f, "base", 12, base);
    expect_values(&f, "matrix", 12, base);
    expect_values(&f, "turned", 12, turned);
    expect_values(&f, "column", 3, column);
    expect_values(&f, "block", 4, block);
    expect_values(&f, "box", 12, box);
    expect_values(&f, "parameter", 4, base + 8);
    expect_values(&f, "scalar", 1, base + 7);
    expect_values(&f, "nothing", 0, NULL);
    expect_values(&f, "double", 2, pair);
    expect_values(&f, "half", 2, pair);
    expect_values(&f, "bfloat", 2, pair);
    cr_assert_eq(torch_bin_find(&f, "turned")->shape[0], 4);
    cr_assert_eq(torch_bin_find(&f, "scalar")->rank, 0);
    cr_assert_eq(torch_bin_find(&f, "byte")->dtype, DT_U8);
    cr_assert_eq(torch_bin_find(&f, "int")->dtype, DT_I32);
    cr_assert_eq(torch_bin_find(&f, "char")->dtype, DT_I8);
    cr_assert_eq(torch_bin_find(&f, "bool")->dtype, DT_BOOL);
    cr_assert_eq(torch_bin_read(&f, torch_bin_find(&f, "long"), 0, 2, longs, &err), 0);
    cr_assert(longs[0] == 7 && longs[1] == -8);
    cr_assert_null(torch_bin_find(&f, "stranger"));
    torch_bin_close(&f);
    torch_bin_close(&f);
}

static void read_all(const char *model_dir, struct rig *r)
{
    struct decoder_config config;
    struct err err = {0};

    cr_assert_eq(decoder_config_load(model_dir, &config, &err), 0, "%s", err.msg);
    rig_open(r, &config, DT_F32, true, 1, 2);
    rig_load(r, model_dir);
}

static void expect_same_model(const char *model_dir)
{
    struct rig a, b;

    read_all(ROOT "reference", &a);
    read_all(model_dir, &b);
    for (int64_t t = 0; t < a.m.n_tensors; t++)
        cr_assert_arr_eq(a.weights[t], b.weights[t],
                         (size_t)tensor_elements(&a.m.tensors[t]) * sizeof(float));
    rig_close(&a);
    rig_close(&b);
}

Test(torch_bin, models_single_and_sharded)
{
    expect_same_model(ROOT "single");
    expect_same_model(ROOT "sharded");
}

Test(torch_bin, safetensors_wins)
{
    char command[512];

    snprintf(command, sizeof(command),
             "cp " ROOT "reference/* %s && echo broken > %s/pytorch_model.bin", dir, dir);
    cr_assert_eq(system(command), 0);
    expect_same_model(dir);
}

Test(torch_bin, index_of_bins_names_bins)
{
    struct weights_reader *r = NULL;
    struct err err = {0};
    struct rig rig;
    char command[512];

    read_all(ROOT "reference", &rig);
    snprintf(command, sizeof(command),
             "echo '{\"weight_map\":{\"a\":\"x.safetensors\"}}' > %s/pytorch_model.bin.index.json",
             dir);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(weights_open(dir, &rig.m, &r, &err), ERR_CORRUPT);
    cr_assert_not_null(strstr(err.msg, "a .bin file beside the index"), "%s", err.msg);
    rig_close(&rig);
}

/* Every shorter file is refused; a file with a flipped bit is read or refused, nothing else. */
Test(torch_bin, cut_off_and_bent, .timeout = 600)
{
    struct buf whole = {0};
    struct err err = {0};
    struct torch_bin f;

    cr_assert_eq(fs_read_file(ROOT "views.bin", 1 << 20, &whole, &err), 0);
    for (size_t n = 0; n < whole.len; n++) {
        struct err cut = {0};

        write_bytes(whole.data, n);
        cr_assert_neq(torch_bin_open(path, &f, &cut), 0, "%d bytes", (int)n);
        cr_assert(cut.code == ERR_CORRUPT || cut.code == ERR_UNSUPPORTED, "%s", cut.msg);
    }
    for (size_t n = 0; n < whole.len; n++) {
        char was = whole.data[n], raw[4096];

        whole.data[n] ^= (char)(1 << n % 8);
        write_bytes(whole.data, whole.len);
        whole.data[n] = was;
        err_clear(&err);
        if (torch_bin_open(path, &f, &err) != 0)
            continue;
        for (int64_t i = 0; i < f.n_tensors; i++) {
            int64_t k = f.tensors[i].elements < 64 ? f.tensors[i].elements : 64;

            cr_assert_eq(torch_bin_read(&f, &f.tensors[i], 0, k, raw, &err), 0);
        }
        torch_bin_close(&f);
    }
    buf_fini(&whole);
}

/* An archive of a pickle and 4 floats as storage "0". */
static void write_archive(const struct buf *pickle, bool zip64)
{
    static const float storage[4] = {1, 2, 3, 4};
    const struct made_member members[] = {
        {.name = "m/data.pkl", .data = pickle->data, .bytes = pickle->len, .zip64 = zip64},
        {.name = "m/data/0", .data = storage, .bytes = sizeof(storage), .flags = 8, .zip64 = zip64},
    };
    struct buf zip = {0};

    torch_make_zip(&zip, members, 2, zip64);
    write_bytes(zip.data, zip.len);
    buf_fini(&zip);
}

static void write_pickle(const void *bytes, size_t n)
{
    struct buf pickle = {0};

    buf_add(&pickle, bytes, n);
    write_archive(&pickle, false);
    buf_fini(&pickle);
}

static void write_tensor(const char *type, int64_t elements, int64_t offset, int rank,
                         const int64_t *shape, const int64_t *stride)
{
    struct buf pickle = {0};

    torch_pickle_open(&pickle);
    torch_pickle_tensor(&pickle, "t", type, elements, offset, rank, shape, stride);
    torch_pickle_close(&pickle);
    write_archive(&pickle, false);
    buf_fini(&pickle);
}

Test(torch_bin, made_by_hand_with_zip64)
{
    const int64_t four[1] = {4}, one[1] = {1};
    const double want[4] = {1, 2, 3, 4};

    for (int zip64 = 0; zip64 < 2; zip64++) {
        struct buf pickle = {0};
        struct torch_bin f;
        struct err err = {0};

        torch_pickle_open(&pickle);
        torch_pickle_tensor(&pickle, "t", "FloatStorage", 4, 0, 1, four, one);
        torch_pickle_close(&pickle);
        write_archive(&pickle, zip64);
        cr_assert_eq(torch_bin_open(path, &f, &err), 0, "%s", err.msg);
        expect_values(&f, "t", 4, want);
        torch_bin_close(&f);
        buf_fini(&pickle);
    }
}

Test(torch_bin, views_outside_their_storage)
{
    const struct {
        int64_t elements, offset;
        int rank;
        int64_t shape[3], stride[3];
    } bad[] = {
        {4, 0, 1, {5}, {1}},
        {4, 1, 1, {4}, {1}},
        {4, 5, 0, {0}, {0}},
        {4, INT64_MAX, 1, {2}, {1}},
        {4, 0, 1, {2}, {4}},
        {4, 0, 1, {2}, {INT64_MAX}},
        {4, 0, 2, {3, 2}, {INT64_MAX / 2, INT64_MAX}},
        {4, 0, 2, {(int64_t)1 << 32, (int64_t)1 << 32}, {0, 0}},
        {4, 0, 1, {5}, {0}}, /* one element five times */
        {4, 0, 3, {(int64_t)1 << 62, 2, 2}, {0, 0, 0}},
    };
    const int64_t four[1] = {4}, one[1] = {1}, minus[1] = {-1};

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        write_tensor("FloatStorage", bad[i].elements, bad[i].offset, bad[i].rank, bad[i].shape,
                     bad[i].stride);
        expect_refused(ERR_CORRUPT, "does not lie in its storage");
    }
    write_tensor("FloatStorage", 5, 0, 1, four, one);
    expect_refused(ERR_CORRUPT, "claims a storage of 5 elements");
    write_tensor("FloatStorage", -4, 0, 1, four, one);
    expect_refused(ERR_CORRUPT, "claims a storage");
    write_tensor("FloatStorage", ((int64_t)1 << 62) + 4, 0, 1, four, one);
    expect_refused(ERR_CORRUPT, "claims a storage");
    write_tensor("HalfStorage", 4, 0, 1, four, one);
    expect_refused(ERR_CORRUPT, "claims a storage of 4 elements of f16; it has 16 bytes");
    write_tensor("FloatStorage", 4, 0, 1, minus, one);
    expect_refused(ERR_UNSUPPORTED, "describes a tensor in another way");
    write_tensor("FloatStorage", 4, 0, 1, four, minus);
    expect_refused(ERR_UNSUPPORTED, "describes a tensor in another way");
    write_tensor("FloatStorage", 4, -1, 1, four, one);
    expect_refused(ERR_UNSUPPORTED, "describes a tensor in another way");
    write_tensor("QInt8Storage", 4, 0, 1, four, one);
    expect_refused(ERR_UNSUPPORTED, "torch.QInt8Storage");
}

Test(torch_bin, operations_outside_the_list)
{
    const char allowed[] = "(.cRbNJKMXQhjqr)t}su\x80\x85\x86\x87\x88\x89\x8a";

    for (int opcode = 0; opcode < 256; opcode++) {
        char pickle[] = {'\x80', 2, (char)opcode, 0, 0, 0, 0, '.'};

        if (opcode != 0x80 && opcode != 0 && strchr(allowed, (char)opcode) != NULL)
            continue;
        write_pickle(pickle, sizeof(pickle));
        expect_refused(ERR_UNSUPPORTED, "uses the operation 0x");
    }
}

static void refuse_pickle(const char *text, size_t n, enum err_code code, const char *why)
{
    write_pickle(text, n);
    expect_refused(code, why);
}
#define REFUSE(pickle, code, why) refuse_pickle(pickle, sizeof(pickle) - 1, code, why)

Test(torch_bin, names_outside_the_list)
{
    REFUSE("\x80\x02"
           "cos\nsystem\n(X\x04\0\0\0true"
           "tR.",
           ERR_UNSUPPORTED, "os.system");
    REFUSE("\x80\x02"
           "cposix\nsystem\n.",
           ERR_UNSUPPORTED, "posix.system");
    REFUSE("\x80\x02"
           "c__builtin__\neval\n.",
           ERR_UNSUPPORTED, "__builtin__.eval");
    REFUSE("\x80\x02"
           "ccollections\nOrderedDict2\n.",
           ERR_UNSUPPORTED, "OrderedDict2");
    REFUSE("\x80\x02"
           "ctorch\nFloatStorage\n)R.",
           ERR_UNSUPPORTED, "calls the type of a storage");
    REFUSE("\x80\x02"
           "})R.",
           ERR_UNSUPPORTED, "calls something that is no name");
    REFUSE("\x80\x02"
           "ccollections\nOrderedDict\n)\x85R.",
           ERR_UNSUPPORTED, "from something");
    REFUSE("\x80\x02"
           "ctorch._utils\n_rebuild_tensor_v2\n)R.",
           ERR_UNSUPPORTED, "another way");
    REFUSE("\x80\x02"
           "ctorch._utils\n_rebuild_parameter\nNNN\x87R.",
           ERR_UNSUPPORTED, "another way");
    REFUSE("\x80\x02"
           "NQ.",
           ERR_UNSUPPORTED, "refers to something that is no storage");
}

Test(torch_bin, broken_programs)
{
    REFUSE("\x80\x04N.", ERR_UNSUPPORTED, "protocol 2");
    REFUSE("\x80", ERR_CORRUPT, "ends early");
    REFUSE("\x80\x02N", ERR_CORRUPT, "ends early");
    REFUSE("\x80\x02"
           "cos",
           ERR_CORRUPT, "ends early");
    REFUSE("\x80\x02X\x05\0\0\0abc.", ERR_CORRUPT, "ends early");
    REFUSE("\x80\x02X\xff\xff\xff\xff.", ERR_CORRUPT, "huge string");
    REFUSE("\x80\x02X\x02\0\0\0a\0.", ERR_CORRUPT, "NUL");
    REFUSE("\x80\x02\x8a\xff.", ERR_CORRUPT, "huge number");
    REFUSE("\x80\x02Nr\xff\xff\xff\xff.", ERR_CORRUPT, "huge memo");
    REFUSE("\x80\x02h\x07.", ERR_CORRUPT, "never written");
    REFUSE("\x80\x02Nq\x02h\x01.", ERR_CORRUPT, "never written");
    REFUSE("\x80\x02q\x01.", ERR_CORRUPT, "empty stack");
    REFUSE("\x80\x02(q\x01.", ERR_CORRUPT, "empty stack");
    REFUSE("\x80\x02\x86.", ERR_CORRUPT, "empty stack");
    REFUSE("\x80\x02(N\x86.", ERR_CORRUPT, "empty stack");
    REFUSE("\x80\x02Nt.", ERR_CORRUPT, "lacks a mark");
    REFUSE("\x80\x02u.", ERR_CORRUPT, "lacks a mark");
    REFUSE("\x80\x02}(Nu.", ERR_CORRUPT, "half an item");
    REFUSE("\x80\x02(u.", ERR_CORRUPT, "half an item");
    REFUSE("\x80\x02N(NNu.", ERR_CORRUPT, "no dictionary");
    REFUSE("\x80\x02NNNs.", ERR_CORRUPT, "no dictionary");
    REFUSE("\x80\x02Ns.", ERR_CORRUPT, "empty stack");
    REFUSE("\x80\x02NNb.", ERR_UNSUPPORTED, "sets the state");
    REFUSE("\x80\x02.", ERR_CORRUPT, "one value");
    REFUSE("\x80\x02}}.", ERR_CORRUPT, "one value");
    REFUSE("\x80\x02}.}", ERR_CORRUPT, "one value");
    REFUSE("\x80\x02N.", ERR_UNSUPPORTED, "else than a dictionary");
    REFUSE("\x80\x02}NNs.", ERR_UNSUPPORTED, "no name");
    REFUSE("\x80\x02}X\x01\0\0\0aK\x01s.", ERR_UNSUPPORTED, "\"a\" is no tensor");
    /* a dictionary in itself */
    REFUSE("\x80\x02}q\0X\x01\0\0\0ah\0s.", ERR_UNSUPPORTED, "\"a\" is no tensor");
}

Test(torch_bin, bounded_memory)
{
    size_t n = 3 << 20;
    char *pickle = xmalloc(n);

    pickle[0] = '\x80';
    pickle[1] = 2;
    memset(pickle + 2, '(', n - 2);
    write_pickle(pickle, n);
    expect_refused(ERR_CORRUPT, "fills its stack");
    for (size_t i = 2; i + 3 <= n; i += 3)
        memcpy(pickle + i, "N\x85\x85", 3); /* a tuple in a tuple, again and again */
    memset(pickle + 3, '\x85', n - 3);
    write_pickle(pickle, n);
    expect_refused(ERR_CORRUPT, "too many values");
    free(pickle);
    pickle = xcalloc(17 << 20, 1);
    write_pickle(pickle, 17 << 20);
    expect_refused(ERR_INVALID, "at most");
    free(pickle);
}

Test(torch_bin, one_name_twice)
{
    const int64_t four[1] = {4}, one[1] = {1};
    struct buf pickle = {0};

    torch_pickle_open(&pickle);
    torch_pickle_tensor(&pickle, "t", "FloatStorage", 4, 0, 1, four, one);
    torch_pickle_tensor(&pickle, "t", "FloatStorage", 4, 0, 1, four, one);
    torch_pickle_close(&pickle);
    write_archive(&pickle, false);
    expect_refused(ERR_CORRUPT, "tensor t twice");
    buf_fini(&pickle);
}

static void refuse_zip(const struct made_member *members, size_t n, enum err_code code,
                       const char *why)
{
    struct buf zip = {0};

    torch_make_zip(&zip, members, n, false);
    write_bytes(zip.data, zip.len);
    expect_refused(code, why);
    buf_fini(&zip);
}

Test(torch_bin, bent_archives)
{
#define PICKLE .data = "\x80\x02}.", .bytes = 4
    const struct made_member good = {.name = "m/data.pkl", PICKLE};
    struct made_member m[2] = {good, good};

    refuse_zip(m, 2, ERR_CORRUPT, "holds m/data.pkl twice");
    m[1].name = "n/data.pkl";
    refuse_zip(m, 2, ERR_CORRUPT, "two pickles");
    m[1].name = "m/sub/data.pkl"; /* no pickle of ours */
    m[0].name = "data.pkl";
    refuse_zip(m, 2, ERR_UNSUPPORTED, "no data.pkl");
    m[0] = good;
    m[1] = (struct made_member){.name = "m/byteorder", .data = "big", .bytes = 3};
    refuse_zip(m, 2, ERR_UNSUPPORTED, "not little-endian");
    m[0].method = 8;
    refuse_zip(m, 1, ERR_UNSUPPORTED, "compressed");
    m[0] = good;
    m[0].flags = 1;
    refuse_zip(m, 1, ERR_UNSUPPORTED, "encrypted");
    m[0] = good;
    m[0].local_method = 8;
    refuse_zip(m, 1, ERR_CORRUPT, "contradicts");
    m[0] = good;
    m[0].local_name = "m/data.pkx";
    refuse_zip(m, 1, ERR_CORRUPT, "contradicts");
    m[0] = good;
    m[0].claimed = 3;
    refuse_zip(m, 1, ERR_CORRUPT, "contradicts");
    m[0].flags = 8; /* the header says nothing: the data may not leave the file */
    m[0].claimed = 100000;
    refuse_zip(m, 1, ERR_CORRUPT, "outside");
    m[0] = good;
    m[0].header = 100000;
    refuse_zip(m, 1, ERR_CORRUPT, "outside");
    m[0] = good;
    m[0].flags = 8;
    m[0].claimed = 40; /* into the next member */
    m[1] = (struct made_member){.name = "m/x", .data = "0123456789", .bytes = 10};
    refuse_zip(m, 2, ERR_CORRUPT, "overlap");
    m[0] = good;
    m[0].name = m[0].local_name = "";
    refuse_zip(m, 1, ERR_CORRUPT, "broken zip directory");
}

Test(torch_bin, other_formats)
{
    write_bytes("\x80\x02\x8a\nl\xfc\x9c"
                "F\xf9 j\xa8P\x19.",
                14); /* the old format's magic */
    expect_refused(ERR_UNSUPPORTED, "before PyTorch 1.6");
    write_bytes("PK", 2);
    expect_refused(ERR_CORRUPT, "cut off");
    remove(path);
    expect_refused(ERR_NOT_FOUND, "t.bin");
    snprintf(path, sizeof(path), "%s", dir);
    expect_refused(ERR_INVALID, "is not a file");
}
