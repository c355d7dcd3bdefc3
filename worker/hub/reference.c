#include "worker/hub/reference.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "worker/hub/hub.h"

enum { MAX_NAME = 96, MAX_REVISION = 200, MAX_PATH_BYTES = 1024 };

/* <ctype.h> asks the locale; the hub's alphabet is ASCII. */
static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_name(const char *s, size_t n)
{
    if (n == 0 || n > MAX_NAME || !is_word(s[0]) || !is_word(s[n - 1]))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!is_word(s[i]) && s[i] != '-' && s[i] != '.')
            return false;
    return true;
}

static bool ends_with(const char *s, size_t n, const char *tail)
{
    size_t t = strlen(tail);

    return n >= t && memcmp(s + n - t, tail, t) == 0;
}

bool reference_is_dataset(const char *repo)
{
    return strncmp(repo, REFERENCE_DATASETS, strlen(REFERENCE_DATASETS)) == 0;
}

const char *reference_kind(const char *repo)
{
    return reference_is_dataset(repo) ? "data set" : "model";
}

int reference_check_repo(const char *repo, struct err *err)
{
    bool dataset = reference_is_dataset(repo);
    const char *own = dataset ? repo + strlen(REFERENCE_DATASETS) : repo;
    const char *slash = strchr(own, '/');
    const char *name = slash ? slash + 1 : own;
    bool ok = is_name(name, strlen(name)) && (!slash || is_name(own, (size_t)(slash - own)));

    if (!ok || strstr(own, "--") || strstr(own, "..") || ends_with(own, strlen(own), ".git"))
        return err_set(err, ERR_INVALID,
                       "'%.200s' is not the name of a %s: write 'name' or 'organisation/name' "
                       "with letters, digits, '-', '_' and '.'",
                       own, reference_kind(repo));
    return 0;
}

/* A part of a ref between slashes. */
static bool is_ref_part(const char *s, size_t n)
{
    return n > 0 && s[0] != '.' && s[n - 1] != '.' && !ends_with(s, n, ".lock");
}

int reference_check_revision(const char *revision, struct err *err)
{
    bool ok = strlen(revision) <= MAX_REVISION && strcmp(revision, "@") != 0 &&
              !strstr(revision, "..") && !strstr(revision, "@{");

    for (const char *p = revision; ok && *p; p++)
        ok = (unsigned char)*p > ' ' && *p != 0x7F && !strchr("~^:?*[\\", *p);
    for (const char *part = revision; ok;) {
        size_t n = strcspn(part, "/");
        ok = is_ref_part(part, n);
        if (part[n] == '\0')
            break;
        part += n + 1;
    }
    if (!ok)
        return err_set(err, ERR_INVALID,
                       "'%.200s' is not a revision: name a branch, a tag or a commit hash",
                       revision);
    return 0;
}

int hub_parse_reference(const char *text, char **repo, char **revision, struct err *err)
{
    const char *start = strncmp(text, "hf://", 5) == 0 ? text + 5 : text;
    const char *at = strchr(start, '@');
    char *name = at ? xstrndup(start, (size_t)(at - start)) : xstrdup(start);
    const char *rev = at ? at + 1 : "main";
    int rc = 0;

    if (reference_is_dataset(name)) {
        rc = err_set(err, ERR_INVALID, "'%.200s' is a data set, not a model", text);
        goto out;
    }
    TRY(reference_check_repo(name, err));
    TRY(reference_check_revision(rev, err));
    *revision = xstrdup(rev);
    *repo = name;
    name = NULL;
out:
    free(name);
    return rc;
}

static bool is_hex(const char *text, size_t digits)
{
    return text && strlen(text) == digits && strspn(text, "0123456789abcdef") == digits;
}

bool reference_is_sha1(const char *text)
{
    return is_hex(text, 40);
}

bool reference_is_sha256(const char *text)
{
    return is_hex(text, 64);
}

bool reference_path_is_safe(const char *path)
{
    if (!path || !*path || strlen(path) > MAX_PATH_BYTES || (is_word(path[0]) && path[1] == ':'))
        return false;
    for (const char *p = path; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7F)
            return false;
    for (const char *part = path;;) {
        size_t n = strcspn(part, "/\\");
        if (n == 0 || (n == 1 && part[0] == '.') || (n == 2 && part[0] == '.' && part[1] == '.'))
            return false;
        if (part[n] == '\0')
            return true;
        part += n + 1;
    }
}

void reference_add_encoded(struct buf *out, const char *text, bool keep_slash)
{
    for (const char *p = text; *p; p++) {
        if (is_word(*p) || strchr("-.~", *p) || (keep_slash && *p == '/'))
            buf_add_char(out, *p);
        else
            buf_printf(out, "%%%02X", (unsigned)(unsigned char)*p);
    }
}
