#include "tests/unit/worker/model/torch_maker.h"

#include <string.h>

static void number(struct buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        buf_add_char(b, i < 8 ? (char)(v >> 8 * i) : 0);
}

static void add_local(struct buf *out, const struct made_member *m)
{
    const char *name = m->local_name != NULL ? m->local_name : m->name;
    size_t bytes = (m->flags & 8) != 0 ? 0 : m->bytes;

    number(out, 0x04034b50, 4);
    number(out, 20, 2);
    number(out, m->flags, 2);
    number(out, m->local_method, 2);
    number(out, 0, 8); /* time, date, checksum */
    number(out, bytes, 4);
    number(out, bytes, 4);
    number(out, strlen(name), 2);
    number(out, 3, 2);
    buf_add_str(out, name);
    buf_add(out, "pad", 3);
    buf_add(out, m->data, m->bytes);
}

static void add_central(struct buf *out, const struct made_member *m, size_t header)
{
    size_t bytes = m->claimed > 0 ? m->claimed : m->bytes;

    header = m->header > 0 ? m->header : header;
    number(out, 0x02014b50, 4);
    number(out, 20, 2);
    number(out, 20, 2);
    number(out, m->flags, 2);
    number(out, m->method, 2);
    number(out, 0, 8);
    number(out, m->zip64 ? 0xFFFFFFFF : bytes, 4);
    number(out, m->zip64 ? 0xFFFFFFFF : bytes, 4);
    number(out, strlen(m->name), 2);
    number(out, m->zip64 ? 4 + 5 + 4 + 24 : 0, 2);
    number(out, 0, 10); /* comment, disk, attributes */
    number(out, m->zip64 ? 0xFFFFFFFF : header, 4);
    buf_add_str(out, m->name);
    if (m->zip64) {
        number(out, 77, 2); /* a field that nobody knows, in front */
        number(out, 5, 2);
        buf_add(out, "dummy", 5);
        number(out, 1, 2);
        number(out, 24, 2);
        number(out, bytes, 8);
        number(out, bytes, 8);
        number(out, header, 8);
    }
}

void torch_make_zip(struct buf *out, const struct made_member *members, size_t n, bool zip64_end)
{
    size_t headers[64], begin, bytes;

    for (size_t i = 0; i < n; i++) {
        headers[i] = out->len;
        add_local(out, &members[i]);
    }
    begin = out->len;
    for (size_t i = 0; i < n; i++)
        add_central(out, &members[i], headers[i]);
    bytes = out->len - begin;
    if (zip64_end) {
        size_t at = out->len;

        number(out, 0x06064b50, 4);
        number(out, 44, 8);
        number(out, 45, 2);
        number(out, 45, 2);
        number(out, 0, 8);
        number(out, n, 8);
        number(out, n, 8);
        number(out, bytes, 8);
        number(out, begin, 8);
        number(out, 0x07064b50, 4);
        number(out, 0, 4);
        number(out, at, 8);
        number(out, 1, 4);
    }
    number(out, 0x06054b50, 4);
    number(out, 0, 4);
    number(out, zip64_end ? 0xFFFF : n, 2);
    number(out, zip64_end ? 0xFFFF : n, 2);
    number(out, zip64_end ? 0xFFFFFFFF : bytes, 4);
    number(out, zip64_end ? 0xFFFFFFFF : begin, 4);
    number(out, 0, 2);
}

void torch_pickle_open(struct buf *p)
{
    buf_add(p, "\x80\x02}(", 4);
}

void torch_pickle_close(struct buf *p)
{
    buf_add_str(p, "u.");
}

void torch_pickle_string(struct buf *p, const char *s)
{
    buf_add_char(p, 'X');
    number(p, strlen(s), 4);
    buf_add_str(p, s);
}

void torch_pickle_int(struct buf *p, int64_t v)
{
    buf_add(p, "\x8a\x08", 2);
    number(p, (uint64_t)v, 8);
}

static void counts(struct buf *p, int rank, const int64_t *v)
{
    buf_add_char(p, '(');
    for (int i = 0; i < rank; i++)
        torch_pickle_int(p, v[i]);
    buf_add_char(p, 't');
}

void torch_pickle_tensor(struct buf *p, const char *name, const char *storage_type,
                         int64_t storage_elements, int64_t offset, int rank, const int64_t *shape,
                         const int64_t *stride)
{
    torch_pickle_string(p, name);
    buf_add_str(p, "ctorch._utils\n_rebuild_tensor_v2\n((");
    torch_pickle_string(p, "storage");
    buf_printf(p, "ctorch\n%s\n", storage_type);
    torch_pickle_string(p, "0");
    torch_pickle_string(p, "cpu");
    torch_pickle_int(p, storage_elements);
    buf_add_str(p, "tQ");
    torch_pickle_int(p, offset);
    counts(p, rank, shape);
    counts(p, rank, stride);
    buf_add_str(p, "\x89"
                   "ccollections\nOrderedDict\n)RtR");
}
