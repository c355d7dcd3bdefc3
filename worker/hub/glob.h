/*
 * Patterns of file names as data sets on the hub use them: '*' and '?' within a part of the path,
 * [abc], [a-z] and [!abc], and "**" as a whole part for any number of parts, none among them. Time
 * grows with the product of the lengths, whatever the pattern. Pure functions; bytes, not
 * characters.
 *
 * As in the Python library: what a pattern does not name outright it does not find if it is hidden
 * (a part that begins with a dot) or lies in a folder that begins with "__".
 */
#ifndef CASTOR_WORKER_HUB_GLOB_H
#define CASTOR_WORKER_HUB_GLOB_H

#include <stdbool.h>
#include <stddef.h>

/* One part of a path, without '/'. */
bool glob_part(const char *pattern, size_t pattern_n, const char *name, size_t name_n);
bool glob_path(const char *pattern, const char *path);

#endif
