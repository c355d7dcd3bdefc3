/*
 * UTF-8: checking, reading one character, and replacing what is not UTF-8.
 *
 * Well-formed means Unicode 15, table 3-7: shortest form, no surrogates, nothing above U+10FFFF.
 */
#ifndef CASTOR_WORKER_TEXT_UTF8_H
#define CASTOR_WORKER_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"

/* Offset of the first byte that is not part of a well-formed character; n when there is none. */
size_t utf8_check(const char *text, size_t n);
/* The character at the start of `text`, which must be well-formed there (n >= 1); *bytes gets its
 * length. */
uint32_t utf8_read(const char *text, size_t n, size_t *bytes);
/* Start of the character that ends at `at` (> 0). */
size_t utf8_step_back(const char *text, size_t at);
/* Write the character; returns its length, 1..4. */
size_t utf8_write(uint32_t c, char out[4]);
/* Append `text`, each maximal ill-formed part replaced by one U+FFFD. */
void utf8_add_lossy(struct buf *out, const char *text, size_t n);

#endif
