#include "worker/model/torch_pickle.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bytes.h"

/* Far above any model's: every value, memo slot and stack place costs the reader memory. */
enum { MAX_VALUES = 1 << 20, MAX_MEMO = 1 << 20, MAX_STACK = 1 << 16, MAX_STRING = 4096 };

enum opcode {
    OP_MARK = '(',
    OP_STOP = '.',
    OP_GLOBAL = 'c',
    OP_REDUCE = 'R',
    OP_BUILD = 'b',
    OP_NONE = 'N',
    OP_BININT = 'J',
    OP_BININT1 = 'K',
    OP_BININT2 = 'M',
    OP_BINUNICODE = 'X',
    OP_BINPERSID = 'Q',
    OP_BINGET = 'h',
    OP_LONG_BINGET = 'j',
    OP_BINPUT = 'q',
    OP_LONG_BINPUT = 'r',
    OP_EMPTY_TUPLE = ')',
    OP_TUPLE = 't',
    OP_EMPTY_DICT = '}',
    OP_SETITEM = 's',
    OP_SETITEMS = 'u',
    OP_PROTO = 0x80,
    OP_TUPLE1 = 0x85,
    OP_TUPLE2 = 0x86,
    OP_TUPLE3 = 0x87,
    OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89,
    OP_LONG1 = 0x8a,
};

enum value_kind {
    VALUE_MARK,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_STRING,
    VALUE_TUPLE,
    VALUE_DICT, /* keys and values by turns */
    VALUE_GLOBAL,
    VALUE_STORAGE, /* number: the tuple that names it */
    VALUE_TENSOR,  /* number: the tuple of arguments  */
};

enum callable { CALL_ORDERED_DICT, CALL_TENSOR, CALL_PARAMETER, CALL_STORAGE };

static const struct {
    const char *module, *name;
    enum callable callable;
    enum dtype dtype; /* of storages */
} globals[] = {
    {"collections", "OrderedDict", CALL_ORDERED_DICT, DT_F32},
    {"torch._utils", "_rebuild_tensor_v2", CALL_TENSOR, DT_F32},
    {"torch._utils", "_rebuild_parameter", CALL_PARAMETER, DT_F32},
    {"torch", "DoubleStorage", CALL_STORAGE, DT_F64},
    {"torch", "FloatStorage", CALL_STORAGE, DT_F32},
    {"torch", "HalfStorage", CALL_STORAGE, DT_F16},
    {"torch", "BFloat16Storage", CALL_STORAGE, DT_BF16},
    {"torch", "LongStorage", CALL_STORAGE, DT_I64},
    {"torch", "IntStorage", CALL_STORAGE, DT_I32},
    {"torch", "CharStorage", CALL_STORAGE, DT_I8},
    {"torch", "ByteStorage", CALL_STORAGE, DT_U8},
    {"torch", "BoolStorage", CALL_STORAGE, DT_BOOL},
};
enum { N_GLOBALS = sizeof(globals) / sizeof(globals[0]) };

struct value {
    enum value_kind kind;
    int64_t number;   /* bool, int; global: its row; storage and tensor: a value */
    const char *text; /* string: borrowed from the pickle, not terminated */
    size_t length;
    int32_t *items; /* tuple, dict: indices of values */
    size_t n_items, cap;
};

struct machine {
    struct bytes in;
    struct value *values;
    size_t n_values, cap_values;
    int32_t *stack;
    size_t n_stack;
    int32_t *memo; /* -1 = empty */
    size_t n_memo;
    struct err *err;
};

static int broken(struct machine *m, const char *what)
{
    return err_set(m->err, ERR_CORRUPT, "its pickle %s; download it again", what);
}

static int foreign(struct machine *m, const char *what)
{
    return err_set(m->err, ERR_UNSUPPORTED,
                   "its pickle %s, which files of weights alone do not; convert the model to "
                   "safetensors",
                   what);
}

static int take_bytes(struct machine *m, size_t n, const unsigned char **out)
{
    return bytes_take(&m->in, n, out) ? 0 : broken(m, "ends early");
}

static int take_number(struct machine *m, size_t bytes, uint64_t *out)
{
    return bytes_take_number(&m->in, bytes, out) ? 0 : broken(m, "ends early");
}

static int push_index(struct machine *m, int32_t value)
{
    if (m->n_stack == MAX_STACK)
        return broken(m, "fills its stack");
    m->stack[m->n_stack++] = value;
    return 0;
}

static int push(struct machine *m, struct value v)
{
    int rc = 0;

    if (m->n_values == MAX_VALUES) {
        rc = broken(m, "holds too many values");
        goto out;
    }
    if (m->n_values == m->cap_values) {
        m->cap_values = m->cap_values > 0 ? 2 * m->cap_values : 256;
        m->values = xrealloc(m->values, m->cap_values * sizeof(*m->values));
    }
    TRY(push_index(m, (int32_t)m->n_values));
    m->values[m->n_values++] = v;
    return 0;
out:
    free(v.items);
    return rc;
}

static struct value *value_at(const struct machine *m, int32_t index)
{
    return &m->values[index];
}

/* The value on top, which must not be a mark. */
static int pop(struct machine *m, int32_t *out)
{
    if (m->n_stack == 0 || value_at(m, m->stack[m->n_stack - 1])->kind == VALUE_MARK)
        return broken(m, "takes from an empty stack");
    *out = m->stack[--m->n_stack];
    return 0;
}

/* Where the values above the last mark begin. */
static int find_mark(struct machine *m, size_t *first)
{
    for (size_t i = m->n_stack; i-- > 0;) {
        if (value_at(m, m->stack[i])->kind == VALUE_MARK) {
            *first = i + 1;
            return 0;
        }
    }
    return broken(m, "lacks a mark");
}

static void add_items(struct value *v, const int32_t *items, size_t n)
{
    if (v->n_items + n > v->cap) {
        v->cap = 2 * v->cap > v->n_items + n ? 2 * v->cap : v->n_items + n;
        v->items = xrealloc(v->items, v->cap * sizeof(*v->items));
    }
    if (n > 0)
        memcpy(v->items + v->n_items, items, n * sizeof(*items));
    v->n_items += n;
}

/* The top n values become one tuple. */
static int make_tuple(struct machine *m, size_t n)
{
    struct value v = {.kind = VALUE_TUPLE};

    for (size_t i = 0; i < n; i++) {
        if (m->n_stack <= i || value_at(m, m->stack[m->n_stack - 1 - i])->kind == VALUE_MARK)
            return broken(m, "takes from an empty stack");
    }
    add_items(&v, m->stack + m->n_stack - n, n);
    m->n_stack -= n;
    return push(m, v);
}

static int op_tuple(struct machine *m)
{
    struct value v = {.kind = VALUE_TUPLE};
    size_t first = 0;
    int rc = find_mark(m, &first);

    if (rc != 0)
        return rc;
    add_items(&v, m->stack + first, m->n_stack - first);
    m->n_stack = first - 1;
    return push(m, v);
}

static int op_setitems(struct machine *m, size_t first, size_t below)
{
    struct value *dict;

    if (below < 1 || (m->n_stack - first) % 2 != 0)
        return broken(m, "sets half an item");
    dict = value_at(m, m->stack[below - 1]);
    if (dict->kind != VALUE_DICT)
        return broken(m, "sets items of something that is no dictionary");
    add_items(dict, m->stack + first, m->n_stack - first);
    m->n_stack = below;
    return 0;
}

static int op_global(struct machine *m)
{
    const char *line[2];
    size_t length[2];

    for (int i = 0; i < 2; i++) {
        const unsigned char *end = memchr(m->in.at, '\n', bytes_left(&m->in));

        if (end == NULL || end - m->in.at > MAX_STRING)
            return broken(m, "ends early");
        line[i] = (const char *)m->in.at;
        length[i] = (size_t)(end - m->in.at);
        m->in.at = end + 1;
    }
    for (int i = 0; i < N_GLOBALS; i++) {
        if (strlen(globals[i].module) == length[0] && strlen(globals[i].name) == length[1] &&
            memcmp(globals[i].module, line[0], length[0]) == 0 &&
            memcmp(globals[i].name, line[1], length[1]) == 0)
            return push(m, (struct value){.kind = VALUE_GLOBAL, .number = i});
    }
    return err_set(m->err, ERR_UNSUPPORTED,
                   "its pickle asks for %.*s.%.*s, which files of weights do not need; nothing of "
                   "it was run. Convert the model to safetensors",
                   length[0] < 60 ? (int)length[0] : 60, line[0],
                   length[1] < 60 ? (int)length[1] : 60, line[1]);
}

static const struct value *item(const struct machine *m, const struct value *v, size_t i)
{
    return value_at(m, v->items[i]);
}

static bool is_storage_global(const struct value *v)
{
    return v->kind == VALUE_GLOBAL && globals[v->number].callable == CALL_STORAGE;
}

/* ("storage", type, key, place, elements) */
static int op_persid(struct machine *m)
{
    const struct value *id;
    int32_t top = 0;
    int rc = pop(m, &top);

    if (rc != 0)
        return rc;
    id = value_at(m, top);
    if (id->kind != VALUE_TUPLE || id->n_items != 5 || item(m, id, 0)->kind != VALUE_STRING ||
        item(m, id, 0)->length != 7 || memcmp(item(m, id, 0)->text, "storage", 7) != 0 ||
        !is_storage_global(item(m, id, 1)) || item(m, id, 2)->kind != VALUE_STRING ||
        item(m, id, 3)->kind != VALUE_STRING || item(m, id, 4)->kind != VALUE_INT)
        return foreign(m, "refers to something that is no storage");
    return push(m, (struct value){.kind = VALUE_STORAGE, .number = top});
}

static bool is_counts(const struct machine *m, const struct value *v)
{
    if (v->kind != VALUE_TUPLE || v->n_items > TORCH_MAX_RANK)
        return false;
    for (size_t i = 0; i < v->n_items; i++) {
        if (item(m, v, i)->kind != VALUE_INT || item(m, v, i)->number < 0)
            return false;
    }
    return true;
}

/* (storage, offset, sizes, strides, requires_grad, hooks) */
static bool is_tensor_args(const struct machine *m, const struct value *args)
{
    return args->n_items == 6 && item(m, args, 0)->kind == VALUE_STORAGE &&
           item(m, args, 1)->kind == VALUE_INT && item(m, args, 1)->number >= 0 &&
           is_counts(m, item(m, args, 2)) && is_counts(m, item(m, args, 3)) &&
           item(m, args, 2)->n_items == item(m, args, 3)->n_items &&
           item(m, args, 4)->kind == VALUE_BOOL && item(m, args, 5)->kind == VALUE_DICT;
}

static int op_reduce(struct machine *m)
{
    const struct value *args, *callable;
    int32_t top = 0, under = 0;
    int rc = 0;

    TRY(pop(m, &top));
    TRY(pop(m, &under));
    args = value_at(m, top);
    callable = value_at(m, under);
    if (callable->kind != VALUE_GLOBAL || args->kind != VALUE_TUPLE)
        return foreign(m, "calls something that is no name");
    switch (globals[callable->number].callable) {
    case CALL_ORDERED_DICT:
        if (args->n_items != 0)
            return foreign(m, "makes a dictionary from something");
        return push(m, (struct value){.kind = VALUE_DICT});
    case CALL_TENSOR:
        if (!is_tensor_args(m, args))
            return foreign(m, "describes a tensor in another way");
        return push(m, (struct value){.kind = VALUE_TENSOR, .number = top});
    case CALL_PARAMETER:
        if (args->n_items != 3 || item(m, args, 0)->kind != VALUE_TENSOR)
            return foreign(m, "describes a parameter in another way");
        return push(m, *item(m, args, 0));
    case CALL_STORAGE:
        break;
    }
    rc = foreign(m, "calls the type of a storage");
out:
    return rc;
}

/* A dictionary's attributes (torch puts _metadata there) are dropped. */
static int op_build(struct machine *m)
{
    int32_t state = 0;
    int rc = pop(m, &state);

    if (rc != 0)
        return rc;
    if (m->n_stack == 0 || value_at(m, m->stack[m->n_stack - 1])->kind != VALUE_DICT)
        return foreign(m, "sets the state of something that is no dictionary");
    return 0;
}

/* The slot's number is the operation's operand, of so many bytes. */
static int op_put(struct machine *m, size_t bytes)
{
    uint64_t slot = 0;
    int32_t top = 0;
    int rc = 0;

    TRY(take_number(m, bytes, &slot));
    if (slot >= MAX_MEMO)
        return broken(m, "asks for a huge memo");
    TRY(pop(m, &top));
    TRY(push_index(m, top));
    if (slot >= m->n_memo) {
        size_t n = slot + 1 > 2 * m->n_memo ? slot + 1 : 2 * m->n_memo;

        m->memo = xrealloc(m->memo, n * sizeof(*m->memo));
        for (size_t i = m->n_memo; i < n; i++)
            m->memo[i] = -1;
        m->n_memo = n;
    }
    m->memo[slot] = top;
out:
    return rc;
}

static int op_get(struct machine *m, size_t bytes)
{
    uint64_t slot = 0;
    int rc = take_number(m, bytes, &slot);

    if (rc != 0)
        return rc;
    if (slot >= m->n_memo || m->memo[slot] < 0)
        return broken(m, "reads a memo that was never written");
    return push_index(m, m->memo[slot]);
}

static int op_string(struct machine *m)
{
    const unsigned char *text = NULL;
    uint64_t n = 0;
    int rc = 0;

    TRY(take_number(m, 4, &n));
    if (n > MAX_STRING)
        TRY(broken(m, "holds a huge string"));
    TRY(take_bytes(m, n, &text));
    if (memchr(text, '\0', n) != NULL)
        TRY(broken(m, "holds a NUL in a string"));
    TRY(push(
        m, (struct value){.kind = VALUE_STRING, .text = (const char *)text, .length = (size_t)n}));
out:
    return rc;
}

static int op_long(struct machine *m)
{
    uint64_t n = 0, v = 0;
    int rc = 0;

    TRY(take_number(m, 1, &n));
    if (n > 8)
        TRY(broken(m, "holds a huge number"));
    TRY(take_number(m, n, &v));
    if (n > 0 && n < 8 && (v >> (8 * n - 1) & 1) != 0)
        v |= UINT64_MAX << (8 * n);
    TRY(push(m, (struct value){.kind = VALUE_INT, .number = (int64_t)v}));
out:
    return rc;
}

static int op_number(struct machine *m, size_t bytes)
{
    uint64_t v = 0;
    int rc = take_number(m, bytes, &v);

    if (rc != 0)
        return rc;
    return push(m,
                (struct value){.kind = VALUE_INT, .number = bytes == 4 ? (int32_t)v : (int64_t)v});
}

static int op_setitem(struct machine *m)
{
    if (m->n_stack < 3)
        return broken(m, "takes from an empty stack");
    return op_setitems(m, m->n_stack - 2, m->n_stack - 2);
}

static int run_op(struct machine *m, int opcode)
{
    size_t mark = 0;
    int rc = 0;

    switch (opcode) {
    case OP_MARK:
        return push(m, (struct value){.kind = VALUE_MARK});
    case OP_GLOBAL:
        return op_global(m);
    case OP_REDUCE:
        return op_reduce(m);
    case OP_BUILD:
        return op_build(m);
    case OP_NONE:
        return push(m, (struct value){.kind = VALUE_NONE});
    case OP_NEWTRUE:
    case OP_NEWFALSE:
        return push(m, (struct value){.kind = VALUE_BOOL, .number = opcode == OP_NEWTRUE});
    case OP_BININT:
        return op_number(m, 4);
    case OP_BININT1:
        return op_number(m, 1);
    case OP_BININT2:
        return op_number(m, 2);
    case OP_LONG1:
        return op_long(m);
    case OP_BINUNICODE:
        return op_string(m);
    case OP_BINPERSID:
        return op_persid(m);
    case OP_BINGET:
    case OP_LONG_BINGET:
        return op_get(m, opcode == OP_BINGET ? 1 : 4);
    case OP_BINPUT:
    case OP_LONG_BINPUT:
        return op_put(m, opcode == OP_BINPUT ? 1 : 4);
    case OP_EMPTY_TUPLE:
        return make_tuple(m, 0);
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        return make_tuple(m, (size_t)(opcode - OP_TUPLE1) + 1);
    case OP_TUPLE:
        return op_tuple(m);
    case OP_EMPTY_DICT:
        return push(m, (struct value){.kind = VALUE_DICT});
    case OP_SETITEM:
        return op_setitem(m);
    case OP_SETITEMS:
        TRY(find_mark(m, &mark));
        return op_setitems(m, mark, mark - 1);
    default:
        return err_set(m->err, ERR_UNSUPPORTED,
                       "its pickle uses the operation 0x%02x, which files of weights do not need; "
                       "nothing of it was run. Convert the model to safetensors",
                       (unsigned)opcode);
    }
out:
    return rc;
}

static int run(struct machine *m)
{
    const unsigned char *p = NULL;
    int rc = 0;

    TRY(take_bytes(m, 2, &p));
    if (p[0] != OP_PROTO || p[1] != 2)
        TRY(foreign(m, "is not of protocol 2"));
    for (;;) {
        TRY(take_bytes(m, 1, &p));
        if (*p == OP_STOP)
            break;
        TRY(run_op(m, *p));
    }
    if (m->in.at != m->in.end || m->n_stack != 1)
        TRY(broken(m, "does not end with one value"));
out:
    return rc;
}

/* What the checks of the opcodes let through is copied without further ones. */
static void describe(const struct machine *m, const struct value *key, const struct value *tensor,
                     struct torch_pickled *out)
{
    const struct value *args = value_at(m, (int32_t)tensor->number);
    const struct value *id = value_at(m, (int32_t)item(m, args, 0)->number);
    const struct value *shape = item(m, args, 2), *stride = item(m, args, 3);

    *out = (struct torch_pickled){
        .name = xstrndup(key->text, key->length),
        .dtype = globals[item(m, id, 1)->number].dtype,
        .storage = xstrndup(item(m, id, 2)->text, item(m, id, 2)->length),
        .storage_elements = item(m, id, 4)->number,
        .offset = item(m, args, 1)->number,
        .rank = (int64_t)shape->n_items,
    };
    for (size_t i = 0; i < shape->n_items; i++) {
        out->shape[i] = item(m, shape, i)->number;
        out->stride[i] = item(m, stride, i)->number;
    }
}

static int collect(struct machine *m, struct torch_pickled **out, int64_t *n_out)
{
    const struct value *root = value_at(m, m->stack[0]);
    struct torch_pickled *tensors = NULL;
    int64_t n = 0;
    int rc = 0;

    if (root->kind != VALUE_DICT)
        TRY(foreign(m, "holds something else than a dictionary"));
    tensors = xcalloc(root->n_items / 2 + 1, sizeof(*tensors));
    for (size_t i = 0; i + 1 < root->n_items; i += 2) {
        const struct value *key = item(m, root, i), *value = item(m, root, i + 1);

        if (key->kind != VALUE_STRING || key->length == 0)
            TRY(foreign(m, "has a key that is no name"));
        if (value->kind != VALUE_TENSOR)
            TRY(err_set(m->err, ERR_UNSUPPORTED,
                        "\"%.*s\" is no tensor, so it is no file of weights alone; convert the "
                        "model to safetensors",
                        key->length < 100 ? (int)key->length : 100, key->text));
        describe(m, key, value, &tensors[n]);
        n++;
    }
    *out = tensors;
    *n_out = n;
    tensors = NULL;
out:
    torch_pickled_free(tensors, n);
    return rc;
}

int torch_pickle_read(const void *bytes, size_t n, struct torch_pickled **out, int64_t *n_out,
                      struct err *err)
{
    struct machine m = {.in = bytes_of(bytes, n), .err = err};
    int rc = 0;

    m.stack = xcalloc(MAX_STACK, sizeof(*m.stack));
    TRY(run(&m));
    TRY(collect(&m, out, n_out));
out:
    for (size_t i = 0; i < m.n_values; i++)
        free(m.values[i].items);
    free(m.values);
    free(m.stack);
    free(m.memo);
    return rc;
}

void torch_pickled_free(struct torch_pickled *tensors, int64_t n)
{
    if (tensors == NULL)
        return;
    for (int64_t i = 0; i < n; i++) {
        free(tensors[i].name);
        free(tensors[i].storage);
    }
    free(tensors);
}
