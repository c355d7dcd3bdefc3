/* A whole .bin file: any bytes; what opens must be readable and no larger than the file. What does
 * not begin as a zip is taken for the pickle of a good archive with two storages. */
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "tests/fuzz/fuzz.h"
#include "worker/model/torch_bin.h"

struct member {
    const char *name;
    const void *data;
    size_t bytes, header;
};

static void number(struct buf *b, size_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        buf_add_char(b, i < 8 ? (char)(v >> 8 * i) : 0);
}

/* What the headers of both kinds share, from the method on. */
static void add_facts(struct buf *zip, const struct member *m)
{
    number(zip, 0, 2 + 4 + 4); /* stored; no time; no checksum */
    number(zip, m->bytes, 4);
    number(zip, m->bytes, 4);
    number(zip, strlen(m->name), 2);
    number(zip, 0, 2);
}

static void make_archive(struct buf *zip, struct member *members, size_t n)
{
    size_t begin;

    for (struct member *m = members; m < members + n; m++) {
        m->header = zip->len;
        number(zip, 0x04034b50, 4);
        number(zip, 0, 2 + 2);
        add_facts(zip, m);
        buf_add_str(zip, m->name);
        buf_add(zip, m->data, m->bytes);
    }
    begin = zip->len;
    for (const struct member *m = members; m < members + n; m++) {
        number(zip, 0x02014b50, 4);
        number(zip, 0, 2 + 2 + 2);
        add_facts(zip, m);
        number(zip, 0, 2 + 2 + 2 + 4); /* comment, disk, attributes */
        number(zip, m->header, 4);
        buf_add_str(zip, m->name);
    }
    size_t bytes = zip->len - begin;
    number(zip, 0x06054b50, 4);
    number(zip, 0, 2 + 2);
    number(zip, n, 2);
    number(zip, n, 2);
    number(zip, bytes, 4);
    number(zip, begin, 4);
    number(zip, 0, 2);
}

static void use(struct torch_bin *bin, size_t file_bytes)
{
    for (int64_t i = 0; i < bin->n_tensors; i++) {
        const struct torch_tensor *t = &bin->tensors[i];
        size_t size = dtype_size(t->dtype), n = (size_t)t->elements;
        char *whole, *part;

        if (n > file_bytes || torch_bin_find(bin, t->name) != t)
            abort();
        whole = xmalloc(n * size + 1);
        part = xmalloc(n * size + 1);
        if (torch_bin_read(bin, t, 0, t->elements, whole, NULL) != 0)
            abort();
        /* A part of a tensor is that part of the whole. */
        if (torch_bin_read(bin, t, t->elements / 3, t->elements - t->elements / 3, part, NULL) != 0)
            abort();
        if (memcmp(part, whole + n / 3 * size, (n - n / 3) * size) != 0)
            abort();
        free(whole);
        free(part);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char storage[64] =
        "The first storage, of 64 bytes, and what follows it in a file.";
    struct member members[] = {{.name = "m/data.pkl", .data = data, .bytes = n},
                               {.name = "m/data/0", .data = storage, .bytes = sizeof(storage)},
                               {.name = "m/data/1", .data = storage, .bytes = 10}};
    struct torch_bin bin = {.zip = {.fd = -1}};
    struct buf zip = {0};

    if (n >= 2 && memcmp(data, "PK", 2) == 0)
        buf_add(&zip, data, n);
    else
        make_archive(&zip, members, 3);
    if (torch_bin_open(fuzz_file("pytorch_model.bin", (const uint8_t *)zip.data, zip.len), &bin,
                       NULL) == 0) {
        use(&bin, zip.len);
        torch_bin_close(&bin);
    }
    buf_fini(&zip);
    return 0;
}
