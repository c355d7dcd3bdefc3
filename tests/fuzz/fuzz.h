/*
 * Fuzz targets: one parser of untrusted bytes each.
 *
 * tests/fuzz/<folder>/NAME.c defines LLVMFuzzerTestOneInput alone: it hands the bytes to the parser
 * and uses what comes out, as the worker would. It is linked with the archives that <folder> may
 * use; no list names it. Seeds lie in tests/fuzz/corpus/NAME/, further ones are the files that the
 * patterns in tests/fuzz/corpus/NAME.seeds match; words of the format (one "word" a line,
 * libFuzzer's dictionary) lie in tests/fuzz/corpus/NAME.dict where that helps.
 *
 * `make fuzz` builds the targets with clang, libFuzzer, AddressSanitizer and UBSan and runs each
 * for FUZZ_SECONDS; what makes one fail is kept in the build folder: add it to the seeds once it is
 * mended. `make test` and `make asan` replay the seeds, without clang (replay.c).
 *
 * An input may take fuzz.py's time and memory limits at most, so give the parser limits in keeping.
 */
#ifndef CASTOR_TESTS_FUZZ_FUZZ_H
#define CASTOR_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* A folder of this process, for parsers that read files; removed at exit. */
const char *fuzz_dir(void);
/* Write fuzz_dir()/name anew; the path is valid until the next call. */
const char *fuzz_file(const char *name, const uint8_t *data, size_t n);

#endif
