/* What the environment says about the hub, read as huggingface_hub reads it. Strings are fresh. */
#ifndef CASTOR_WORKER_HUB_SETTINGS_H
#define CASTOR_WORKER_HUB_SETTINGS_H

#include <stdbool.h>

char *settings_endpoint(void);   /* HF_ENDPOINT or the public hub */
char *settings_token(void);      /* HF_TOKEN, ..., the token file; NULL = none */
char *settings_cache_root(void); /* HF_HUB_CACHE, ... */
bool settings_offline(void);     /* HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE */
bool settings_no_links(void);    /* HF_HUB_DISABLE_SYMLINKS */
double settings_timeout(void);   /* HF_HUB_DOWNLOAD_TIMEOUT: seconds without a byte; 10 */

#endif
