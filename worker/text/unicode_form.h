/*
 * Unicode normal forms, as the reference has them.
 *
 * utf8proc knows Unicode 15; the reference's tables are those of Unicode 9. Characters that came
 * in between and have a decomposition or a combining class have neither there: they are copied,
 * and part what is before them from what is behind.
 */
#ifndef CASTOR_WORKER_TEXT_UNICODE_FORM_H
#define CASTOR_WORKER_TEXT_UNICODE_FORM_H

#include <stddef.h>

#include "core/buf.h"
#include "core/err.h"

enum unicode_form { FORM_NFC, FORM_NFD, FORM_NFKC, FORM_NFKD };

/* Append the normal form of valid UTF-8. ERR_INVALID for a run of more than 4096 combining marks:
 * sorting those costs the square of their number. */
int unicode_form_add(enum unicode_form form, const char *text, size_t n, struct buf *out,
                     struct err *err);

#endif
