#include "worker/text/parquet_decode.h"

#include <string.h>

enum {
    MAX_DELTA_BLOCK = 1 << 20,
    MAX_TEXT = 64 << 20, /* of a value that is put together from a prefix and a suffix */
};

/* The bits [bit, bit + width) of bytes that end at `end`; width at most 64. False behind the end.
 */
static bool take_bits(const unsigned char *bytes, const unsigned char *end, size_t bit, int width,
                      uint64_t *out)
{
    size_t from = bit / 8, to = (bit + (size_t)width + 7) / 8;
    uint64_t value = 0;

    if (to > (size_t)(end - bytes))
        return false;
    if (width <= 56 && from + 8 <= (size_t)(end - bytes)) { /* one load */
        memcpy(&value, bytes + from, 8);
        value >>= bit % 8;
    } else {
        int have = -(int)(bit % 8);
        for (size_t i = from; i < to; i++, have += 8)
            value |= have < 0 ? (uint64_t)bytes[i] >> -have : (uint64_t)bytes[i] << have;
    }
    *out = width == 64 ? value : value & ((UINT64_C(1) << width) - 1);
    return true;
}

/* --- runs and bit-packed groups --- */

void parquet_rle_init(struct parquet_rle *r, const unsigned char *bytes, size_t n, int width)
{
    *r = (struct parquet_rle){.in = bytes_of(bytes, n), .width = width};
}

static bool begin_run(struct parquet_rle *r)
{
    uint64_t head, value;

    if (r->packed) { /* pass over the group that is done */
        size_t used = (r->bit + 7) / 8;
        r->in.at += used < bytes_left(&r->in) ? used : bytes_left(&r->in);
        r->packed = false;
    }
    if (r->in.at == r->in.end || !bytes_take_varint(&r->in, &head) || head >> 1 == 0 ||
        head >> 1 > INT32_MAX)
        return false;
    r->packed = head & 1;
    r->bit = 0;
    r->left = (int64_t)(head >> 1) * (r->packed ? 8 : 1);
    if (r->packed)
        return true; /* a last group may be cut short: bits are checked as they are taken */
    if (!bytes_take_number(&r->in, (size_t)(r->width + 7) / 8, &value))
        return false;
    r->value = (uint32_t)value;
    return r->width == 32 || r->value >> r->width == 0;
}

bool parquet_rle_next(struct parquet_rle *r, uint32_t *value)
{
    uint64_t bits;

    if (r->left == 0 && !begin_run(r))
        return false;
    r->left--;
    if (!r->packed) {
        *value = r->value;
        return true;
    }
    if (!take_bits(r->in.at, r->in.end, r->bit, r->width, &bits))
        return false;
    r->bit += (size_t)r->width;
    *value = (uint32_t)bits;
    return true;
}

/* --- deltas --- */

bool parquet_delta_init(struct parquet_delta *d, const unsigned char *bytes, size_t n)
{
    uint64_t total;

    *d = (struct parquet_delta){.in = bytes_of(bytes, n), .first = true};
    if (!bytes_take_varint(&d->in, &d->block) || !bytes_take_varint(&d->in, &d->miniblocks) ||
        !bytes_take_varint(&d->in, &total) || !bytes_take_zigzag(&d->in, &d->value))
        return false;
    if (d->block == 0 || d->block > MAX_DELTA_BLOCK || d->miniblocks == 0 ||
        d->miniblocks > d->block || d->block % d->miniblocks != 0 || total > INT32_MAX)
        return false;
    d->per_miniblock = d->block / d->miniblocks;
    d->miniblock = d->miniblocks;
    d->left = (int64_t)total;
    return d->per_miniblock % 8 == 0;
}

/* Go on to the next miniblock, and where that was the last one to the next block. */
static bool begin_miniblock(struct parquet_delta *d)
{
    size_t used = d->bit / 8; /* a miniblock has a multiple of 8 values */

    d->in.at += used < bytes_left(&d->in) ? used : bytes_left(&d->in);
    d->bit = 0;
    if (d->miniblock == d->miniblocks) {
        if (!bytes_take_zigzag(&d->in, &d->min_delta) || d->miniblocks > bytes_left(&d->in))
            return false;
        d->widths = d->in.at;
        d->in.at += d->miniblocks;
        d->miniblock = 0;
    }
    d->width = d->widths[d->miniblock++];
    d->in_miniblock = d->per_miniblock;
    return d->width <= 64;
}

bool parquet_delta_next(struct parquet_delta *d, int64_t *value)
{
    uint64_t bits;

    if (d->left == 0)
        return false;
    d->left--;
    if (d->first) {
        d->first = false;
        *value = d->value;
        return true;
    }
    if (d->in_miniblock == 0 && !begin_miniblock(d))
        return false;
    if (!take_bits(d->in.at, d->in.end, d->bit, d->width, &bits))
        return false;
    d->bit += (size_t)d->width;
    d->in_miniblock--;
    d->value = (int64_t)((uint64_t)d->value + (uint64_t)d->min_delta + bits);
    *value = d->value;
    return true;
}

const unsigned char *parquet_delta_end(const struct parquet_delta *d)
{
    struct parquet_delta all = *d;
    int64_t value;

    while (all.left > 0)
        if (!parquet_delta_next(&all, &value))
            return NULL;
    /* The last miniblock is written whole. */
    size_t rest = (all.bit + (size_t)all.width * (size_t)all.in_miniblock) / 8;
    return rest <= (size_t)(all.in.end - all.in.at) ? all.in.at + rest : NULL;
}

/* --- pages --- */

static size_t value_bytes(enum parquet_type type)
{
    switch (type) {
    case PARQUET_INT32:
    case PARQUET_FLOAT:
        return 4;
    case PARQUET_INT64:
    case PARQUET_DOUBLE:
        return 8;
    default:
        return 0;
    }
}

static bool init_delta(struct parquet_decoder *d, size_t bytes_n)
{
    const unsigned char *end;

    if (!parquet_delta_init(&d->delta, d->in.at, bytes_n))
        return false;
    if (d->encoding == PARQUET_DELTA_BINARY_PACKED)
        return d->type == PARQUET_INT32 || d->type == PARQUET_INT64;
    if (d->type != PARQUET_BYTES || !(end = parquet_delta_end(&d->delta)))
        return false;
    if (d->encoding == PARQUET_DELTA_BYTES) { /* prefixes' lengths, then suffixes with theirs */
        d->prefixes = d->delta;
        if (!parquet_delta_init(&d->delta, end, (size_t)(d->in.end - end)) ||
            !(end = parquet_delta_end(&d->delta)))
            return false;
    }
    d->in.at = end;
    return true;
}

bool parquet_decoder_init(struct parquet_decoder *d, enum parquet_encoding encoding,
                          enum parquet_type type, const unsigned char *bytes, size_t bytes_n,
                          int64_t n)
{
    struct buf last = d->last;

    buf_clear(&last);
    *d = (struct parquet_decoder){.encoding = encoding,
                                  .type = type,
                                  .start = bytes,
                                  .in = bytes_of(bytes, bytes_n),
                                  .n = n,
                                  .last = last};
    switch (encoding) {
    case PARQUET_PLAIN:
        return true;
    case PARQUET_RLE: {
        uint32_t length;
        if (type != PARQUET_BOOLEAN || bytes_n < 4)
            return false;
        memcpy(&length, bytes, 4);
        if (length > bytes_n - 4)
            return false;
        parquet_rle_init(&d->rle, bytes + 4, length, 1);
        return true;
    }
    case PARQUET_DELTA_BINARY_PACKED:
    case PARQUET_DELTA_LENGTH_BYTES:
    case PARQUET_DELTA_BYTES:
        return n == 0 || init_delta(d, bytes_n);
    case PARQUET_BYTE_STREAM_SPLIT:
        return value_bytes(type) > 0 && n >= 0 && (uint64_t)n == bytes_n / value_bytes(type) &&
               bytes_n % value_bytes(type) == 0;
    default:
        return false;
    }
}

void parquet_decoder_fini(struct parquet_decoder *d)
{
    buf_fini(&d->last);
    memset(d, 0, sizeof(*d));
}

static void set_number(enum parquet_type type, const unsigned char *bytes,
                       struct parquet_value *out)
{
    int32_t i;
    float f;

    switch (type) {
    case PARQUET_INT32:
        memcpy(&i, bytes, 4);
        out->i = i;
        return;
    case PARQUET_FLOAT:
        memcpy(&f, bytes, 4);
        out->d = f;
        return;
    case PARQUET_DOUBLE:
        memcpy(&out->d, bytes, 8);
        return;
    default:
        memcpy(&out->i, bytes, 8);
    }
}

static bool next_plain(struct parquet_decoder *d, struct parquet_value *out)
{
    size_t each = value_bytes(d->type), left = bytes_left(&d->in);
    uint64_t bit;
    uint32_t length;

    if (d->type == PARQUET_BOOLEAN) {
        if (!take_bits(d->start, d->in.end, d->bit++, 1, &bit))
            return false;
        out->i = (int64_t)bit;
        return true;
    }
    if (d->type == PARQUET_BYTES) {
        if (left < 4)
            return false;
        memcpy(&length, d->in.at, 4);
        if (length > left - 4)
            return false;
        out->p = (const char *)d->in.at + 4;
        out->n = length;
        d->in.at += 4 + (size_t)length;
        return true;
    }
    if (each == 0 || left < each)
        return false;
    set_number(d->type, d->in.at, out);
    d->in.at += each;
    return true;
}

static bool next_split(struct parquet_decoder *d, struct parquet_value *out)
{
    unsigned char bytes[8];

    for (size_t i = 0; i < value_bytes(d->type); i++)
        bytes[i] = d->start[i * (size_t)d->n + (size_t)d->done];
    set_number(d->type, bytes, out);
    return true;
}

/* The next text of the bytes at d->in.at, whose length the deltas give. */
static bool next_lengthed(struct parquet_decoder *d, struct parquet_value *out)
{
    int64_t length;

    if (!parquet_delta_next(&d->delta, &length) || length < 0 || length > d->in.end - d->in.at)
        return false;
    out->p = (const char *)d->in.at;
    out->n = (size_t)length;
    d->in.at += length;
    return true;
}

static bool next_prefixed(struct parquet_decoder *d, struct parquet_value *out)
{
    int64_t prefix;

    if (!next_lengthed(d, out) || !parquet_delta_next(&d->prefixes, &prefix) || prefix < 0 ||
        (size_t)prefix > d->last.len || out->n > MAX_TEXT - (size_t)prefix)
        return false;
    d->last.len = (size_t)prefix;
    buf_add(&d->last, out->p, out->n);
    out->p = buf_str(&d->last);
    out->n = d->last.len;
    return true;
}

bool parquet_decoder_next(struct parquet_decoder *d, struct parquet_value *out)
{
    uint32_t bit;
    bool ok;

    if (d->done >= d->n)
        return false;
    switch (d->encoding) {
    case PARQUET_PLAIN:
        ok = next_plain(d, out);
        break;
    case PARQUET_RLE:
        ok = parquet_rle_next(&d->rle, &bit);
        out->i = ok ? (int64_t)bit : 0;
        break;
    case PARQUET_DELTA_BINARY_PACKED:
        ok = parquet_delta_next(&d->delta, &out->i);
        if (d->type == PARQUET_INT32)
            out->i = (int32_t)out->i;
        break;
    case PARQUET_DELTA_LENGTH_BYTES:
        ok = next_lengthed(d, out);
        break;
    case PARQUET_DELTA_BYTES:
        ok = next_prefixed(d, out);
        break;
    default:
        ok = next_split(d, out);
    }
    d->done++;
    return ok;
}
