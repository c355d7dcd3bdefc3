/*
 * Character classes as the reference has them: those of Rust's standard library, of its regex crate
 * and of two older tables. Found by asking it about every character.
 */
#ifndef CASTOR_WORKER_TEXT_UNICODE_H
#define CASTOR_WORKER_TEXT_UNICODE_H

#include <stdbool.h>
#include <stdint.h>

bool unicode_is_space(uint32_t c);       /* White_Space */
bool unicode_is_numeric(uint32_t c);     /* general categories Nd, Nl, No */
bool unicode_is_punctuation(uint32_t c); /* ASCII punctuation and the categories P* */
bool unicode_is_word(uint32_t c);        /* \w of Unicode regular expressions: UTS 18, annex C */
bool unicode_is_mark(uint32_t c);        /* categories Mn, Mc, Me */
/* Of one character; U+0130, whose lower case is two, is not asked for. */
uint32_t unicode_to_lower(uint32_t c);

#endif
