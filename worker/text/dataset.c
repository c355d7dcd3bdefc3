#include "worker/text/dataset.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/encode.h"
#include "worker/text/examples.h"
#include "worker/text/rows.h"
#include "worker/text/token_store.h"

/* Examples [first, first + n_examples) of a store, made of sources [first_source, ...). */
struct dataset {
    struct token_store *store;
    int64_t first, n_examples, first_source, n_sources;
    int64_t longest_source, n_targets;
    struct rows rows; /* of examples counted from `first` */
    int64_t row_length;
    bool packing;
    uint64_t seed;
    int32_t pad;
};

void dataset_destroy(struct dataset *d)
{
    if (!d)
        return;
    rows_fini(&d->rows);
    token_store_release(d->store);
    free(d);
}

/* --- loading --- */

/* A set on its way. */
struct loading {
    struct dataset *d;
    struct example_encoder encoder;
    const struct dataset_options *options;
    const char *name;      /* of the file at hand, for messages */
    struct token_list ids; /* of the current example, marked */
    bool full;             /* max_examples reached */
};

/* Tokens of the next part of an example with `left` tokens. */
static int64_t cut_length(int64_t left, int64_t row_length)
{
    if (left <= row_length)
        return left;
    return left == row_length + 1 ? row_length - 1 : row_length;
}

/* Of n marked tokens that begin an example; the first one cannot be a target. */
static int64_t count_targets(const int32_t *marked, int64_t n)
{
    int64_t targets = 0;

    for (int64_t i = 1; i < n; i++)
        targets += marked_is_trained(marked[i]);
    return targets;
}

/* Cut the current example; parts without a target are left out. */
static int add_example(struct loading *l, struct err *err)
{
    struct dataset *d = l->d;
    const struct token_list *ids = &l->ids;
    int rc = 0;

    for (int64_t at = 0, n; at < ids->n; at += n) {
        n = cut_length(ids->n - at, d->row_length);
        int64_t targets = count_targets(ids->ids + at, n);
        if (targets == 0)
            continue;
        TRY(token_store_add(d->store, ids->ids + at, n, err));
        d->n_examples++;
        d->n_targets += targets;
        if (ids->n > d->longest_source)
            d->longest_source = ids->n;
    }
out:
    return rc;
}

static const char *file_reason(const struct loading *l)
{
    return strcmp(l->options->param, "validation_file") == 0 ? "invalid_validation_file"
                                                             : "invalid_training_file";
}

static int refuse_line(void *ud, int64_t line, const char *message, struct err *err)
{
    const struct loading *l = ud;
    int rc;

    rc = err_set(err, ERR_INVALID, "%s, line %" PRId64 ": %s", l->name, line, message);
    rc = err_set_param(err, rc, l->options->param);
    return err_set_reason(err, rc, file_reason(l));
}

/* The conversation up to and with message `last`, of whose answers that one is trained on only. */
static json_t *begin_talk(const json_t *messages, size_t last)
{
    json_t *out = json_array();

    for (size_t i = 0; i <= last; i++) {
        json_t *message = json_copy(json_array_get(messages, i));
        if (i < last && message_is_from_assistant(message))
            json_object_set_new(message, "weight", json_integer(0));
        json_array_append_new(out, message);
    }
    return out;
}

/* *bad is set where an answer is at fault, *err where the disk is. */
static int load_answers(struct loading *l, const struct example *example, struct err *bad,
                        struct err *err)
{
    int rc = 0;

    for (size_t i = 0; i < json_array_size(example->messages); i++) {
        struct example one = *example;
        if (!message_is_trained(json_array_get(example->messages, i)))
            continue;
        l->ids.n = 0;
        one.messages = begin_talk(example->messages, i);
        rc = encode_example(&l->encoder, &one, &l->ids, bad);
        json_decref(one.messages);
        TRY(rc);
        TRY(add_example(l, err));
    }
out:
    return rc;
}

static int load_example(void *ud, int64_t line, const struct example *example, struct err *err)
{
    struct loading *l = ud;
    int64_t before = l->d->n_examples;
    struct err bad = {0};
    int rc = 0;

    l->ids.n = 0;
    rc = encode_example(&l->encoder, example, &l->ids, &bad);
    if (rc == ERR_CONFLICT) {
        err_clear(&bad);
        rc = load_answers(l, example, &bad, err);
        if (rc != 0 && bad.code == ERR_OK)
            return rc;
    } else if (rc == 0 && l->ids.n < 2) {
        return refuse_line(l, line, "the text has nothing the tokenizer knows", err);
    } else if (rc == 0) {
        TRY(add_example(l, err));
    }
    if (rc == ERR_UNSUPPORTED) {
        rc = err_set(err, rc, "%s, line %" PRId64 ": %s", l->name, line, bad.msg);
        rc = err_set_param(err, rc, l->options->param);
        return err_set_reason(err, rc, bad.reason);
    }
    if (rc != 0)
        return refuse_line(l, line, bad.msg, err);
    if (l->d->n_examples == before)
        return refuse_line(l, line,
                           "there is no token to train on; an assistant's message with another "
                           "weight than 0 is needed, or a larger dataset.max_seq_length",
                           err);
    TRY(token_store_end_source(l->d->store, err));
    l->full = ++l->d->n_sources == l->options->max_examples;
out:
    return rc == 0 && l->full ? ERR_CANCELLED : rc; /* ends the reading, see dataset_load */
}

static int check_count(const struct dataset *d, const struct dataset_options *o, struct err *err)
{
    int64_t least = o->min_examples > 1 ? o->min_examples : 1;
    int rc;

    if (d->n_sources >= least)
        return 0;
    rc = err_set(err, ERR_INVALID,
                 "%s has %" PRId64 " example%s, but at least %" PRId64
                 " are needed; add examples, or lower dataset.min_examples",
                 o->name, d->n_sources, d->n_sources == 1 ? "" : "s", least);
    rc = err_set_param(err, rc, o->param);
    return err_set_reason(err, rc, "invalid_n_examples");
}

static int make_rows(struct dataset *d, struct err *err)
{
    return rows_init(&d->rows, d->store->dir, d->store->starts + d->first, d->n_examples,
                     d->row_length, d->packing, d->seed, err);
}

/* The files, one behind the other. */
static int read_files(struct loading *l, const char *const *paths, int64_t n, struct err *err)
{
    const struct dataset_options *o = l->options;
    struct example_reader reader = {.format = o->format,
                                    .mapping = o->mapping,
                                    .fn = load_example,
                                    .fault_fn = refuse_line,
                                    .ud = l};
    struct err own = {0};

    for (int64_t i = 0; i < n && !l->full; i++) {
        const char *slash = strrchr(paths[i], '/');
        l->name = n == 1 ? o->name : slash ? slash + 1 : paths[i];
        int rc = examples_read(&reader, paths[i], &own);
        if (rc == 0 || (rc == ERR_CANCELLED && l->full))
            continue;
        if (!own.reason[0]) { /* about the file, not about a line of it */
            err_wrap(&own, rc, "%s", l->name);
            if (!own.param[0])
                err_set_param(&own, rc, o->param);
            if (rc == ERR_INVALID || rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED)
                err_set_reason(&own, rc, file_reason(l));
        }
        if (err)
            *err = own;
        return rc;
    }
    return 0;
}

int dataset_load(const char *const *paths, int64_t n_paths, const struct tokenizer *tokenizer,
                 const struct dataset_options *options, struct dataset **out, struct err *err)
{
    struct dataset *d = xcalloc(1, sizeof(*d));
    struct loading l = {
        .d = d,
        .encoder = {.tokenizer = tokenizer, .chat = options->chat, .loss_on = options->loss_on},
        .options = options};
    int rc = 0;

    assert(options->max_seq_length > 1);
    d->row_length = options->max_seq_length;
    d->packing = options->packing;
    d->seed = options->seed;
    d->pad = tokenizer_pad(tokenizer) >= 0 ? tokenizer_pad(tokenizer) : 0;
    if (tokenizer_eos(tokenizer) < 0) {
        rc = err_set(err, ERR_UNSUPPORTED,
                     "the model's tokenizer names no end-of-text token, so examples cannot end; "
                     "use a model whose tokenizer_config.json has eos_token");
        goto out;
    }
    TRY(token_store_create(options->scratch_dir, &d->store, err));
    TRY(read_files(&l, paths, n_paths, err));
    TRY(check_count(d, options, err));
    TRY(token_store_seal(d->store, err));
    TRY(make_rows(d, err));
    *out = d;
    d = NULL;
out:
    if (rc == ERR_NOSPACE && err)
        err_set_reason(err, rc, "disk_full");
    token_list_fini(&l.ids);
    dataset_destroy(d);
    return rc;
}

void dataset_get_stats(const struct dataset *d, struct dataset_stats *out)
{
    *out = (struct dataset_stats){
        .examples = d->n_examples,
        .sources = d->n_sources,
        .tokens = d->store->starts[d->first + d->n_examples] - d->store->starts[d->first],
        .target_tokens = d->n_targets,
        .rows = d->rows.n,
        .longest_example = d->longest_source,
    };
}

/* --- splitting --- */

/* Take the sources [from, to) of the store for the set's own, and count what is in them. */
static int take_sources(struct dataset *d, int64_t from, int64_t to, struct err *err)
{
    const struct token_store *s = d->store;
    int32_t *ids = xcalloc((size_t)d->row_length, sizeof(*ids));
    int64_t n;
    int rc = 0;

    d->first_source = from;
    d->n_sources = to - from;
    d->first = s->sources[from];
    d->n_examples = s->sources[to] - d->first;
    d->longest_source = d->n_targets = 0;
    for (int64_t i = from; i < to; i++) {
        n = s->starts[s->sources[i + 1]] - s->starts[s->sources[i]];
        d->longest_source = n > d->longest_source ? n : d->longest_source;
    }
    for (int64_t i = 0; i < d->n_examples; i++) {
        TRY(token_store_read(s, d->first + i, ids, &n, err));
        d->n_targets += count_targets(ids, n);
    }
    TRY(make_rows(d, err));
out:
    free(ids);
    return rc;
}

/* A set like `d`, of some of its sources. */
static int make_part(const struct dataset *d, int64_t from, int64_t to, struct dataset **out,
                     struct err *err)
{
    struct dataset *part = xcalloc(1, sizeof(*part));
    int rc = 0;

    *part = (struct dataset){.store = token_store_share(d->store),
                             .row_length = d->row_length,
                             .packing = d->packing,
                             .seed = d->seed,
                             .pad = d->pad};
    TRY(take_sources(part, from, to, err));
    *out = part;
    part = NULL;
out:
    dataset_destroy(part);
    return rc;
}

int dataset_split(struct dataset *d, double fraction, struct dataset **validation, struct err *err)
{
    struct dataset *front = NULL, *last = NULL;
    int rc = 0;

    assert(fraction > 0 && fraction < 1);
    if (d->n_sources < 2) {
        rc = err_set(err, ERR_INVALID,
                     "one example cannot be split into training and validation; add examples, or "
                     "set dataset.validation_fraction to 0");
        return err_set_reason(err, rc, "invalid_n_examples");
    }
    int64_t n = (int64_t)((double)d->n_sources * fraction);
    n = n < 1 ? 1 : n > d->n_sources - 1 ? d->n_sources - 1 : n;
    int64_t begin = d->first_source, end = begin + d->n_sources;
    TRY(make_part(d, end - n, end, &last, err));
    TRY(make_part(d, begin, end - n, &front, err));
    struct dataset whole = *d;
    *d = *front;
    *front = whole;
    *validation = last;
    last = NULL;
out:
    dataset_destroy(front);
    dataset_destroy(last);
    return rc;
}

/* --- batches --- */

/* The row at a place of an epoch's order, or -1 past the end. */
static int64_t row_at(const struct dataset *d, int64_t epoch, int64_t place)
{
    return place < d->rows.n ? rows_permute(place, d->rows.n, d->seed, epoch) : -1;
}

/* An example at `at` of the arrays of a row. Its marked ids are read into `targets`, and each
 * becomes its successor in turn. */
static int fill_example(const struct dataset *d, int64_t example, int64_t at, int32_t *tokens,
                        int32_t *targets, int32_t *positions, int32_t *first_key, int64_t *n,
                        int64_t *n_targets, struct err *err)
{
    int32_t *marked = targets + at;
    int rc = token_store_read(d->store, d->first + example, marked, n, err);

    if (rc != 0)
        return rc;
    *n_targets += count_targets(marked, *n);
    for (int64_t i = 0; i < *n; i++) {
        tokens[at + i] = marked_id(marked[i]);
        marked[i] = i + 1 < *n && marked_is_trained(marked[i + 1]) ? marked[i + 1] : TARGET_IGNORE;
        positions[at + i] = (int32_t)i;
        first_key[at + i] = (int32_t)at;
    }
    return 0;
}

/* Write row `row` (or, at -1, padding) as row b of the batch. */
static int fill_row(const struct dataset *d, int64_t row, int64_t b, struct batch *batch,
                    struct err *err)
{
    int32_t *tokens = batch->tokens + b * batch->T, *targets = batch->targets + b * batch->T;
    int32_t *positions = batch->positions + b * batch->T;
    int32_t *first_key = batch->first_key + b * batch->T;
    int64_t at = 0, n;
    int rc = 0;

    for (int64_t m = row < 0 ? 0 : d->rows.first[row]; row >= 0 && m < d->rows.first[row + 1];
         m++) {
        TRY(fill_example(d, d->rows.members[m], at, tokens, targets, positions, first_key, &n,
                         &batch->n_targets, err));
        at += n;
    }
    batch->n_tokens += at;
    for (; at < batch->T; at++) {
        tokens[at] = d->pad;
        targets[at] = TARGET_IGNORE;
        positions[at] = 0;
        first_key[at] = (int32_t)at;
    }
out:
    return rc;
}

int dataset_fill(const struct dataset *d, int64_t epoch, int64_t first_row, struct batch *batch,
                 struct err *err)
{
    int rc = 0;

    assert(batch->T == d->row_length && first_row >= 0 && epoch >= 0);
    batch->n_tokens = batch->n_targets = 0;
    for (int64_t b = 0; b < batch->B; b++)
        TRY(fill_row(d, row_at(d, epoch, first_row + b), b, batch, err));
out:
    return rc;
}
