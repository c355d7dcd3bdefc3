#include "worker/text/thrift.h"

#include <string.h>

static void run_out(struct thrift *t)
{
    t->bad = t->cut = true;
}

/* A number could not be read: it ends with the bytes, or not at all. */
static void failed(struct thrift *t)
{
    t->bad = true;
    t->cut = t->in.at == t->in.end;
}

static unsigned next_byte(struct thrift *t)
{
    if (t->bad || t->in.at == t->in.end) {
        if (!t->bad)
            run_out(t);
        return 0;
    }
    return *t->in.at++;
}

static uint64_t varint(struct thrift *t)
{
    uint64_t value = 0;

    if (!t->bad && !bytes_take_varint(&t->in, &value))
        failed(t);
    return value;
}

static int64_t zigzag(struct thrift *t)
{
    int64_t value = 0;

    if (!t->bad && !bytes_take_zigzag(&t->in, &value))
        failed(t);
    return value;
}

bool thrift_field(struct thrift *t, int *id, enum thrift_type *type)
{
    unsigned head = next_byte(t);

    if (t->bad || head == THRIFT_STOP)
        return false;
    *type = (enum thrift_type)(head & 15);
    if (*type == THRIFT_STOP || *type > THRIFT_STRUCT) {
        t->bad = true;
        return false;
    }
    if (head >> 4)
        *id += (int)(head >> 4);
    else
        *id = (int)(int16_t)zigzag(t);
    return !t->bad;
}

int64_t thrift_int(struct thrift *t, enum thrift_type type)
{
    if (type == THRIFT_BYTE)
        return (int8_t)next_byte(t);
    if (type < THRIFT_I16 || type > THRIFT_I64) {
        t->bad = true;
        return 0;
    }
    return zigzag(t);
}

bool thrift_bool(struct thrift *t, enum thrift_type type)
{
    t->bad |= type != THRIFT_TRUE && type != THRIFT_FALSE;
    return type == THRIFT_TRUE;
}

const char *thrift_binary(struct thrift *t, enum thrift_type type, size_t *n)
{
    uint64_t length = type == THRIFT_BINARY ? varint(t) : 0;
    const char *start = (const char *)t->in.at;

    *n = 0;
    t->bad |= type != THRIFT_BINARY;
    if (t->bad)
        return NULL;
    if (length > bytes_left(&t->in)) {
        run_out(t);
        return NULL;
    }
    t->in.at += length;
    *n = (size_t)length;
    return start;
}

/* Head of a list or set. */
static int64_t list_head(struct thrift *t, enum thrift_type *element)
{
    unsigned head = next_byte(t);
    uint64_t n = head >> 4;

    if (n == 15)
        n = varint(t);
    *element = (enum thrift_type)(head & 15);
    if (n > bytes_left(&t->in)) {
        run_out(t);
        n = 0;
    }
    return t->bad ? 0 : (int64_t)n;
}

int64_t thrift_list(struct thrift *t, enum thrift_type type, enum thrift_type element)
{
    enum thrift_type found = element;
    int64_t n = 0;

    t->bad |= type != THRIFT_LIST;
    if (!t->bad)
        n = list_head(t, &found);
    t->bad |= n > 0 && found != element;
    return t->bad ? 0 : n;
}

bool thrift_is_struct(struct thrift *t, enum thrift_type type)
{
    t->bad |= type != THRIFT_STRUCT;
    return !t->bad;
}

static void skip(struct thrift *t, enum thrift_type type, bool in_list, int depth);

static void skip_elements(struct thrift *t, enum thrift_type type, int64_t n, int depth)
{
    for (int64_t i = 0; i < n && !t->bad; i++)
        skip(t, type, true, depth);
}

static void skip_map(struct thrift *t, int depth)
{
    uint64_t n = varint(t);
    unsigned types = n ? next_byte(t) : 0;

    if (n > bytes_left(&t->in))
        run_out(t);
    for (uint64_t i = 0; i < n && !t->bad; i++) {
        skip(t, (enum thrift_type)(types >> 4), true, depth);
        skip(t, (enum thrift_type)(types & 15), true, depth);
    }
}

static void skip_bytes(struct thrift *t, uint64_t n)
{
    if (!t->bad && n > bytes_left(&t->in))
        run_out(t);
    if (!t->bad)
        t->in.at += n;
}

static void skip(struct thrift *t, enum thrift_type type, bool in_list, int depth)
{
    enum thrift_type inner;
    int id = 0;

    if (depth > THRIFT_MAX_DEPTH)
        t->bad = true;
    if (t->bad)
        return;
    switch (type) {
    case THRIFT_TRUE:
    case THRIFT_FALSE: /* a field's value lies in its type, an element's in a byte */
        skip_bytes(t, in_list);
        return;
    case THRIFT_BYTE:
        skip_bytes(t, 1);
        return;
    case THRIFT_I16:
    case THRIFT_I32:
    case THRIFT_I64:
        varint(t);
        return;
    case THRIFT_DOUBLE:
        skip_bytes(t, 8);
        return;
    case THRIFT_BINARY:
        skip_bytes(t, varint(t));
        return;
    case THRIFT_LIST:
    case THRIFT_SET: {
        int64_t n = list_head(t, &inner);
        skip_elements(t, inner, n, depth + 1);
        return;
    }
    case THRIFT_MAP:
        skip_map(t, depth + 1);
        return;
    case THRIFT_STRUCT:
        while (thrift_field(t, &id, &inner))
            skip(t, inner, false, depth + 1);
        return;
    default:
        t->bad = true;
    }
}

void thrift_skip(struct thrift *t, enum thrift_type type)
{
    skip(t, type, false, 0);
}
