#include "worker/text/decode.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/bpe.h"

static int check(const json_t *decoder, int nesting, int *byte_levels, struct err *err)
{
    const char *type = json_string_value(json_object_get(decoder, "type"));
    const json_t *inner = json_object_get(decoder, "decoders");
    int rc = 0;

    if (type && strcmp(type, "ByteLevel") == 0 && ++*byte_levels == 1)
        return 0;
    if (type && strcmp(type, "Sequence") == 0 && nesting == 0) {
        for (size_t i = 0; rc == 0 && i < json_array_size(inner); i++)
            rc = check(json_array_get(inner, i), 1, byte_levels, err);
        if (rc != 0 || *byte_levels > 0)
            return rc;
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "this tokenizer's decoder %.60s is not supported; supported is ByteLevel",
                   type ? type : "(there is none)");
}

int decode_check(const json_t *decoder, struct err *err)
{
    int byte_levels = 0;

    return check(decoder, 0, &byte_levels, err);
}

int decode_table_init(struct decode_table *t, int64_t n_ids, struct err *err)
{
    void *offset = NULL, *length = NULL, *special = NULL;
    int rc = 0;

    TRY(alloc_try(&offset, (size_t)n_ids, sizeof(*t->offset), "the decoder's table", err));
    TRY(alloc_try(&length, (size_t)n_ids, sizeof(*t->length), "the decoder's table", err));
    TRY(alloc_try(&special, (size_t)n_ids, sizeof(*t->special), "the decoder's table", err));
    *t = (struct decode_table){
        .offset = offset, .length = length, .special = special, .n_ids = n_ids};
    return 0;
out:
    free(offset);
    free(length);
    free(special);
    return rc;
}

void decode_table_fini(struct decode_table *t)
{
    buf_fini(&t->bytes);
    free(t->offset);
    free(t->length);
    free(t->special);
    memset(t, 0, sizeof(*t));
}

int decode_table_set(struct decode_table *t, int32_t id, const char *token, size_t n, bool special,
                     struct err *err)
{
    size_t start = t->bytes.len;

    if (start + n > UINT32_MAX)
        return err_set(err, ERR_INVALID, "the tokenizer's tokens are too long");
    /* A token that is not written in the byte alphabet stands for itself. */
    if (!bpe_token_to_bytes(token, n, &t->bytes))
        buf_add(&t->bytes, token, n);
    t->offset[id] = (uint32_t)start;
    t->length[id] = (uint32_t)(t->bytes.len - start);
    t->special[id] = special;
    return 0;
}
