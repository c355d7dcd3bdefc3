#include "server/openapi.h"

/* The assembler copies the file in; the path is from the root, where the build runs. */
__asm__(".section .rodata\n"
        ".global castor_openapi_begin\n"
        ".global castor_openapi_end\n"
        "castor_openapi_begin:\n"
        ".incbin \"api/openapi.json\"\n"
        "castor_openapi_end:\n"
        ".byte 0\n"
        ".text\n");
extern const char castor_openapi_begin[];
extern const char castor_openapi_end[];

const char *openapi_text(size_t *n)
{
    *n = (size_t)(castor_openapi_end - castor_openapi_begin);
    return castor_openapi_begin;
}
