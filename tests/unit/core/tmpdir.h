/* A fresh directory for a test, removed by tmpdir_fini with everything in it. */
#ifndef CASTOR_TESTS_UNIT_CORE_TMPDIR_H
#define CASTOR_TESTS_UNIT_CORE_TMPDIR_H

struct tmpdir {
    char path[64];
};

struct tmpdir tmpdir_make(void);
void tmpdir_fini(struct tmpdir *d);
/* "dir/name" in a static buffer; four calls may be alive at once. */
const char *tmpdir_at(const struct tmpdir *d, const char *name);
/* Create or replace a file with these bytes / compare a file's whole content with a string. */
void tmpdir_put(const char *path, const char *text);
int tmpdir_holds(const char *path, const char *text);
/* Limit the size of files that this process writes; a write beyond it fails with EFBIG. */
void tmpdir_limit_file_size(unsigned long bytes);

#endif
