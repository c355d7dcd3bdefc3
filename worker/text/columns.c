#include "worker/text/columns.h"

#include <stdio.h>
#include <string.h>

#include "core/buf.h"
#include "worker/text/shapes.h"

enum { MAX_LISTED = 30 };

bool columns_wants(const json_t *mapping, const char *column)
{
    const char *member;
    json_t *name;

    if (!mapping)
        return shape_has_member(column);
    json_object_foreach((json_t *)mapping, member, name)
    {
        if (strcmp(json_string_value(name), column) == 0)
            return true;
    }
    return false;
}

static void list_name(struct buf *list, size_t i, size_t n, const char *name)
{
    if (i < MAX_LISTED)
        buf_printf(list, "%s\"%.60s\"", i ? ", " : "", name);
    else if (i == MAX_LISTED)
        buf_printf(list, " and %zu more", n - MAX_LISTED);
}

static int refuse(const char *what, const char *const *names, size_t n, struct err *err)
{
    struct buf list = {0};

    for (size_t i = 0; i < n; i++)
        list_name(&list, i, n, names[i]);
    int rc = err_set(err, ERR_INVALID, "%s; the columns are %s", what,
                     n ? buf_str(&list) : "none at all");
    buf_fini(&list);
    return err_set_param(err, rc, "dataset.column_mapping");
}

static bool is_listed(const char *const *names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

int columns_check(const json_t *mapping, const char *const *names, size_t n, struct err *err)
{
    const char *member;
    char what[200];
    json_t *name;

    if (!mapping) {
        if (shape_fits(names, n))
            return 0;
        return refuse("no columns make an example: \"text\", \"messages\", \"prompt\" with "
                      "\"completion\" or \"instruction\" with \"output\" are known, others are "
                      "named by dataset.column_mapping",
                      names, n, err);
    }
    json_object_foreach((json_t *)mapping, member, name)
    {
        if (is_listed(names, n, json_string_value(name)))
            continue;
        snprintf(what, sizeof(what),
                 "dataset.column_mapping.%s names the column \"%.60s\", which is not there", member,
                 json_string_value(name));
        return refuse(what, names, n, err);
    }
    return 0;
}

/* What a line without a mapped column is told. */
static void tell_missing(const char *column, const json_t *object, char *why, size_t why_cap)
{
    size_t i = 0, n = json_object_size(object);
    struct buf list = {0};
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        list_name(&list, i++, n, key);
    }
    snprintf(why, why_cap, "there is no column \"%.60s\"; the columns are %s", column,
             n ? buf_str(&list) : "none at all");
    buf_fini(&list);
}

json_t *columns_apply(const json_t *mapping, json_t *object, char *why, size_t why_cap)
{
    const char *member;
    json_t *column, *out;

    if (!mapping || !json_is_object(object))
        return json_incref(object);
    out = json_object();
    json_object_foreach((json_t *)mapping, member, column)
    {
        json_t *value = json_object_get(object, json_string_value(column));
        if (value) {
            json_object_set(out, member, value);
        } else if (!shape_member_is_optional(member)) {
            tell_missing(json_string_value(column), object, why, why_cap);
            json_decref(out);
            return NULL;
        }
    }
    return out;
}
