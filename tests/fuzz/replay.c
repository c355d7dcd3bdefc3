/* Runs a fuzz target over the files named on the command line, in place of libFuzzer: what once
 * made it fail must not do so again. An input takes 10 s of processor time at most: a busy machine
 * is no fault of it. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

#include "tests/fuzz/fuzz.h"

static void run(const char *path)
{
    FILE *f = fopen(path, "rb");
    long n = -1;

    if (f && fseek(f, 0, SEEK_END) == 0)
        n = ftell(f);
    if (n < 0) {
        perror(path);
        exit(1);
    }
    rewind(f);
    /* Of the exact size, so that AddressSanitizer sees the first byte too many. */
    uint8_t *data = malloc(n > 0 ? (size_t)n : 1);
    if (!data || fread(data, 1, (size_t)n, f) != (size_t)n) {
        perror(path);
        exit(1);
    }
    fclose(f);
    printf("%s\n", path); /* the last one printed is the one at fault */
    fflush(stdout);
    setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = 10}, NULL);
    LLVMFuzzerTestOneInput(data, (size_t)n);
    setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
    free(data);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        run(argv[i]);
    printf("%d passed, 0 failed\n", argc - 1);
    return 0;
}
