#include "worker/hub/glob.h"

#include <string.h>

enum { MAX_PARTS = 64 };

/* The set at p (behind its '['), whose end is stored; NULL where it has none. */
static const char *match_set(const char *p, const char *end, char c, bool *found)
{
    bool negated = p < end && (*p == '!' || *p == '^');
    const char *first = p += negated;

    *found = false;
    for (; p < end && (*p != ']' || p == first); p++) {
        if (end - p > 2 && p[1] == '-' && p[2] != ']') {
            *found |=
                (unsigned char)p[0] <= (unsigned char)c && (unsigned char)c <= (unsigned char)p[2];
            p += 2;
        } else {
            *found |= *p == c;
        }
    }
    *found ^= negated;
    return p < end ? p + 1 : NULL;
}

/* What matches c at p ends where? NULL = c does not match. */
static const char *match_one(const char *p, const char *end, char c)
{
    bool found;

    if (*p == '?')
        return p + 1;
    if (*p == '[') {
        const char *behind = match_set(p + 1, end, c, &found);
        if (behind)
            return found ? behind : NULL;
    }
    return *p == c ? p + 1 : NULL;
}

/* Only the last '*' need ever take more: the parts before it matched as early as they could. */
bool glob_part(const char *pattern, size_t pattern_n, const char *name, size_t name_n)
{
    const char *p = pattern, *p_end = pattern + pattern_n, *s = name, *s_end = name + name_n;
    const char *star = NULL, *taken = NULL;

    while (s < s_end) {
        const char *next = p < p_end && *p != '*' ? match_one(p, p_end, *s) : NULL;
        if (p < p_end && *p == '*') {
            star = p++;
            taken = s;
        } else if (next) {
            p = next;
            s++;
        } else if (star) {
            p = star + 1;
            s = ++taken;
        } else {
            return false;
        }
    }
    while (p < p_end && *p == '*')
        p++;
    return p == p_end;
}

struct part {
    const char *text;
    size_t n;
};

/* The parts of a path; -1 for too many. */
static int split(const char *path, struct part *parts)
{
    int n = 0;

    for (;;) {
        size_t len = strcspn(path, "/");
        if (n == MAX_PARTS)
            return -1;
        parts[n++] = (struct part){path, len};
        if (path[len] == '\0')
            return n;
        path += len + 1;
    }
}

static int count_marked(const struct part *parts, int n, const char *mark)
{
    int found = 0;

    for (int i = 0; i < n; i++)
        found += parts[i].n >= strlen(mark) && memcmp(parts[i].text, mark, strlen(mark)) == 0;
    return found;
}

bool glob_path(const char *pattern, const char *path)
{
    struct part p[MAX_PARTS], s[MAX_PARTS];
    bool reached[MAX_PARTS + 1] = {true}; /* after how many parts of the path the pattern may be */
    int np = split(pattern, p), ns = split(path, s);

    if (np < 0 || ns < 0 || count_marked(p, np, ".") != count_marked(s, ns, ".") ||
        count_marked(p, np - 1, "__") != count_marked(s, ns - 1, "__"))
        return false;
    for (int i = 0; i < np; i++) {
        bool next[MAX_PARTS + 1] = {false};
        bool any = p[i].n == 2 && memcmp(p[i].text, "**", 2) == 0;
        for (int k = 0; k <= ns; k++) {
            if (any)
                next[k] = reached[k] || (k > 0 && next[k - 1]);
            else if (k > 0)
                next[k] = reached[k - 1] && glob_part(p[i].text, p[i].n, s[k - 1].text, s[k - 1].n);
        }
        memcpy(reached, next, sizeof(reached));
    }
    return reached[ns];
}
