#include "core/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const code_names[] = {
    [ERR_OK] = "ok",
    [ERR_INVALID] = "invalid",
    [ERR_UNSUPPORTED] = "unsupported",
    [ERR_NOT_FOUND] = "not_found",
    [ERR_CONFLICT] = "conflict",
    [ERR_PERMISSION] = "permission",
    [ERR_NOMEM] = "nomem",
    [ERR_DEVICE_OOM] = "device_oom",
    [ERR_NOSPACE] = "nospace",
    [ERR_IO] = "io",
    [ERR_CORRUPT] = "corrupt",
    [ERR_NET] = "net",
    [ERR_TIMEOUT] = "timeout",
    [ERR_DEVICE] = "device",
    [ERR_PEER] = "peer",
    [ERR_CANCELLED] = "cancelled",
    [ERR_NUMERIC] = "numeric",
    [ERR_INTERNAL] = "internal",
};
enum { CODE_COUNT = sizeof(code_names) / sizeof(code_names[0]) };

const char *err_code_name(enum err_code code)
{
    return (unsigned)code < CODE_COUNT ? code_names[code] : code_names[ERR_INTERNAL];
}

enum err_code err_code_from_name(const char *name)
{
    for (int i = 0; i < CODE_COUNT; i++)
        if (name && strcmp(code_names[i], name) == 0)
            return (enum err_code)i;
    return ERR_INTERNAL;
}

/* Bytes of the UTF-8 character at s, or 0 when there is no whole, shortest-form one. */
static int utf8_length(const unsigned char *s)
{
    int n = s[0] < 0x80   ? 1
            : s[0] < 0xC2 ? 0
            : s[0] < 0xE0 ? 2
            : s[0] < 0xF0 ? 3
            : s[0] < 0xF5 ? 4
                          : 0;

    for (int i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return n;
}

/* Texts end up in JSON, which must be UTF-8, but may quote a file name or be cut in the middle of a
 * character: what is not UTF-8 becomes '?', and half a character at the end is dropped. */
static void text_make_utf8(char *text, bool was_cut)
{
    unsigned char *s = (unsigned char *)text;

    while (*s) {
        int n = utf8_length(s);
        if (n == 0) {
            if (was_cut && *s >= 0xC0 && strlen((char *)s) < 4) {
                *s = '\0';
                return;
            }
            *s = '?';
            n = 1;
        }
        s += n;
    }
}

static void text_format(char *out, size_t cap, const char *fmt, va_list args)
{
    int n = vsnprintf(out, cap, fmt, args);

    if (n < 0)
        out[0] = '\0';
    text_make_utf8(out, n >= (int)cap);
}

static void text_copy(char *out, size_t cap, const char *text)
{
    int n = snprintf(out, cap, "%s", text);

    text_make_utf8(out, n >= (int)cap);
}

int err_setv(struct err *err, enum err_code code, const char *fmt, va_list args)
{
    if (!err)
        return code;
    if (err->code != ERR_OK)
        return err->code;
    err->code = code;
    err->param[0] = '\0';
    err->reason[0] = '\0';
    text_format(err->msg, sizeof(err->msg), fmt, args);
    return code;
}

int err_set(struct err *err, enum err_code code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    int rc = err_setv(err, code, fmt, args);
    va_end(args);
    return rc;
}

static enum err_code code_from_errno(int errno_value)
{
    switch (errno_value) {
    case ENOSPC:
    case EDQUOT:
        return ERR_NOSPACE;
    case ENOENT:
        return ERR_NOT_FOUND;
    case EACCES:
    case EPERM:
    case EROFS:
        return ERR_PERMISSION;
    case ENOMEM:
        return ERR_NOMEM;
    default:
        return ERR_IO;
    }
}

int err_set_errno(struct err *err, int errno_value, const char *fmt, ...)
{
    enum err_code code = code_from_errno(errno_value);
    char what[sizeof(err->msg)];
    char reason[128];
    va_list args;

    va_start(args, fmt);
    text_format(what, sizeof(what), fmt, args);
    va_end(args);
    return err_set(err, code, "%.*s: %s", (int)(sizeof(what) - sizeof(reason)), what,
                   strerror_r(errno_value, reason, sizeof(reason)));
}

int err_wrap(struct err *err, int rc, const char *fmt, ...)
{
    char context[sizeof(err->msg)];
    char old[sizeof(err->msg)];
    va_list args;

    if (!err)
        return rc;
    va_start(args, fmt);
    text_format(context, sizeof(context), fmt, args);
    va_end(args);
    if (err->code == ERR_OK) { /* the callee reported a code without a text */
        if (rc != 0)
            err_set(err, (enum err_code)rc, "%s", context);
        return rc;
    }
    memcpy(old, err->msg, sizeof(old));
    int n = snprintf(err->msg, sizeof(err->msg), "%s: %s", context, old);
    text_make_utf8(err->msg, n >= (int)sizeof(err->msg));
    return err->code;
}

int err_set_param(struct err *err, int rc, const char *param)
{
    if (!err)
        return rc;
    text_copy(err->param, sizeof(err->param), param);
    return err->code;
}

int err_set_reason(struct err *err, int rc, const char *reason)
{
    if (!err)
        return rc;
    text_copy(err->reason, sizeof(err->reason), reason);
    return err->code;
}

void err_clear(struct err *err)
{
    if (err)
        memset(err, 0, sizeof(*err));
}
