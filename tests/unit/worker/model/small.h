/*
 * Small decoders, between them with every flag that a block reads: 2 layers, hidden 16, 4 heads,
 * ffn 24, vocabulary 29 where nothing else is said.
 */
#ifndef CASTOR_TESTS_UNIT_WORKER_MODEL_SMALL_H
#define CASTOR_TESTS_UNIT_WORKER_MODEL_SMALL_H

#include "worker/model/config.h"

/* Returns what model_init or rig_open takes over. */
typedef struct decoder_config (*small_config)(void);

struct decoder_config small_opt(void);       /* layer norms in front, biases, ReLU, tied */
struct decoder_config small_gpt2(void);      /* the same with GELU */
struct decoder_config small_post_norm(void); /* norms behind, embeddings narrower than the stream */
struct decoder_config small_llama(void);     /* RMS norms, rope, two key-value heads, gated SiLU, a
                                                window, scaled and capped logits */
struct decoder_config small_partial_rope(void);   /* the other rope, on half of each head */
struct decoder_config small_qwen3(void);          /* norms of queries and keys */
struct decoder_config small_command_r(void);      /* the same with weights of each head's own */
struct decoder_config small_sandwich(void);       /* norms on both sides, capped scores */
struct decoder_config small_parallel_2norm(void); /* attention and MLP side by side */
struct decoder_config small_parallel_1norm(void);
struct decoder_config small_bloom(void);       /* ALiBi over three heads, a norm of the embedding */
struct decoder_config small_stream_norm(void); /* the stream goes on behind the norms */

enum { N_SMALL_CONFIGS = 12 };
extern const small_config small_configs[N_SMALL_CONFIGS]; /* all of them */

#endif
