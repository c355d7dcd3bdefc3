/* dataset_check: what a data file is and what is wrong with it, without a tokenizer. */
#include "core/fs.h"
#include "worker/text/dataset.h"
#include "worker/text/examples.h"

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
