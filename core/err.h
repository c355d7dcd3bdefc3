/*
 * Errors: one convention for the whole program.
 *
 * A function that can fail for a reason outside the program (input, I/O, device, peer) returns int:
 * 0 = ok, otherwise an enum err_code, and takes a `struct err *err` as its last argument. The text
 * in `err` is a sentence for the person who can act on it: what happened, to what, what to do next.
 * A programming mistake is an assert. Out-parameters are untouched on failure.
 *
 * `err` may be NULL when the caller needs the code only. The first error wins: err_set on an err
 * that already holds one keeps the old text (cleanup must not hide the cause) and returns the old
 * code. A struct err is plain data, owned by the caller, used by one thread at a time; zero it
 * before use.
 */
#ifndef CASTOR_CORE_ERR_H
#define CASTOR_CORE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

enum err_code {
    ERR_OK = 0,
    ERR_INVALID,     /* malformed or out-of-range input; the caller must change it            */
    ERR_UNSUPPORTED, /* well-formed, but this build or machine does not do it                 */
    ERR_NOT_FOUND,   /* no such file, repository, revision, job                               */
    ERR_CONFLICT,    /* the object's state does not allow the request                         */
    ERR_PERMISSION,  /* not allowed: token, gated repository, file mode                       */
    ERR_NOMEM,       /* a size asked for from outside does not fit in host memory             */
    ERR_DEVICE_OOM,  /* device memory: the text names what was asked, free and what would fit */
    ERR_NOSPACE,     /* disk full or quota                                                    */
    ERR_IO,          /* other file-system error                                               */
    ERR_CORRUPT,     /* bytes do not match their size, hash or format                         */
    ERR_NET,         /* network: may work when tried again                                    */
    ERR_TIMEOUT,     /* a deadline passed                                                     */
    ERR_DEVICE,      /* the accelerator or its library failed                                 */
    ERR_PEER,        /* another rank, or a child process, failed or died                      */
    ERR_CANCELLED,   /* somebody asked for it to stop                                         */
    ERR_NUMERIC,     /* NaN or infinity where training cannot go on                           */
    ERR_INTERNAL,    /* an invariant does not hold; a bug worth reporting                     */
};

/* The stable lower-case name used in JSON and logs ("invalid", "device_oom", ...). */
const char *err_code_name(enum err_code code);
/* The inverse; ERR_INTERNAL for an unknown name. */
enum err_code err_code_from_name(const char *name);

struct err {
    enum err_code code;
    char param[128]; /* path of the offending input ("method.supervised.n_epochs"), or "" */
    char reason[48]; /* machine-readable cause, finer than code ("gated_model"), or ""    */
    char msg[768];   /* text for people                                                   */
};

/* Set the text and return `code`, so that `return err_set(err, ERR_INVALID, "...", ...);` is one
 * line. */
int err_set(struct err *err, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int err_setv(struct err *err, enum err_code code, const char *fmt, va_list args)
    __attribute__((format(printf, 3, 0)));
/* The same, appending ": " and strerror(errno_value). ENOSPC and EDQUOT become ERR_NOSPACE, ENOENT
 * ERR_NOT_FOUND, EACCES/EPERM/EROFS ERR_PERMISSION, ENOMEM ERR_NOMEM, everything else `ERR_IO`. */
int err_set_errno(struct err *err, int errno_value, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Prefix the text with context when an error crosses a folder: "loading layer 3: ...". Returns
 * err's code (`rc` when err is NULL). */
int err_wrap(struct err *err, int rc, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Attach the input's path or the fine-grained cause to an error just set; return err's code. */
int err_set_param(struct err *err, int rc, const char *param);
int err_set_reason(struct err *err, int rc, const char *reason);
void err_clear(struct err *err);

/* Evaluate a call that returns an err_code; leave through `out:` on failure. The function must have
 * `int rc = 0;` and one label `out:` that cleans up and returns rc. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        rc = (call);                                                                               \
        if (rc != 0)                                                                               \
            goto out;                                                                              \
    } while (0)

#endif
