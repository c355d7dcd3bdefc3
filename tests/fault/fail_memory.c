/*
 * A shared object to preload: makes one of a rank's own allocations fail, not those of the
 * libraries that it calls.
 *
 *   FAULT_NTH    which one, from 1; 0 = none
 *
 *   FAULT_COUNT  a file that is overwritten with their number at exit
 */
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t each);
void *__libc_realloc(void *p, size_t bytes);

static uintptr_t begin, end; /* of the program's code */
static long nth, calls;

/* The first object is the program. */
static int find_code(struct dl_phdr_info *info, size_t size, void *ud)
{
    (void)size;
    (void)ud;
    for (int k = 0; k < info->dlpi_phnum; k++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[k];
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X)) {
            begin = info->dlpi_addr + p->p_vaddr;
            end = begin + p->p_memsz;
        }
    }
    return 1;
}

/* Not in the supervisor. */
__attribute__((constructor)) static void start(int argc, char **argv)
{
    const char *text = getenv("FAULT_NTH");
    nth = text ? strtol(text, NULL, 10) : 0;
    if (argc > 1 && strcmp(argv[1], "--rank") == 0)
        dl_iterate_phdr(find_code, NULL);
}

static int fails(const void *caller)
{
    if ((uintptr_t)caller < begin || (uintptr_t)caller >= end)
        return 0;
    return __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) == nth;
}

void *malloc(size_t bytes)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(bytes);
}

void *calloc(size_t count, size_t each)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, each);
}

void *realloc(void *p, size_t bytes)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(p, bytes);
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("FAULT_COUNT");
    FILE *f = path && calls > 0 ? fopen(path, "w") : NULL;
    if (!f)
        return;
    fprintf(f, "%ld", calls);
    fclose(f);
}
