/*
 * The byte alphabet of GPT-2 (Radford et al., 2019): each byte written as one printable character.
 * '!'..'~', U+00A1..U+00AC and U+00AE..U+00FF stand for themselves, the other 68 bytes for
 * U+0100 and on.
 */
#ifndef CASTOR_WORKER_TEXT_BYTE_ALPHABET_H
#define CASTOR_WORKER_TEXT_BYTE_ALPHABET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/buf.h"

enum { BYTE_ALPHABET_END = 256 + 68 }; /* all of its characters are below */

/* The byte that character c stands for, or -1. */
int byte_alphabet_byte(uint32_t c);
/* Append the characters of the bytes. */
void byte_alphabet_add(struct buf *out, const char *bytes, size_t n);
/* Append the bytes that UTF-8 text stands for and return true; or false, and nothing is appended,
 * when it has a character that stands for no byte. */
bool byte_alphabet_to_bytes(const char *text, size_t n, struct buf *out);

#endif
