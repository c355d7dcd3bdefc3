#include <criterion/criterion.h>
#include <string.h>

#include "tests/unit/worker/model/rig.h"
#include "tests/unit/worker/model/small.h"

static struct decoder_config opt(int64_t layers, int64_t hidden, int64_t heads, int64_t embed_dim)
{
    struct decoder_config c = small_opt();

    c.layers = layers;
    c.hidden = hidden;
    c.heads = c.kv_heads = heads;
    c.head_dim = hidden / heads;
    c.ffn = 4 * hidden;
    c.vocab = 50272;
    c.max_positions = 2048;
    c.embed_dim = embed_dim;
    return c;
}

static int64_t count(struct decoder_config c)
{
    struct model m;
    int64_t n;

    model_init(&m, &c);
    cr_assert_eq(c.layers, 0, "the config was not taken over");
    n = m.n_params;
    model_fini(&m);
    return n;
}

/* As transformers counts them. */
Test(model, parameters_of_the_opt_family)
{
    struct decoder_config post = opt(24, 1024, 16, 512);

    post.norm_place = NORM_PLACE_POST;
    post.final_norm = false;
    cr_assert_eq(count(opt(12, 768, 12, 768)), 125239296);
    cr_assert_eq(count(post), 331196416);
    cr_assert_eq(count(opt(24, 2048, 32, 2048)), 1315758080);
    cr_assert_eq(count(opt(96, 12288, 96, 12288)), 174604468224);
}

Test(model, tied_table_is_shared)
{
    struct decoder_config c = opt(2, 64, 4, 64);
    struct model m;
    const struct block_desc *head;

    model_init(&m, &c);
    cr_assert_eq(m.n_blocks, 4);
    head = &m.blocks[3];
    cr_assert_eq(head->kind, BLOCK_HEAD);
    cr_assert_eq(block_find(&m, head, TENSOR_HEAD_W), -1);
    cr_assert_eq(head->tensors[block_find(&m, head, TENSOR_EMBED)],
                 m.blocks[0].tensors[block_find(&m, &m.blocks[0], TENSOR_EMBED)]);
    model_fini(&m);
    model_fini(&m); /* idempotent */
}

Test(model, untied_table_is_its_own)
{
    struct decoder_config c = opt(2, 64, 4, 64);
    struct model m;

    c.tied = false;
    model_init(&m, &c);
    cr_assert_geq(block_find(&m, &m.blocks[3], TENSOR_HEAD_W), 0);
    cr_assert_eq(block_find(&m, &m.blocks[3], TENSOR_EMBED), -1);
    model_fini(&m);
}

Test(model, decay_spares_vectors_and_positions)
{
    struct decoder_config c = opt(2, 64, 4, 32);
    struct model m;

    model_init(&m, &c);
    for (int64_t i = 0; i < m.n_tensors; i++) {
        const struct tensor_desc *t = &m.tensors[i];

        cr_assert_eq(t->decay, t->cols > 1 && t->role != TENSOR_POSITIONS, "%s",
                     tensor_role_name(t->role));
    }
    model_fini(&m);
}

Test(model, every_role_has_a_name)
{
    for (int i = 0; i < TENSOR_ROLE_COUNT; i++) {
        cr_assert_not_null(tensor_role_name((enum tensor_role)i));
        for (int j = 0; j < i; j++)
            cr_assert_neq(strcmp(tensor_role_name((enum tensor_role)i),
                                 tensor_role_name((enum tensor_role)j)),
                          0);
    }
}
