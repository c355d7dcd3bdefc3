/* config.json: any file; a config that is accepted must make a model and its tables. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "tests/fuzz/fuzz.h"
#include "worker/model/block.h"

enum { POSITIONS = 3 };

static void use(struct decoder_config *c)
{
    float *tables;

    if (c->position == POSITION_ROPE) {
        tables = xcalloc((size_t)model_rope_floats(c, POSITIONS), sizeof(*tables));
        model_rope_tables(c, POSITIONS, tables);
        free(tables);
    } else if (c->position == POSITION_ALIBI) {
        tables = xcalloc((size_t)c->heads, sizeof(*tables));
        model_alibi_slopes(c, tables);
        free(tables);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct decoder_config config;
    struct model m;
    int rc;

    fuzz_file("config.json", data, n);
    rc = decoder_config_load(fuzz_dir(), &config, NULL);
    if (rc != 0)
        return 0;
    use(&config);
    model_init(&m, &config);
    if (m.n_params <= 0)
        abort();
    model_fini(&m);
    if (decoder_config_export(fuzz_dir(), fuzz_dir(), DT_BF16, NULL) != 0 ||
        decoder_config_load(fuzz_dir(), &config, NULL) != 0)
        abort(); /* what is trained is exported as something that loads */
    decoder_config_fini(&config);
    return 0;
}
