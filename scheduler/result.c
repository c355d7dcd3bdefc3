#include "scheduler/result.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/hash.h"
#include "scheduler/store_write.h"

static const char *const columns[] = {
    "train_loss",        "train_mean_token_accuracy",
    "valid_loss",        "valid_mean_token_accuracy",
    "full_valid_loss",   "full_valid_mean_token_accuracy",
    "learning_rate",     "grad_norm",
    "tokens_per_second", "epoch",
    "seconds",
};
enum { N_COLUMNS = sizeof(columns) / sizeof(columns[0]) };

struct csv_row {
    int64_t step;
    double values[N_COLUMNS]; /* NaN = an empty cell */
};

struct table {
    struct csv_row *rows; /* by step, ascending */
    size_t n, cap;
};

static void hash_of(const char *what, const char *job_id, char out[65])
{
    struct hash h;

    hash_init(&h, HASH_SHA256, 0);
    hash_update(&h, what, strlen(what));
    hash_update(&h, job_id, strlen(job_id));
    hash_final_hex(&h, out);
}

char *result_model_name(const struct job *job, const char *organization)
{
    const struct spec_model *model = &job->spec.model;
    const char *base = model->repo ? model->repo : model->name ? model->name : "model";
    const char *slash = model->repo ? NULL : strrchr(base, '/');
    char hex[65];

    hash_of("model", job->id, hex);
    return xasprintf("ft:%s:%s:%s:%.8s", slash ? slash + 1 : base, organization,
                     job->spec.suffix ? job->spec.suffix : "", hex);
}

char *result_file_id(const struct job *job)
{
    char hex[65];

    hash_of("result", job->id, hex);
    return xasprintf("file-%.24s", hex);
}

/* The row of a step, made where there is none. Steps come in ascending runs. */
static struct csv_row *find_row(struct table *t, int64_t step)
{
    size_t at = t->n;

    if (t->n > 0 && t->rows[t->n - 1].step >= step) {
        size_t low = 0, high = t->n;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (t->rows[middle].step < step)
                low = middle + 1;
            else
                high = middle;
        }
        if (t->rows[low].step == step)
            return &t->rows[low];
        at = low;
    }
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 256;
        t->rows = xrealloc(t->rows, t->cap * sizeof(t->rows[0]));
    }
    memmove(t->rows + at + 1, t->rows + at, (t->n - at) * sizeof(t->rows[0]));
    t->n++;
    t->rows[at].step = step;
    for (int i = 0; i < N_COLUMNS; i++)
        t->rows[at].values[i] = NAN;
    return &t->rows[at];
}

static int take_metrics(void *ud, const json_t *data, struct err *err)
{
    const json_t *step = json_object_get(data, "step");
    struct csv_row *row;

    if (!json_is_integer(step))
        return 0;
    row = find_row(ud, json_integer_value(step));
    for (int i = 0; i < N_COLUMNS; i++) {
        const json_t *value = json_object_get(data, columns[i]);
        if (json_is_number(value))
            row->values[i] = json_number_value(value);
    }
    return 0;
}

int result_csv(struct store *store, const char *job_id, struct buf *out, struct err *err)
{
    struct table t = {0};
    int rc = 0;

    TRY(store_each_metrics(store, job_id, take_metrics, &t, err));
    buf_add_str(out, "step");
    for (int i = 0; i < N_COLUMNS; i++)
        buf_printf(out, ",%s", columns[i]);
    buf_add_char(out, '\n');
    for (size_t r = 0; r < t.n; r++) {
        buf_printf(out, "%" PRId64, t.rows[r].step);
        for (int i = 0; i < N_COLUMNS; i++) {
            buf_add_char(out, ',');
            if (!isnan(t.rows[r].values[i]))
                buf_printf(out, "%.9g", t.rows[r].values[i]);
        }
        buf_add_char(out, '\n');
    }
out:
    free(t.rows);
    return rc;
}
