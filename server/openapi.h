/* The OpenAPI document api/openapi.json, as it was when the program was built. */
#ifndef CASTOR_SERVER_OPENAPI_H
#define CASTOR_SERVER_OPENAPI_H

#include <stddef.h>

#define CASTOR_VERSION "0.1.0"

const char *openapi_text(size_t *n);

#endif
