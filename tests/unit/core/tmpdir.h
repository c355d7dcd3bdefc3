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
/* The same without Criterion, for a jail. 0 = ok. */
int tmpdir_write(const char *path, const char *text);
/* Limit the size of files that this process writes; a write beyond it fails with EFBIG. */
void tmpdir_limit_file_size(unsigned long bytes);

/* For code that would do harm if it were wrong: runs `test` in a child process whose root directory
 * is a fresh, empty temporary directory. Makes sure of that before it calls `test`; where the
 * process may not change its root the test is skipped. `test` uses CHECK, since Criterion's
 * assertions do not work in a child. */
void tmpdir_jail(void (*test)(void));
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            tmpdir_jail_failed(__FILE__, __LINE__, #condition);                                    \
    } while (0)
void tmpdir_jail_failed(const char *file, int line, const char *what) __attribute__((noreturn));

#endif
