#include "worker/text/added_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/text/unicode.h"
#include "worker/text/utf8.h"

int added_set_init(struct added_set *set, const struct added_token *tokens, size_t pattern_bytes,
                   struct err *err)
{
    struct added_set s = {.tokens = tokens, .n_nodes = 1};
    void *token_of = NULL;
    int rc = 0;

    TRY(alloc_try(&token_of, pattern_bytes + 1, sizeof(*s.token_of), "the added tokens", err));
    TRY(pair_map_init(&s.children, (int64_t)pattern_bytes, err));
    s.token_of = token_of;
    s.token_of[0] = -1;
    *set = s;
    return 0;
out:
    free(token_of);
    return rc;
}

void added_set_fini(struct added_set *set)
{
    pair_map_fini(&set->children);
    free(set->token_of);
    memset(set, 0, sizeof(*set));
}

void added_set_add(struct added_set *set, const char *pattern, size_t n, int32_t index)
{
    int32_t node = 0;

    if (n == 0)
        return;
    set->first[(unsigned char)pattern[0]] = true;
    for (size_t i = 0; i < n; i++) {
        int32_t byte = (unsigned char)pattern[i];
        const struct pair_value *child = pair_map_find(&set->children, node, byte);
        if (child) {
            node = child->id;
            continue;
        }
        pair_map_set(&set->children, node, byte, (struct pair_value){0, set->n_nodes});
        node = set->n_nodes++;
        set->token_of[node] = -1;
    }
    set->token_of[node] = index;
}

/* The longest token at `text`: its index and, in *length, its bytes; -1 when there is none. */
static int32_t longest_at(const struct added_set *set, const char *text, size_t n, size_t *length)
{
    const struct pair_value *child;
    int32_t node = 0, best = -1;

    for (size_t i = 0; i < n; i++) {
        child = pair_map_find(&set->children, node, (unsigned char)text[i]);
        if (!child)
            break;
        node = child->id;
        if (set->token_of[node] >= 0) {
            best = set->token_of[node];
            *length = i + 1;
        }
    }
    return best;
}

static bool stands_alone(const char *text, size_t n, size_t start, size_t stop)
{
    size_t bytes;

    if (start > 0) {
        size_t before = utf8_step_back(text, start);
        if (unicode_is_word(utf8_read(text + before, n - before, &bytes)))
            return false;
    }
    return stop == n || !unicode_is_word(utf8_read(text + stop, n - stop, &bytes));
}

static size_t skip_spaces(const char *text, size_t n, size_t at)
{
    for (size_t bytes; at < n && unicode_is_space(utf8_read(text + at, n - at, &bytes));)
        at += bytes;
    return at;
}

static size_t skip_spaces_back(const char *text, size_t n, size_t at, size_t limit)
{
    size_t bytes;

    while (at > limit) {
        size_t before = utf8_step_back(text, at);
        if (!unicode_is_space(utf8_read(text + before, n - before, &bytes)))
            break;
        at = before;
    }
    return at;
}

/* The search goes on behind the match itself, also where rstrip swallowed more, and a match that
 * does not stand alone is passed over whole: both as the reference does. */
int added_set_split(const struct added_set *set, const char *text, size_t n, added_part_fn fn,
                    void *ud, struct err *err)
{
    size_t done = 0, i = 0, length;
    size_t spaces_from = 0, spaces_to = 0; /* a run known from before, so that none is read twice */
    int rc = 0;

    while (i < n) {
        int32_t index = -1;
        if (set->first[(unsigned char)text[i]])
            index = longest_at(set, text + i, n - i, &length);
        if (index < 0) {
            i++;
            continue;
        }
        const struct added_token *token = &set->tokens[index];
        size_t start = i, stop = i + length;
        i = stop;
        if (token->single_word && !stands_alone(text, n, start, stop))
            continue;
        if (token->lstrip) {
            start = skip_spaces_back(text, n, start, done < start ? done : start);
            start = start < done ? done : start;
        }
        if (token->rstrip && (stop < spaces_from || stop > spaces_to)) {
            spaces_from = stop;
            spaces_to = skip_spaces(text, n, stop);
        }
        if (token->rstrip)
            stop = spaces_to;
        if (done < start)
            TRY(fn(ud, -1, text + done, start - done, err));
        TRY(fn(ud, index, text + start, stop > start ? stop - start : 0, err));
        done = stop;
    }
    if (done < n)
        TRY(fn(ud, -1, text + done, n - done, err));
out:
    return rc;
}
