/* The index of a model's shards: any file, beside one good shard. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "worker/model/weights.h"

static const char CONFIG[] =
    "{\"model_type\": \"opt\", \"num_hidden_layers\": 1, \"hidden_size\": 2, \"ffn_dim\": 2,"
    " \"num_attention_heads\": 1, \"vocab_size\": 2, \"max_position_embeddings\": 2}";
static const char HEADER[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";

static void make_model(struct model *m)
{
    struct decoder_config config;
    json_t *json = json_loads(CONFIG, 0, NULL);

    if (decoder_config_parse(json, &config, NULL) != 0)
        abort();
    model_init(m, &config);
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct weights_reader *reader = NULL;
    uint8_t shard[8 + sizeof(HEADER) + 3] = {sizeof(HEADER) - 1};
    struct model m;

    memcpy(shard + 8, HEADER, sizeof(HEADER) - 1);
    fuzz_file("a.safetensors", shard, sizeof(shard));
    fuzz_file("model.safetensors.index.json", data, n);
    make_model(&m);
    if (weights_open(fuzz_dir(), &m, &reader, NULL) == 0)
        abort(); /* the shard holds none of the model's tensors */
    model_fini(&m);
    return 0;
}
