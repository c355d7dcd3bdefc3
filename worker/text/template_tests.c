/* The tests of the template language: "is defined" and so on. */
#include <string.h>

#include "worker/text/template_run.h"

static bool is_whole(struct tv v)
{
    return v.kind == TV_INT || v.kind == TV_BOOL;
}

/* The tests that compare with one argument; -1: it is none of them. */
static int compare_test(struct run *r, const char *name, struct tv of, const struct tv *with)
{
    static const char *const words[][4] = {{"eq", "==", "equalto", "sameas"}, {"ne", "!="},
                                           {"lt", "<", "lessthan"},           {"le", "<="},
                                           {"gt", ">", "greaterthan"},        {"ge", ">="}};

    for (int op = 0; op < 6; op++)
        for (int i = 0; i < 4 && words[op][i]; i++)
            if (strcmp(name, words[op][i]) == 0) {
                if (!with) {
                    tv_fail(r->a, "the test '%s' needs a value", name);
                    return 0;
                }
                if (op < 2)
                    return tv_equal(r->a, of, *with) == (op == 0);
                int c = tv_compare(r->a, of, *with);
                return op == 2 ? c < 0 : op == 3 ? c <= 0 : op == 4 ? c > 0 : c >= 0;
            }
    return -1;
}

static bool number_test(struct run *r, const char *name, struct tv of, const struct tv *with)
{
    int64_t by = strcmp(name, "divisibleby") == 0 ? with && with->kind == TV_INT ? with->i : 0 : 2;

    if (!is_whole(of) || by == 0) {
        tv_fail(r->a, "the test '%s' needs integers", name);
        return false;
    }
    int64_t rest = by == -1 ? 0 : (of.kind == TV_BOOL ? of.b : of.i) % by;
    return (rest == 0) != (strcmp(name, "odd") == 0);
}

static bool in_test(struct run *r, struct tv of, const struct tv *with)
{
    if (with && with->kind == TV_STRING && of.kind == TV_STRING)
        return of.str.n == 0 ||
               (with->str.n && memmem(with->str.s, with->str.n, of.str.s, of.str.n));
    struct tv items = tv_iterate(r->a, with ? *with : TV_NOTHING);
    for (size_t i = 0; !r->a->failed && i < items.list->n; i++)
        if (tv_equal(r->a, items.list->items[i], of))
            return true;
    return false;
}

bool run_test(struct run *r, const char *name, struct tv of, const struct call_args *args)
{
    const struct tv *with = args->n ? &args->items[0] : NULL;
    enum tv_kind k = of.kind;
    const struct {
        const char *name;
        bool yes;
    } plain[] = {
        {"defined", k != TV_UNDEFINED},
        {"undefined", k == TV_UNDEFINED},
        {"none", k == TV_NONE},
        {"string", k == TV_STRING},
        {"mapping", k == TV_DICT && !of.dict->is_namespace},
        {"iterable", k == TV_STRING || k == TV_LIST || k == TV_UNDEFINED ||
                         (k == TV_DICT && !of.dict->is_namespace)},
        {"sequence", k == TV_STRING || k == TV_LIST || k == TV_UNDEFINED ||
                         (k == TV_DICT && !of.dict->is_namespace)},
        {"number", tv_is_number(of)},
        {"integer", k == TV_INT},
        {"float", k == TV_FLOAT},
        {"boolean", k == TV_BOOL},
        {"true", k == TV_BOOL && of.b},
        {"false", k == TV_BOOL && !of.b},
        {"callable", k == TV_MACRO || k == TV_FUNCTION},
    };
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        if (strcmp(name, plain[i].name) == 0)
            return plain[i].yes;
    if (strcmp(name, "in") == 0)
        return in_test(r, of, with);
    if (strcmp(name, "odd") == 0 || strcmp(name, "even") == 0 || strcmp(name, "divisibleby") == 0)
        return number_test(r, name, of, with);
    if (strcmp(name, "upper") == 0 || strcmp(name, "lower") == 0)
        return string_is_cased(r, run_filter(r, "string", of, args), name[0] == 'u');
    int c = compare_test(r, name, of, with);
    if (c < 0)
        tv_fail(r->a, "the test '%.60s' is not supported", name);
    return c > 0;
}
