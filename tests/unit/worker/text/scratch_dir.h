/* A directory for a test's files, removed with scratch_dir_fini. */
#ifndef CASTOR_TESTS_TEXT_SCRATCH_DIR_H
#define CASTOR_TESTS_TEXT_SCRATCH_DIR_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fs.h"

struct scratch_dir {
    char path[64];
    char file[160]; /* the path that scratch_dir_write returned last */
};

static inline void scratch_dir_init(struct scratch_dir *d)
{
    snprintf(d->path, sizeof(d->path), "/tmp/castor-text-XXXXXX");
    cr_assert_not_null(mkdtemp(d->path));
}

static inline const char *scratch_dir_write(struct scratch_dir *d, const char *name,
                                            const char *bytes, size_t n)
{
    snprintf(d->file, sizeof(d->file), "%s/%s", d->path, name);
    FILE *f = fopen(d->file, "w");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    cr_assert_eq(fclose(f), 0);
    return d->file;
}

static inline const char *scratch_dir_text(struct scratch_dir *d, const char *name,
                                           const char *text)
{
    return scratch_dir_write(d, name, text, strlen(text));
}

static inline void scratch_dir_fini(struct scratch_dir *d)
{
    cr_assert_eq(fs_remove_tree(d->path, NULL), 0);
}

#endif
