#include "worker/text/parquet_column.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/text/thrift.h"

enum {
    HEADER_BYTES = 1 << 12,     /* read at first; a page's header is small, */
    HEADER_MAX_BYTES = 8 << 20, /* but it may hold statistics of long texts */
};

/* Numbers of the format. */
enum page_type { PAGE_DATA, PAGE_INDEX, PAGE_DICTIONARY, PAGE_DATA_V2 };

struct page {
    enum page_type type;
    int64_t unpacked, packed, values, nulls, rows;
    int64_t encoding, def_encoding, rep_encoding, def_bytes, rep_bytes;
    bool is_compressed, has_crc;
    uint32_t crc;
    size_t header_bytes;
};

/* --- page headers --- */

/* A dictionary's header begins like a data page's, but has no levels. */
static void read_data_header(struct thrift *t, enum thrift_type type, bool levels, struct page *p)
{
    int id = 0;

    if (!thrift_is_struct(t, type))
        return;
    while (thrift_field(t, &id, &type)) {
        if (id == 1)
            p->values = thrift_int(t, type);
        else if (id == 2)
            p->encoding = thrift_int(t, type);
        else if (id == 3 && levels)
            p->def_encoding = thrift_int(t, type);
        else if (id == 4 && levels)
            p->rep_encoding = thrift_int(t, type);
        else
            thrift_skip(t, type);
    }
}

static void read_data_header_v2(struct thrift *t, enum thrift_type type, struct page *p)
{
    int64_t *const fields[] = {NULL,         &p->values,    &p->nulls,    &p->rows,
                               &p->encoding, &p->def_bytes, &p->rep_bytes};
    int id = 0;

    if (!thrift_is_struct(t, type))
        return;
    while (thrift_field(t, &id, &type)) {
        if (id >= 1 && id <= 6)
            *fields[id] = thrift_int(t, type);
        else if (id == 7)
            p->is_compressed = thrift_bool(t, type);
        else
            thrift_skip(t, type);
    }
}

static void read_header(struct thrift *t, struct page *p)
{
    enum thrift_type type;
    int id = 0;

    *p = (struct page){.type = -1,
                       .unpacked = -1,
                       .packed = -1,
                       .values = -1,
                       .encoding = -1,
                       .def_encoding = PARQUET_RLE,
                       .rep_encoding = PARQUET_RLE,
                       .is_compressed = true};
    while (thrift_field(t, &id, &type)) {
        if (id == 1) {
            p->type = (enum page_type)thrift_int(t, type);
        } else if (id == 2) {
            p->unpacked = thrift_int(t, type);
        } else if (id == 3) {
            p->packed = thrift_int(t, type);
        } else if (id == 4) {
            p->crc = (uint32_t)thrift_int(t, type);
            p->has_crc = true;
        } else if (id == 5 || id == 7) {
            read_data_header(t, type, id == 5, p);
        } else if (id == 8) {
            read_data_header_v2(t, type, p);
        } else {
            thrift_skip(t, type);
        }
    }
}

static int find_header(struct parquet_column *c, struct page *p, struct err *err)
{
    struct thrift t = {0};
    void *bytes = NULL;
    int rc = 0;

    for (int64_t n = HEADER_BYTES;; n *= 16) {
        if (n > c->end - c->at)
            n = c->end - c->at;
        free(bytes);
        bytes = xmalloc((size_t)n + 1);
        TRY(fs_pread_all(c->fd, bytes, (size_t)n, c->at, "the Parquet file", err));
        t = (struct thrift){.in = bytes_of(bytes, (size_t)n)};
        read_header(&t, p);
        if (!t.cut || n == c->end - c->at || n > HEADER_MAX_BYTES)
            break;
    }
    p->header_bytes = (size_t)(t.in.at - (unsigned char *)bytes);
    int64_t left = c->end - c->at - (int64_t)p->header_bytes;
    if (t.bad || p->packed < 0 || p->packed > left || p->unpacked < 0)
        rc = parquet_corrupt(err, "a page of column '%.60s' cannot be read", c->node->name);
    else if (p->unpacked > PARQUET_MAX_PAGE || p->packed > PARQUET_MAX_PAGE)
        rc = err_set(err, ERR_INVALID,
                     "a page of column '%.60s' has %" PRId64
                     " bytes, more than 128 MiB; write the Parquet file with smaller pages",
                     c->node->name, p->unpacked > p->packed ? p->unpacked : p->packed);
out:
    free(bytes);
    return rc;
}

/* --- pages --- */

/* The page's bytes, with `plain` bytes in front that are not compressed, into a fresh buffer. */
static int load_page(struct parquet_column *c, const struct page *p, int64_t plain,
                     unsigned char **out, struct err *err)
{
    size_t packed = (size_t)p->packed, unpacked = (size_t)p->unpacked, front = (size_t)plain;
    void *to = NULL;
    int rc = 0;

    *c->budget -= p->unpacked;
    if (*c->budget < 0)
        return err_set(err, ERR_INVALID,
                       "the Parquet file unpacks to too many times its size; write it "
                       "uncompressed if that is meant");
    free(c->packed);
    c->packed = NULL;
    void *from = NULL;
    TRY(alloc_try(&from, packed + 8, 1, "a page of the Parquet file", err));
    c->packed = from;
    TRY(fs_pread_all(c->fd, from, packed, c->at + (int64_t)p->header_bytes, "the Parquet file",
                     err));
    if (p->has_crc && crc32(0, from, (uInt)packed) != p->crc) {
        rc = parquet_corrupt(err, "a page of column '%.60s' has another checksum", c->node->name);
        goto out;
    }
    TRY(alloc_try(&to, unpacked + 8, 1, "a page of the Parquet file", err));
    memcpy(to, from, front);
    TRY(parquet_unpack(p->is_compressed ? c->codec : 0, (unsigned char *)from + front,
                       packed - front, (unsigned char *)to + front, unpacked - front, err));
    *out = to;
    to = NULL;
out:
    free(to);
    return rc;
}

static int bad_page(const struct parquet_column *c, struct err *err)
{
    return parquet_corrupt(err, "the values of column '%.60s' cannot be read", c->node->name);
}

static int load_dictionary(struct parquet_column *c, const struct page *p, struct err *err)
{
    struct parquet_decoder d = {0};
    void *values = NULL;
    int rc = 0;

    if (c->dictionary_bytes || p->values < 0 || p->unpacked > PARQUET_MAX_DICTIONARY ||
        p->values > p->unpacked ||
        (p->encoding != PARQUET_PLAIN && p->encoding != PARQUET_PLAIN_DICTIONARY))
        return parquet_corrupt(err, "column '%.60s' has an impossible dictionary", c->node->name);
    TRY(load_page(c, p, 0, &c->dictionary_bytes, err));
    TRY(alloc_try(&values, (size_t)p->values + 1, sizeof(*c->dictionary), "a dictionary", err));
    c->dictionary = values;
    parquet_decoder_init(&d, PARQUET_PLAIN, c->node->type, c->dictionary_bytes, (size_t)p->unpacked,
                         p->values);
    for (int64_t i = 0; i < p->values; i++) {
        if (!parquet_decoder_next(&d, &c->dictionary[i])) {
            rc = bad_page(c, err);
            goto out;
        }
    }
    c->n_dictionary = p->values;
out:
    parquet_decoder_fini(&d);
    return rc;
}

static int bits_for(int most)
{
    int bits = 0;

    while (most >> bits)
        bits++;
    return bits;
}

/* Levels of a data page of the first kind, behind their length. */
static bool take_levels(const unsigned char **at, const unsigned char *end, int most,
                        struct parquet_rle *out)
{
    uint32_t n;

    if (most == 0)
        return true;
    if (end - *at < 4)
        return false;
    memcpy(&n, *at, 4);
    if (n > (size_t)(end - *at) - 4)
        return false;
    parquet_rle_init(out, *at + 4, n, bits_for(most));
    *at += 4 + (size_t)n;
    return true;
}

/* How many of a page's entries are not null stands in pages of the second kind only; where a
 * decoder must know it, the bytes say. */
static int64_t count_values(const struct parquet_column *c, const struct page *p, int64_t bytes)
{
    if (bytes == 0)
        return 0;
    if (p->encoding != PARQUET_BYTE_STREAM_SPLIT)
        return p->values - p->nulls;
    return bytes / (c->node->type == PARQUET_INT32 || c->node->type == PARQUET_FLOAT ? 4 : 8);
}

static int set_values(struct parquet_column *c, const struct page *p, const unsigned char *at,
                      const unsigned char *end, struct err *err)
{
    c->by_index = p->encoding == PARQUET_RLE_DICTIONARY || p->encoding == PARQUET_PLAIN_DICTIONARY;
    if (c->by_index && at == end) { /* nothing but nulls */
        parquet_rle_init(&c->indexes, at, 0, 0);
        return 0;
    }
    if (c->by_index) {
        if (!c->dictionary || *at > 32)
            return bad_page(c, err);
        parquet_rle_init(&c->indexes, at + 1, (size_t)(end - at - 1), *at);
        return 0;
    }
    if (p->encoding < 0 || p->encoding > PARQUET_BYTE_STREAM_SPLIT ||
        !parquet_decoder_init(&c->plain, (enum parquet_encoding)p->encoding, c->node->type, at,
                              (size_t)(end - at), count_values(c, p, end - at)))
        return bad_page(c, err);
    return 0;
}

static int load_data(struct parquet_column *c, const struct page *p, struct err *err)
{
    bool v2 = p->type == PAGE_DATA_V2;
    int64_t levels = v2 ? p->def_bytes + p->rep_bytes : 0;
    const unsigned char *at, *end;

    if (p->values < 0 || p->values > c->values || p->def_bytes < 0 || p->rep_bytes < 0 ||
        p->def_bytes > p->packed || p->rep_bytes > p->packed || levels > p->packed ||
        levels > p->unpacked || p->nulls < 0 || p->nulls > p->values)
        return bad_page(c, err);
    if (p->def_encoding != PARQUET_RLE || p->rep_encoding != PARQUET_RLE)
        return err_set(
            err, ERR_UNSUPPORTED,
            "the levels of column '%.60s' are bit-packed, as very old writers did; write "
            "the Parquet file again",
            c->node->name);
    free(c->page);
    c->page = NULL;
    int rc = load_page(c, p, levels, &c->page, err);
    if (rc != 0)
        return rc;
    at = c->page;
    end = at + p->unpacked;
    if (v2) {
        parquet_rle_init(&c->reps, at, (size_t)p->rep_bytes, bits_for(c->node->rep));
        parquet_rle_init(&c->defs, at + p->rep_bytes, (size_t)p->def_bytes, bits_for(c->node->def));
        at += levels;
    } else if (!take_levels(&at, end, c->node->rep, &c->reps) ||
               !take_levels(&at, end, c->node->def, &c->defs)) {
        return bad_page(c, err);
    }
    c->values -= p->values;
    c->in_page = p->values;
    return set_values(c, p, at, end, err);
}

/* Read pages until one with entries is at hand, or the chunk is at its end. */
static int next_page(struct parquet_column *c, struct err *err)
{
    struct page p;
    int rc = 0;

    while (c->in_page == 0 && c->values > 0) {
        if (c->at >= c->end)
            return parquet_corrupt(err, "column '%.60s' ends too early", c->node->name);
        TRY(find_header(c, &p, err));
        if (p.type == PAGE_DICTIONARY)
            TRY(load_dictionary(c, &p, err));
        else if (p.type == PAGE_DATA || p.type == PAGE_DATA_V2)
            TRY(load_data(c, &p, err));
        c->at += (int64_t)p.header_bytes + p.packed;
    }
out:
    return rc;
}

void parquet_column_begin(struct parquet_column *c, const struct parquet_chunk *chunk)
{
    free(c->dictionary);
    free(c->dictionary_bytes);
    c->dictionary = NULL;
    c->dictionary_bytes = NULL;
    c->n_dictionary = 0;
    c->codec = chunk->codec;
    c->at = chunk->offset;
    c->end = chunk->offset + chunk->bytes;
    c->values = chunk->values;
    c->in_page = 0;
    c->has_entry = false;
}

void parquet_column_fini(struct parquet_column *c)
{
    free(c->packed);
    free(c->page);
    free(c->dictionary);
    free(c->dictionary_bytes);
    parquet_decoder_fini(&c->plain);
    memset(c, 0, sizeof(*c));
}

/* --- entries --- */

static bool take_value(struct parquet_column *c)
{
    uint32_t index;

    if (!c->by_index)
        return parquet_decoder_next(&c->plain, &c->value);
    if (!parquet_rle_next(&c->indexes, &index) || index >= c->n_dictionary)
        return false;
    c->value = c->dictionary[index];
    return true;
}

int parquet_column_next(struct parquet_column *c, struct err *err)
{
    uint32_t rep = 0, def = 0;
    int rc = 0;

    c->has_entry = false;
    if (c->in_page == 0)
        TRY(next_page(c, err));
    if (c->in_page == 0)
        goto out;
    if ((c->node->rep > 0 && !parquet_rle_next(&c->reps, &rep)) ||
        (c->node->def > 0 && !parquet_rle_next(&c->defs, &def)) || rep > (uint32_t)c->node->rep ||
        def > (uint32_t)c->node->def) {
        rc = parquet_corrupt(err, "the levels of column '%.60s' cannot be read", c->node->name);
        goto out;
    }
    c->rep = (int)rep;
    c->def = (int)def;
    if (c->def == c->node->def && !take_value(c)) {
        rc = bad_page(c, err);
        goto out;
    }
    c->in_page--;
    c->has_entry = true;
out:
    return rc;
}
