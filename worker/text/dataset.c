#include "worker/text/dataset.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "worker/text/encode.h"
#include "worker/text/examples.h"
#include "worker/text/rows.h"

struct dataset {
    int32_t *tokens; /* of all examples, one behind the other, marked as encode_example does */
    int64_t *starts; /* [n_examples + 1] into tokens */
    int64_t *source; /* [n_sources + 1]: the first example of each line or paragraph */
    int64_t n_examples, n_sources, longest_source, n_targets;
    struct rows rows;
    int64_t row_length;
    bool packing;
    uint64_t seed;
    int32_t pad;
};

void dataset_destroy(struct dataset *d)
{
    if (!d)
        return;
    free(d->tokens);
    free(d->starts);
    free(d->source);
    rows_fini(&d->rows);
    free(d);
}

/* --- loading ---------------------------------------------------------------------------------- */

/* Growing arrays of a set that is being loaded. */
struct loading {
    struct dataset *d;
    struct example_encoder encoder;
    const struct dataset_options *options;
    const char *name;      /* of the file at hand, for messages */
    struct token_list ids; /* of the current example, marked */
    int64_t tokens_cap, starts_cap, source_cap;
    bool full; /* max_examples reached */
};

/* Make room for n elements; a data set's size comes from outside, so it may not fit. */
static int grow(void **array, int64_t *cap, int64_t n, size_t bytes_each, struct err *err)
{
    int64_t new_cap = *cap;
    void *p;

    if (n <= *cap)
        return 0;
    while (new_cap < n)
        new_cap = new_cap < 1024 ? 1024 : new_cap + new_cap / 2;
    p = realloc(*array, (size_t)new_cap * bytes_each);
    if (!p)
        return err_set(err, ERR_NOMEM,
                       "the data set does not fit in host memory: %" PRId64 " MiB for %" PRId64
                       " tokens or more; use a smaller file or max_examples",
                       (int64_t)((size_t)new_cap * bytes_each >> 20), n);
    *array = p;
    *cap = new_cap;
    return 0;
}

static int64_t total_tokens(const struct dataset *d)
{
    return d->starts[d->n_examples];
}

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

/* Cut the current example; parts without a target are left out, and *kept says if any stayed. */
static int add_example(struct loading *l, bool *kept, struct err *err)
{
    struct dataset *d = l->d;
    const struct token_list *ids = &l->ids;
    int64_t base = total_tokens(d), parts = ids->n / d->row_length + 2;
    void *tokens = d->tokens, *starts = d->starts, *source = d->source;
    int rc = 0;

    rc = grow(&tokens, &l->tokens_cap, base + ids->n, sizeof(*d->tokens), err);
    d->tokens = tokens;
    if (rc == 0)
        rc = grow(&starts, &l->starts_cap, d->n_examples + parts + 1, sizeof(*d->starts), err);
    d->starts = starts;
    if (rc == 0)
        rc = grow(&source, &l->source_cap, d->n_sources + 2, sizeof(*d->source), err);
    d->source = source;
    if (rc != 0)
        return rc;
    for (int64_t at = 0, n; at < ids->n; at += n) {
        n = cut_length(ids->n - at, d->row_length);
        int64_t targets = count_targets(ids->ids + at, n);
        if (targets == 0)
            continue;
        base = total_tokens(d);
        memcpy(d->tokens + base, ids->ids + at, (size_t)n * sizeof(*d->tokens));
        d->starts[++d->n_examples] = base + n;
        d->n_targets += targets;
    }
    *kept = d->n_examples > d->source[d->n_sources];
    if (!*kept)
        return 0;
    d->source[++d->n_sources] = d->n_examples;
    if (ids->n > d->longest_source)
        d->longest_source = ids->n;
    return 0;
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

static int load_example(void *ud, int64_t line, const struct example *example, struct err *err)
{
    struct loading *l = ud;
    struct err bad = {0};
    bool kept = false;
    int rc = 0;

    l->ids.n = 0;
    rc = encode_example(&l->encoder, example, &l->ids, &bad);
    if (rc == ERR_UNSUPPORTED) {
        rc = err_set(err, rc, "%s, line %" PRId64 ": %s", l->name, line, bad.msg);
        rc = err_set_param(err, rc, l->options->param);
        return err_set_reason(err, rc, bad.reason);
    }
    if (rc != 0)
        return refuse_line(l, line, bad.msg, err);
    if (l->ids.n < 2)
        return refuse_line(l, line, "the text has nothing the tokenizer knows", err);
    TRY(add_example(l, &kept, err));
    if (!kept)
        return refuse_line(l, line,
                           "there is no token to train on; an assistant's message with another "
                           "weight than 0 is needed, or a larger dataset.max_seq_length",
                           err);
    l->full = l->d->n_sources == l->options->max_examples;
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
    return rows_init(&d->rows, d->starts, d->n_examples, d->row_length, d->packing, d->seed, err);
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
        .options = options,
        .starts_cap = 1,
        .source_cap = 1};
    int rc = 0;

    assert(options->max_seq_length > 1);
    d->row_length = options->max_seq_length;
    d->packing = options->packing;
    d->seed = options->seed;
    d->pad = tokenizer_pad(tokenizer) >= 0 ? tokenizer_pad(tokenizer) : 0;
    d->starts = xcalloc(1, sizeof(*d->starts));
    d->source = xcalloc(1, sizeof(*d->source));
    if (tokenizer_eos(tokenizer) < 0) {
        rc = err_set(err, ERR_UNSUPPORTED,
                     "the model's tokenizer names no end-of-text token, so examples cannot end; "
                     "use a model whose tokenizer_config.json has eos_token");
        goto out;
    }
    TRY(read_files(&l, paths, n_paths, err));
    TRY(check_count(d, options, err));
    TRY(make_rows(d, err));
    *out = d;
    d = NULL;
out:
    token_list_fini(&l.ids);
    dataset_destroy(d);
    return rc;
}

void dataset_get_stats(const struct dataset *d, struct dataset_stats *out)
{
    *out = (struct dataset_stats){
        .examples = d->n_examples,
        .sources = d->n_sources,
        .tokens = total_tokens(d),
        .target_tokens = d->n_targets,
        .rows = d->rows.n,
        .longest_example = d->longest_source,
    };
}

/* --- checking --------------------------------------------------------------------------------- */

struct checking {
    dataset_fault_fn fn;
    void *ud;
    int64_t examples;
    int64_t kinds[EXAMPLE_COLUMNS + 1];
    bool stopped;
};

static int count_example(void *ud, int64_t line, const struct example *example, struct err *err)
{
    struct checking *c = ud;

    c->examples++;
    c->kinds[example->kind]++;
    return 0;
}

static int report_fault(void *ud, int64_t line, const char *message, struct err *err)
{
    struct checking *c = ud;

    c->stopped = c->fn(c->ud, line, message) != 0;
    return c->stopped ? ERR_CANCELLED : 0;
}

static const char *shape_name(const struct checking *c)
{
    static const char *const names[] = {"text", "prompt", "messages", "columns"};

    for (int i = 0; i <= EXAMPLE_COLUMNS; i++)
        if (c->kinds[i] > 0)
            return c->kinds[i] == c->examples ? names[i] : "mixed";
    return "none";
}

int dataset_check(const char *path, enum data_format format, dataset_fault_fn fn, void *ud,
                  struct dataset_summary *out, struct err *err)
{
    static const char *const names[] = {"empty", "jsonl", "csv", "parquet", "plain"};
    struct checking c = {.fn = fn, .ud = ud};
    struct example_reader reader = {.format = format,
                                    .any_columns = true,
                                    .fn = count_example,
                                    .fault_fn = report_fault,
                                    .ud = &c};
    int64_t bytes = 0;
    int rc = examples_read(&reader, path, err);

    if (rc != 0 && !c.stopped)
        return rc;
    fs_file_size(path, &bytes, NULL);
    *out = (struct dataset_summary){.format = names[reader.container],
                                    .shape = shape_name(&c),
                                    .examples = c.examples,
                                    .bytes = bytes};
    return 0;
}

/* --- splitting -------------------------------------------------------------------------------- */

/* The longest of the sources [from, to). */
static int64_t longest_of(const struct dataset *d, int64_t from, int64_t to)
{
    int64_t longest = 0;

    for (int64_t i = from; i < to; i++) {
        int64_t n = d->starts[d->source[i + 1]] - d->starts[d->source[i]];
        longest = n > longest ? n : longest;
    }
    return longest;
}

static int64_t count_all_targets(const struct dataset *d)
{
    int64_t targets = 0;

    for (int64_t i = 0; i < d->n_examples; i++)
        targets += count_targets(d->tokens + d->starts[i], d->starts[i + 1] - d->starts[i]);
    return targets;
}

/* A new set of the sources [from, to). */
static int copy_part(const struct dataset *d, int64_t from, int64_t to, struct dataset **out,
                     struct err *err)
{
    int64_t first = d->source[from], last = d->source[to], base = d->starts[first];
    struct dataset *part = xcalloc(1, sizeof(*part));
    void *tokens = NULL, *starts = NULL, *source = NULL;
    int rc = 0;

    *part = (struct dataset){.n_examples = last - first,
                             .n_sources = to - from,
                             .longest_source = longest_of(d, from, to),
                             .row_length = d->row_length,
                             .packing = d->packing,
                             .seed = d->seed,
                             .pad = d->pad};
    int64_t n_tokens = d->starts[last] - base;
    TRY(alloc_try(&tokens, (size_t)n_tokens, sizeof(*d->tokens), "the data set", err));
    part->tokens = tokens;
    TRY(alloc_try(&starts, (size_t)part->n_examples + 1, sizeof(*d->starts), "the data set", err));
    part->starts = starts;
    TRY(alloc_try(&source, (size_t)part->n_sources + 1, sizeof(*d->source), "the data set", err));
    part->source = source;
    memcpy(part->tokens, d->tokens + base, (size_t)n_tokens * sizeof(*d->tokens));
    for (int64_t i = 0; i <= part->n_examples; i++)
        part->starts[i] = d->starts[first + i] - base;
    for (int64_t i = 0; i <= part->n_sources; i++)
        part->source[i] = d->source[from + i] - first;
    part->n_targets = count_all_targets(part);
    TRY(make_rows(part, err));
    *out = part;
    part = NULL;
out:
    dataset_destroy(part);
    return rc;
}

int dataset_split(struct dataset *d, double fraction, struct dataset **validation, struct err *err)
{
    struct dataset *last = NULL;
    struct rows old_rows = d->rows;
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
    int64_t kept = d->n_sources - n, all = d->n_examples;
    TRY(copy_part(d, kept, d->n_sources, &last, err));
    d->n_examples = d->source[kept];
    rc = make_rows(d, err);
    if (rc != 0) {
        d->n_examples = all;
        d->rows = old_rows;
        goto out;
    }
    rows_fini(&old_rows);
    d->n_sources = kept;
    d->n_targets -= last->n_targets;
    d->longest_source = longest_of(d, 0, kept);
    *validation = last;
    last = NULL;
out:
    dataset_destroy(last);
    return rc;
}

/* --- batches ---------------------------------------------------------------------------------- */

/* The row at a place of an epoch's order, or -1 past the end. */
static int64_t row_at(const struct dataset *d, int64_t epoch, int64_t place)
{
    return place < d->rows.n ? rows_permute(place, d->rows.n, d->seed, epoch) : -1;
}

/* Write row `row` (or, at -1, padding) as row b of the batch. */
static void fill_row(const struct dataset *d, int64_t row, int64_t b, struct batch *batch)
{
    int32_t *tokens = batch->tokens + b * batch->T, *targets = batch->targets + b * batch->T;
    int32_t *positions = batch->positions + b * batch->T;
    int32_t *first_key = batch->first_key + b * batch->T;
    int64_t at = 0;

    for (int64_t m = row < 0 ? 0 : d->rows.first[row]; row >= 0 && m < d->rows.first[row + 1];
         m++) {
        int64_t start = d->starts[d->rows.members[m]], end = d->starts[d->rows.members[m] + 1];
        int32_t first = (int32_t)at;
        for (int64_t i = start; i < end; i++, at++) {
            tokens[at] = marked_id(d->tokens[i]);
            targets[at] = i + 1 < end && marked_is_trained(d->tokens[i + 1]) ? d->tokens[i + 1]
                                                                             : TARGET_IGNORE;
            positions[at] = (int32_t)(i - start);
            first_key[at] = first;
        }
        batch->n_targets += count_targets(d->tokens + start, end - start);
    }
    batch->n_tokens += at;
    for (; at < batch->T; at++) {
        tokens[at] = d->pad;
        targets[at] = TARGET_IGNORE;
        positions[at] = 0;
        first_key[at] = (int32_t)at;
    }
}

void dataset_fill(const struct dataset *d, int64_t epoch, int64_t first_row, struct batch *batch)
{
    assert(batch->T == d->row_length && first_row >= 0 && epoch >= 0);
    batch->n_tokens = batch->n_targets = 0;
    for (int64_t b = 0; b < batch->B; b++)
        fill_row(d, row_at(d, epoch, first_row + b), b, batch);
}

int64_t dataset_count_targets(const struct dataset *d, int64_t epoch, int64_t first_row,
                              int64_t rows)
{
    int64_t targets = 0;

    for (int64_t i = first_row; i < first_row + rows && i < d->rows.n; i++) {
        int64_t row = row_at(d, epoch, i);
        for (int64_t m = d->rows.first[row]; m < d->rows.first[row + 1]; m++) {
            int64_t start = d->starts[d->rows.members[m]];
            targets += count_targets(d->tokens + start, d->starts[d->rows.members[m] + 1] - start);
        }
    }
    return targets;
}
