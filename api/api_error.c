#include "api/api_error.h"

#include <string.h>

static const struct {
    unsigned status;
    const char *type;
} answers[] = {
    [ERR_OK] = {200, "invalid_request_error"},
    [ERR_INVALID] = {400, "invalid_request_error"},
    [ERR_UNSUPPORTED] = {400, "invalid_request_error"},
    [ERR_NOT_FOUND] = {404, "invalid_request_error"},
    [ERR_CONFLICT] = {409, "invalid_request_error"},
    [ERR_PERMISSION] = {403, "invalid_request_error"},
    [ERR_NOMEM] = {400, "invalid_request_error"}, /* what was asked for does not fit */
    [ERR_DEVICE_OOM] = {400, "invalid_request_error"},
    [ERR_NOSPACE] = {507, "server_error"},
    [ERR_IO] = {500, "server_error"},
    [ERR_CORRUPT] = {500, "server_error"},
    [ERR_NET] = {502, "server_error"},
    [ERR_TIMEOUT] = {503, "server_error"},
    [ERR_DEVICE] = {500, "server_error"},
    [ERR_PEER] = {500, "server_error"},
    [ERR_CANCELLED] = {503, "server_error"},
    [ERR_NUMERIC] = {500, "server_error"},
    [ERR_INTERNAL] = {500, "server_error"},
};

static unsigned clamp(enum err_code code)
{
    return (unsigned)code < sizeof(answers) / sizeof(answers[0]) ? code : ERR_INTERNAL;
}

unsigned api_error_status(enum err_code code)
{
    return answers[clamp(code)].status;
}

static json_t *string_or_null(const char *text)
{
    return text && *text ? json_string(text) : json_null();
}

static json_t *make(const char *message, const char *type, const char *param, const char *code,
                    json_t *details)
{
    json_t *error = json_object();
    json_t *answer = json_object();

    json_object_set_new(error, "message", json_string(message));
    json_object_set_new(error, "type", json_string(type));
    json_object_set_new(error, "param", string_or_null(param));
    json_object_set_new(error, "code", string_or_null(code));
    if (details)
        json_object_set_new(error, "details", details);
    json_object_set_new(answer, "error", error);
    return answer;
}

json_t *api_error_to_json(const struct err *err)
{
    return make(err->msg, answers[clamp(err->code)].type, err->param, err->reason, NULL);
}

json_t *api_error_from_faults(const struct fault_list *faults)
{
    const struct fault *first = faults->n > 0 ? &faults->items[0] : NULL;

    return make(first ? first->message : "the request is not valid", "invalid_request_error",
                first ? first->param : NULL, first ? first->code : NULL,
                faults->n > 1 ? fault_list_to_json(faults) : NULL);
}
