#include "worker/text/token_store.h"

#include <fcntl.h>
#include <stdlib.h>

#include "core/alloc.h"

int token_store_create(const char *dir, struct token_store **out, struct err *err)
{
    struct token_store *s = xcalloc(1, sizeof(*s));
    const int64_t zero = 0;
    int rc = 0;

    s->references = 1;
    s->dir = xstrdup(dir);
    TRY(spool_init(&s->tokens, s->dir, sizeof(int32_t), err));
    TRY(spool_init(&s->starts_file, s->dir, sizeof(int64_t), err));
    TRY(spool_init(&s->sources_file, s->dir, sizeof(int64_t), err));
    TRY(spool_add(&s->starts_file, &zero, 1, err));
    TRY(spool_add(&s->sources_file, &zero, 1, err));
    *out = s;
    s = NULL;
out:
    token_store_release(s);
    return rc;
}

struct token_store *token_store_share(struct token_store *s)
{
    s->references++;
    return s;
}

void token_store_release(struct token_store *s)
{
    if (!s || --s->references > 0)
        return;
    spool_fini(&s->tokens);
    spool_fini(&s->starts_file);
    spool_fini(&s->sources_file);
    free(s->dir);
    free(s);
}

int token_store_add(struct token_store *s, const int32_t *marked, int64_t n, struct err *err)
{
    int64_t end = s->n_tokens + n;
    int rc = 0;

    TRY(spool_add(&s->tokens, marked, n, err));
    TRY(spool_add(&s->starts_file, &end, 1, err));
    s->n_tokens = end;
    s->n_examples++;
out:
    return rc;
}

int token_store_end_source(struct token_store *s, struct err *err)
{
    int rc = spool_add(&s->sources_file, &s->n_examples, 1, err);

    s->n_sources += rc == 0;
    return rc;
}

int token_store_seal(struct token_store *s, struct err *err)
{
    int rc = 0;

    TRY(spool_seal(&s->tokens, err));
    TRY(spool_seal(&s->starts_file, err));
    TRY(spool_seal(&s->sources_file, err));
    TRY(spool_map(&s->starts_file, err));
    TRY(spool_map(&s->sources_file, err));
    s->starts = s->starts_file.map;
    s->sources = s->sources_file.map;
    /* Examples are read in a shuffled order: what lies behind one is of no use. */
    posix_fadvise(s->tokens.fd, 0, 0, POSIX_FADV_RANDOM);
out:
    return rc;
}

int token_store_read(const struct token_store *s, int64_t example, int32_t *out, int64_t *n,
                     struct err *err)
{
    *n = s->starts[example + 1] - s->starts[example];
    return spool_read(&s->tokens, s->starts[example], *n, out, err);
}
