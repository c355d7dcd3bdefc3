#include "api/fault.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/err.h"

void fault_add(struct fault_list *list, const char *param, const char *code, const char *fmt, ...)
{
    struct err text = {0}; /* leaves valid UTF-8 behind, whatever is quoted */
    va_list args;

    list->n_found++;
    if (list->n == FAULT_MAX)
        return;
    va_start(args, fmt);
    err_setv(&text, ERR_INVALID, fmt, args);
    va_end(args);
    err_set_param(&text, 0, param);
    list->items[list->n++] = (struct fault){
        .param = xstrdup(text.param), .code = xstrdup(code), .message = xstrdup(text.msg)};
}

void fault_list_fini(struct fault_list *list)
{
    for (int64_t i = 0; i < list->n; i++) {
        free(list->items[i].param);
        free(list->items[i].code);
        free(list->items[i].message);
    }
    memset(list, 0, sizeof(*list));
}

json_t *fault_list_to_json(const struct fault_list *list)
{
    json_t *array = json_array();

    for (int64_t i = 0; i < list->n; i++) {
        const struct fault *f = &list->items[i];
        json_t *item = json_object();

        json_object_set_new(item, "param", *f->param ? json_string(f->param) : json_null());
        json_object_set_new(item, "code", json_string(f->code));
        json_object_set_new(item, "message", json_string(f->message));
        json_array_append_new(array, item);
    }
    return array;
}
