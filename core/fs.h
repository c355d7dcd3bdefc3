/*
 * Files: the few operations that must be done the same way everywhere, above all writing a file so
 * that a crash or a full disk leaves either the old content or the new, never half of it.
 * Paths are UTF-8 strings; every error names the path.
 */
#ifndef CASTOR_CORE_FS_H
#define CASTOR_CORE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/buf.h"
#include "core/err.h"

/* Create a directory and its missing parents (mode 0755, or 0700 when `private_dir`). */
int fs_mkdir_p(const char *path, bool private_dir, struct err *err);
/* Remove a file or a whole tree, never following symbolic links; a missing path is fine. */
int fs_remove_tree(const char *path, struct err *err);
/* Whole file into `out` (appended). ERR_INVALID when it is larger than max_bytes. */
int fs_read_file(const char *path, size_t max_bytes, struct buf *out, struct err *err);
/* The last max_bytes of a regular file, or all there are, into `out` (appended). */
int fs_read_tail(const char *path, size_t max_bytes, struct buf *out, struct err *err);
/* Write aside (path + ".tmp-<pid>"), fsync, rename over path, fsync the directory. */
int fs_write_file_atomic(const char *path, const void *bytes, size_t n, struct err *err);
/* write(2) until all bytes are out; EINTR is handled; fd keeps its position on failure unspecified.
 */
int fs_write_all(int fd, const void *bytes, size_t n, const char *path, struct err *err);
/* pread(2) exactly n bytes; ERR_CORRUPT when the file ends before that. */
int fs_pread_all(int fd, void *out, size_t n, off_t offset, const char *path, struct err *err);
/* fsync a directory so that a rename in it survives a power failure. */
int fs_sync_dir(const char *path, struct err *err);
/* rename(2) + fsync of the parent directory of `to`. */
int fs_rename_sync(const char *from, const char *to, struct err *err);
int fs_file_size(const char *path, int64_t *bytes, struct err *err);
bool fs_exists(const char *path);
/* Bytes that an ordinary user may still write on the file system holding `path`. */
int fs_free_bytes(const char *path, int64_t *bytes, struct err *err);
/* flock(2) an own lock file, without waiting: ERR_CONFLICT when another process holds it. The lock
 * lives as long as *fd (close-on-exec) is open; the kernel frees it when the process dies. */
int fs_lock_file(const char *path, int *fd, struct err *err);
/* "dir/name" as a fresh string. */
char *fs_join(const char *dir, const char *name);

#endif
