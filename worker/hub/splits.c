#include "worker/hub/splits.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/hub/glob.h"

static const char *const formats[] = {".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".txt"};
static const char *const compressions[] = {"", ".gz", ".zst"};
static const char *const not_data[] = {"README.md", "config.json", "dataset_info.json",
                                       "dataset_infos.json", "dataset_dict.json"};
static const char separators[] = "-._ 0123456789";

static const struct keyword {
    const char *split, *word;
} keywords[] = {
    {"train", "train"},      {"train", "training"}, {"validation", "validation"},
    {"validation", "valid"}, {"validation", "dev"}, {"validation", "val"},
    {"test", "test"},        {"test", "testing"},   {"test", "eval"},
    {"test", "evaluation"},
};
#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

void split_files_fini(struct split_files *s)
{
    free(s->files);
    *s = (struct split_files){0};
}

/* --- what is data --- */

/* The index of the name's format, -1 = none. */
static int format_of(const char *path)
{
    size_t n = strlen(path);

    for (size_t c = 0; c < COUNT(compressions); c++) {
        size_t tail = strlen(compressions[c]);
        if (n < tail || strcmp(path + n - tail, compressions[c]) != 0)
            continue;
        for (size_t i = 0; i < COUNT(formats); i++) {
            size_t m = strlen(formats[i]);
            if (n - tail > m && memcmp(path + n - tail - m, formats[i], m) == 0)
                return (int)i;
        }
    }
    return -1;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

bool splits_is_data(const char *path)
{
    for (size_t i = 0; i < COUNT(not_data); i++)
        if (strcmp(base_name(path), not_data[i]) == 0)
            return false;
    return format_of(path) >= 0;
}

/* The path below the folder; NULL when it is not there. */
static const char *below(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    if (n == 0)
        return path;
    return strncmp(path, folder, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

/* Data below the folder that no part of its name hides. */
static const char *visible_data(const struct listing_file *file, const char *folder)
{
    const char *path = below(file->path, folder);

    return path && splits_is_data(path) && glob_path("**", path) ? path : NULL;
}

static void add(struct split_files *s, const struct listing_file *file)
{
    s->files = xrealloc(s->files, (size_t)(s->n + 1) * sizeof(*s->files));
    s->files[s->n++] = file;
}

/* Of mixed formats, the most frequent one. */
static void keep_one_format(struct split_files *s)
{
    int64_t counts[COUNT(formats)] = {0}, kept = 0;
    int best = 0;

    for (int64_t i = 0; i < s->n; i++)
        counts[format_of(s->files[i]->path)]++;
    for (int i = 1; i < (int)COUNT(formats); i++)
        if (counts[i] > counts[best])
            best = i;
    for (int64_t i = 0; i < s->n; i++)
        if (format_of(s->files[i]->path) == best)
            s->files[kept++] = s->files[i];
    s->n = kept;
}

/* A name into a list with commas, once. */
static void note(struct buf *list, const char *name, size_t n)
{
    for (const char *p = buf_str(list); *p;) {
        size_t len = strcspn(p, ",");
        if (len == n && memcmp(p, name, n) == 0)
            return;
        p += len + (p[len] == ',') + (p[len] == ',' && p[len + 1] == ' ');
    }
    buf_printf(list, "%s%.*s", list->len > 0 ? ", " : "", (int)n, name);
}

/* --- by name --- */

/* The split of data/SPLIT-00000-of-00002*.*; NULL for another path. */
static const char *sharded_split(const char *path, size_t *n)
{
    static const char digits[] = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*";
    const char *name = below(path, "data");

    if (!name || strchr(name, '/'))
        return NULL;
    for (const char *p = strchr(name, '-'); p; p = strchr(p + 1, '-')) {
        if (p > name && glob_part(digits, strlen(digits), p, strlen(p))) {
            *n = (size_t)(p - name);
            return name;
        }
    }
    return NULL;
}

static bool is_separator(char c)
{
    return c != '\0' && strchr(separators, c) != NULL;
}

/* Whether the word stands in the part of a path, with separators at its ends, or the part's own. */
static bool has_word(const char *part, size_t n, const char *word, bool may_end)
{
    size_t m = strlen(word);

    for (size_t i = 0; i + m <= n; i++)
        if (memcmp(part + i, word, m) == 0 && (i == 0 || is_separator(part[i - 1])) &&
            (i + m == n ? may_end : is_separator(part[i + m])))
            return true;
    return false;
}

static bool folder_has_word(const char *path, const char *word)
{
    for (const char *slash = strchr(path, '/'); slash; slash = strchr(path, '/')) {
        if (has_word(path, (size_t)(slash - path), word, true))
            return true;
        path = slash + 1;
    }
    return false;
}

enum convention { SHARDED, FOLDERS, NAMES, EVERYTHING, N_CONVENTIONS };

/* Whether the convention makes this path a part of the split; the splits that it sees in the path
 * are noted. */
static bool belongs(enum convention convention, const char *path, const char *split,
                    struct buf *known)
{
    const char *name = base_name(path), *found;
    size_t n = 0;
    bool mine = false;

    switch (convention) {
    case SHARDED:
        found = sharded_split(path, &n);
        if (found)
            note(known, found, n);
        return found && n == strlen(split) && memcmp(found, split, n) == 0;
    case FOLDERS:
    case NAMES:
        for (size_t i = 0; i < COUNT(keywords); i++) {
            const struct keyword *k = &keywords[i];
            if (convention == FOLDERS ? !folder_has_word(path, k->word)
                                      : !has_word(name, strlen(name), k->word, false))
                continue;
            note(known, k->split, strlen(k->split));
            mine |= strcmp(k->split, split) == 0;
        }
        return mine;
    default:
        note(known, "train", 5);
        return strcmp(split, "train") == 0;
    }
}

void splits_by_name(const struct listing *l, const char *folder, const char *split,
                    struct split_files *out, struct buf *known)
{
    struct split_files s = {0};

    for (int c = 0; c < N_CONVENTIONS && known->len == 0; c++) {
        for (int64_t i = 0; i < l->n; i++) {
            const char *path = visible_data(&l->files[i], folder);
            if (path && belongs((enum convention)c, path, split, known))
                add(&s, &l->files[i]);
        }
    }
    keep_one_format(&s);
    *out = s;
}

/* --- by a card --- */

static bool matches(const json_t *patterns, const char *path)
{
    const json_t *item;
    size_t i;

    json_array_foreach((json_t *)patterns, i, item)
    {
        const char *pattern = json_string_value(item);
        if (strncmp(pattern, "./", 2) == 0)
            pattern += 2;
        if (glob_path(pattern, path))
            return true;
    }
    return false;
}

void splits_by_pattern(const struct listing *l, const char *folder, const json_t *patterns,
                       const char *split, struct split_files *out, struct buf *known)
{
    const json_t *mine = json_object_get(patterns, split);
    struct split_files s = {0};
    const char *name;
    json_t *list;

    json_object_foreach((json_t *)patterns, name, list) note(known, name, strlen(name));
    for (int64_t i = 0; i < l->n; i++) {
        const char *path = below(l->files[i].path, folder);
        if (path && splits_is_data(path) && matches(mine, path))
            add(&s, &l->files[i]);
    }
    keep_one_format(&s);
    *out = s;
}

/* --- the converter's branch --- */

/* CONFIG/SPLIT/0000.parquet, and CONFIG/partial-SPLIT/0000.parquet of sets too large for it. */
static bool converted_parts(const char *path, size_t *config_n, const char **split, size_t *split_n)
{
    static const char partial[] = "partial-";
    const char *first = strchr(path, '/'), *second = first ? strchr(first + 1, '/') : NULL;

    if (!second || strchr(second + 1, '/') || !splits_is_data(path))
        return false;
    *config_n = (size_t)(first - path);
    *split = first + 1;
    if (strncmp(*split, partial, strlen(partial)) == 0)
        *split += strlen(partial);
    *split_n = (size_t)(second - *split);
    return true;
}

/* Whether the text of n bytes is the name; a NULL name is "default". */
static bool is_name(const char *text, size_t n, const char *name)
{
    name = name ? name : "default";
    return strlen(name) == n && memcmp(text, name, n) == 0;
}

void splits_converted(const struct listing *l, const char *config, const char *split,
                      struct split_files *out, struct buf *known, struct buf *configs)
{
    struct split_files s = {0};
    size_t config_n, split_n;
    const char *found;
    bool there = false;

    for (int64_t i = 0; i < l->n; i++) {
        if (!converted_parts(l->files[i].path, &config_n, &found, &split_n))
            continue;
        note(configs, l->files[i].path, config_n);
        there |= is_name(l->files[i].path, config_n, config);
    }
    bool only = !config && !there && configs->len > 0 && !strchr(buf_str(configs), ',');
    for (int64_t i = 0; i < l->n; i++) {
        if (!converted_parts(l->files[i].path, &config_n, &found, &split_n) ||
            !(only || is_name(l->files[i].path, config_n, config)))
            continue;
        note(known, found, split_n);
        if (is_name(found, split_n, split))
            add(&s, &l->files[i]);
    }
    *out = s;
}
