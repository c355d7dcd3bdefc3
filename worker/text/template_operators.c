/* Operators of the template language: arithmetic, comparison, membership. */
#include <math.h>
#include <string.h>

#include "worker/text/template_run.h"

static struct tv concatenate(struct run *r, struct tv x, struct tv y)
{
    struct buf out = {0};

    tv_print(r->a, x, &out);
    tv_print(r->a, y, &out);
    return tv_take_buf(r->a, &out);
}

static struct tv repeat(struct run *r, struct tv of, int64_t times)
{
    size_t n = of.kind == TV_STRING ? of.str.n : of.list->n * sizeof(struct tv);
    struct tv list;

    times = times < 0 ? 0 : times;
    if (n && (uint64_t)times > r->a->max_bytes / n)
        return tv_fail(r->a, "a repeated %s is too long", of.kind == TV_STRING ? "string" : "list");
    if (of.kind == TV_STRING) {
        char *s =
            tv_work(r->a, n * (size_t)times / 64) ? tv_alloc(r->a, n * (size_t)times + 1) : NULL;
        for (size_t i = 0; s && n && i < (size_t)times; i++)
            memcpy(s + i * n, of.str.s, n);
        if (s)
            s[n * (size_t)times] = '\0';
        return s ? tv_string(s, n * (size_t)times) : TV_NOTHING;
    }
    list = tv_new_list(r->a, of.list->is_tuple);
    for (int64_t t = 0; n && t < times && !r->a->failed; t++)
        for (size_t i = 0; i < of.list->n && !r->a->failed; i++)
            tv_push(r->a, list, of.list->items[i]);
    return list;
}

static struct tv join_lists(struct run *r, struct tv x, struct tv y)
{
    struct tv list = tv_new_list(r->a, x.list->is_tuple);

    for (size_t i = 0; i < x.list->n && !r->a->failed; i++)
        tv_push(r->a, list, x.list->items[i]);
    for (size_t i = 0; i < y.list->n && !r->a->failed; i++)
        tv_push(r->a, list, y.list->items[i]);
    return list;
}

static struct tv real(double f)
{
    return (struct tv){.kind = TV_FLOAT, .f = f};
}

static struct tv integer_power(struct run *r, int64_t base, int64_t exponent)
{
    int64_t result = 1;

    if (exponent < 0)
        return base ? real(pow((double)base, (double)exponent))
                    : tv_fail(r->a, "zero is divided by");
    if (base == 0 || base == 1)
        return tv_int(exponent ? base : 1);
    if (base == -1)
        return tv_int(exponent % 2 ? -1 : 1);
    for (; exponent > 0; exponent--)
        if (__builtin_mul_overflow(result, base, &result))
            return tv_fail(r->a, "a number is too large");
    return tv_int(result);
}

static struct tv integer_arithmetic(struct run *r, int op, int64_t x, int64_t y)
{
    int64_t z = 0;
    bool over = false;

    if (strchr("/f%", op) && y == 0)
        return tv_fail(r->a, "a number is divided by zero");
    if (strchr("f%", op) && y == -1)
        return op == '%' ? tv_int(0) : integer_arithmetic(r, '-', 0, x);
    switch (op) {
    case '+':
        over = __builtin_add_overflow(x, y, &z);
        break;
    case '-':
        over = __builtin_sub_overflow(x, y, &z);
        break;
    case '*':
        over = __builtin_mul_overflow(x, y, &z);
        break;
    case '/':
        return real((double)x / (double)y);
    case 'f':
        z = x / y - (x % y != 0 && (x < 0) != (y < 0));
        break;
    case '%':
        z = x % y;
        z += z != 0 && (z < 0) != (y < 0) ? y : 0;
        break;
    default:
        return integer_power(r, x, y);
    }
    return over ? tv_fail(r->a, "a number is too large") : tv_int(z);
}

static struct tv float_arithmetic(struct run *r, int op, double x, double y)
{
    double z;

    if (strchr("/f%", op) && y == 0)
        return tv_fail(r->a, "a number is divided by zero");
    switch (op) {
    case '+':
        return real(x + y);
    case '-':
        return real(x - y);
    case '*':
        return real(x * y);
    case '/':
        return real(x / y);
    case 'f':
        return real(floor(x / y));
    case '%':
        z = fmod(x, y);
        return real(z != 0 && (z < 0) != (y < 0) ? z + y : z);
    default:
        return real(pow(x, y));
    }
}

struct tv run_binary(struct run *r, int op, struct tv x, struct tv y)
{
    const char name[3] = {(char)(op == 'f'   ? '/'
                                 : op == 'p' ? '*'
                                             : op),
                          op == 'f'   ? '/'
                          : op == 'p' ? '*'
                                      : '\0'};

    if (op == '~')
        return concatenate(r, x, y);
    if (tv_is_number(x) && tv_is_number(y))
        return x.kind == TV_FLOAT || y.kind == TV_FLOAT
                   ? float_arithmetic(r, op, tv_number(x), tv_number(y))
                   : integer_arithmetic(r, op, tv_whole(x), tv_whole(y));
    if (op == '+' && x.kind == TV_STRING && y.kind == TV_STRING)
        return concatenate(r, x, y);
    if (op == '+' && x.kind == TV_LIST && y.kind == TV_LIST && x.list->is_tuple == y.list->is_tuple)
        return join_lists(r, x, y);
    if (op == '*' && (x.kind == TV_STRING || x.kind == TV_LIST) && y.kind == TV_INT)
        return repeat(r, x, y.i);
    if (op == '*' && (y.kind == TV_STRING || y.kind == TV_LIST) && x.kind == TV_INT)
        return repeat(r, y, x.i);
    return tv_fail(r->a, "%s %s %s does not work", tv_kind_name(x), name, tv_kind_name(y));
}

static bool contains(struct run *r, struct tv in, struct tv what)
{
    if (in.kind == TV_STRING && what.kind == TV_STRING)
        return tv_work(r->a, in.str.n / 64) &&
               (what.str.n == 0 ||
                (in.str.n && memmem(in.str.s, in.str.n, what.str.s, what.str.n)));
    if (in.kind == TV_DICT && !in.dict->is_namespace)
        return tv_find(r->a, in.dict, what) != NULL;
    if (in.kind == TV_LIST) {
        for (size_t i = 0; i < in.list->n; i++)
            if (tv_equal(r->a, in.list->items[i], what))
                return true;
        return false;
    }
    if (in.kind != TV_UNDEFINED)
        tv_fail(r->a, "%s cannot be looked for in %s", tv_kind_name(what), tv_kind_name(in));
    return false;
}

bool run_compare(struct run *r, int op, struct tv x, struct tv y)
{
    switch (op) {
    case OP_EQ:
        return tv_equal(r->a, x, y);
    case OP_NE:
        return !tv_equal(r->a, x, y);
    case OP_LT:
        return tv_compare(r->a, x, y) < 0;
    case OP_LE:
        return tv_compare(r->a, x, y) <= 0;
    case OP_GT:
        return tv_compare(r->a, x, y) > 0;
    case OP_GE:
        return tv_compare(r->a, x, y) >= 0;
    case OP_IN:
        return contains(r, y, x);
    default:
        return !contains(r, y, x);
    }
}

struct tv run_negate(struct run *r, struct tv v)
{
    return v.kind == TV_FLOAT ? real(-v.f) : integer_arithmetic(r, '-', 0, tv_whole(v));
}
