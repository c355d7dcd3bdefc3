/* A data file of any format but Parquet, compressed or not, checked and read as a job would. The
 * first byte of the input picks format and mapping. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "worker/text/dataset.h"
#include "worker/text/examples.h"
#include "worker/text/utf8.h"

static int note_fault(void *ud, int64_t line, const char *message)
{
    (void)ud;
    if (line < 1 || !*message)
        abort();
    return 0;
}

static int note_bad_line(void *ud, int64_t line, const char *message, struct err *err)
{
    (void)err;
    return note_fault(ud, line, message);
}

/* Strings are UTF-8 of the length that is said, messages those that templates may rely on. */
static int use(void *ud, int64_t line, const struct example *x, struct err *err)
{
    (void)ud, (void)err;
    if (line < 1 || (x->kind == EXAMPLE_MESSAGES) != (x->messages != NULL))
        abort();
    if (x->text && utf8_check(x->text, x->n) != x->n)
        abort();
    if (x->prompt && utf8_check(x->prompt, x->prompt_n) != x->prompt_n)
        abort();
    for (size_t i = 0; i < json_array_size(x->messages); i++)
        if (!json_is_string(json_object_get(json_array_get(x->messages, i), "role")))
            abort();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const enum data_format formats[] = {DATA_AUTO,   DATA_AUTO,     DATA_AUTO,  DATA_TEXT,
                                               DATA_PROMPT, DATA_MESSAGES, DATA_PLAIN, DATA_AUTO};
    static json_t *mapping;
    struct dataset_summary summary;

    if (n == 0)
        return 0;
    if (!mapping)
        mapping = json_pack("{s:s, s:s}", "prompt", "question", "completion", "answer");
    const char *path = fuzz_file("data", data + 1, n - 1);
    enum data_format format = formats[data[0] & 7];
    if (dataset_check(path, format, note_fault, NULL, &summary, NULL) == 0 &&
        (summary.examples < 0 || summary.bytes != (int64_t)n - 1))
        abort();
    struct example_reader reader = {.format = format,
                                    .mapping = data[0] & 8 ? mapping : NULL,
                                    .fn = use,
                                    .fault_fn = note_bad_line};
    examples_read(&reader, path, NULL);
    return 0;
}
