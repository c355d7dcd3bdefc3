#include <brotli/decode.h>
#include <lz4.h>
#include <snappy-c.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "worker/text/parquet_column.h"

/* Numbers of the format. */
enum codec {
    CODEC_NONE,
    CODEC_SNAPPY,
    CODEC_GZIP,
    CODEC_LZO,
    CODEC_BROTLI,
    CODEC_LZ4,
    CODEC_ZSTD,
    CODEC_LZ4_RAW
};

static bool unpack_gzip(const unsigned char *from, size_t from_n, unsigned char *to, size_t to_n)
{
    z_stream z = {.next_in = (unsigned char *)from,
                  .avail_in = (uInt)from_n,
                  .next_out = to,
                  .avail_out = (uInt)to_n};

    if (inflateInit2(&z, 15 + 32) != Z_OK) /* 32: gzip or zlib, by the header */
        return false;
    int rc = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return rc == Z_STREAM_END && z.avail_out == 0;
}

static bool unpack_snappy(const unsigned char *from, size_t from_n, unsigned char *to, size_t to_n)
{
    size_t n = to_n, stated;

    return snappy_uncompressed_length((const char *)from, from_n, &stated) == SNAPPY_OK &&
           stated == to_n &&
           snappy_uncompress((const char *)from, from_n, (char *)to, &n) == SNAPPY_OK && n == to_n;
}

/* Its window is at most 16 MiB: what it unpacks to is bounded, and so is what it takes meanwhile.
 */
static bool unpack_brotli(const unsigned char *from, size_t from_n, unsigned char *to, size_t to_n)
{
    size_t n = to_n;

    return BrotliDecoderDecompress(from_n, from, &n, to) == BROTLI_DECODER_RESULT_SUCCESS &&
           n == to_n;
}

int parquet_unpack(int codec, const unsigned char *from, size_t from_n, unsigned char *to,
                   size_t to_n, struct err *err)
{
    bool ok = false;

    switch (codec) {
    case CODEC_NONE:
        ok = from_n == to_n;
        if (ok && to_n > 0)
            memcpy(to, from, to_n);
        break;
    case CODEC_SNAPPY:
        ok = unpack_snappy(from, from_n, to, to_n);
        break;
    case CODEC_GZIP:
        ok = unpack_gzip(from, from_n, to, to_n);
        break;
    case CODEC_ZSTD:
        ok = ZSTD_decompress(to, to_n, from, from_n) == to_n;
        break;
    case CODEC_BROTLI:
        ok = unpack_brotli(from, from_n, to, to_n);
        break;
    case CODEC_LZ4_RAW:
        ok = LZ4_decompress_safe((const char *)from, (char *)to, (int)from_n, (int)to_n) ==
             (int)to_n;
        break;
    default:
        return err_set(err, ERR_UNSUPPORTED,
                       "the Parquet file is compressed with %s; write it with zstd, snappy, gzip, "
                       "brotli, lz4_raw or uncompressed",
                       codec == CODEC_LZO   ? "LZO"
                       : codec == CODEC_LZ4 ? "the old LZ4 framing"
                                            : "an unknown codec");
    }
    return ok ? 0 : parquet_corrupt(err, "a page does not unpack to the size it states");
}
