/*
 * The grammar of references to models and data sets on a hub, as huggingface_hub's repository ids
 * have it: "name" or "organization/name" of letters, digits, '-', '_' and '.', at most 96
 * characters, no "--" or "..", no '-' or '.' at the ends of a part, not ending in ".git"; then
 * optionally '@' and a git revision; of a data set then optionally '/' and a path.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "api/job_spec_fields.h"
#include "core/alloc.h"

enum { REPO_MAX = 96, REVISION_MAX = 200, LOCAL_PATH_MAX = 4096 };

#define ALNUM "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

static bool is_part(const char *part, size_t n)
{
    if (n == 0 || strspn(part, ALNUM "-_.") < n)
        return false;
    return part[0] != '-' && part[0] != '.' && part[n - 1] != '-' && part[n - 1] != '.';
}

static const char *check_repo(const char *repo)
{
    const char *slash = strchr(repo, '/');
    size_t n = strlen(repo);

    if (n == 0 || n > REPO_MAX)
        return "a repository's name has 1 to 96 characters";
    if (strstr(repo, "--") || strstr(repo, ".."))
        return "a repository's name holds no \"--\" and no \"..\"";
    if (n >= 4 && strcmp(repo + n - 4, ".git") == 0)
        return "a repository's name does not end in \".git\"";
    if (slash ? !is_part(repo, (size_t)(slash - repo)) || !is_part(slash + 1, strlen(slash + 1))
              : !is_part(repo, n))
        return "a repository's name is made of letters, digits, '-', '_' and '.', with at most one "
               "'/'";
    return NULL;
}

static const char *check_revision(const char *revision)
{
    size_t n = strlen(revision);

    if (n == 0 || n > REVISION_MAX)
        return "a revision has 1 to 200 characters";
    if (strspn(revision, ALNUM "-_./+=#") != n || strstr(revision, "..") ||
        strstr(revision, "//") || revision[0] == '-' || revision[0] == '/' || revision[0] == '.' ||
        revision[n - 1] == '/' || revision[n - 1] == '.')
        return "the revision is not the name of a git branch, tag or commit";
    return NULL;
}

static const char *check_local(const char *path)
{
    size_t n = strlen(path);

    if (n < 2 || n > LOCAL_PATH_MAX)
        return "a local path has 2 to 4096 characters";
    if (strstr(path, "/../") || (n >= 3 && strcmp(path + n - 3, "/..") == 0))
        return "a local path holds no \"..\"";
    return NULL;
}

bool spec_parse_model(const char *text, struct spec_model *model, char *why, size_t why_cap)
{
    const char *rest = strncmp(text, "hf://", 5) == 0 ? text + 5 : text;
    const char *at = strchr(rest, '@');
    const char *fault;
    char repo[REPO_MAX + 2];

    if (text[0] == '/') {
        fault = check_local(text);
    } else {
        snprintf(repo, sizeof(repo), "%.*s",
                 (int)(at ? at - rest : (int)strnlen(rest, sizeof(repo))), rest);
        fault = check_repo(repo);
        if (!fault && at)
            fault = check_revision(at + 1);
    }
    if (fault) {
        snprintf(why, why_cap, "%s", fault);
        return false;
    }
    model->name = xstrdup(text);
    if (text[0] == '/') {
        model->path = xstrdup(text);
    } else {
        model->repo = xstrdup(repo);
        model->revision = xstrdup(at ? at + 1 : "main");
    }
    return true;
}

/* --- data sets --- */

static const char *check_folder(const char *path)
{
    size_t n = strlen(path);

    if (n > LOCAL_PATH_MAX / 4)
        return "the path in the repository is too long";
    for (const char *part = path; *part;) {
        size_t len = strcspn(part, "/");
        if (len == 0 || strncmp(part, ".", len) == 0 || strncmp(part, "..", len) == 0)
            return "the path in the repository holds an empty part, \".\" or \"..\"";
        part += len + (part[len] == '/');
    }
    for (const char *p = path; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7F || *p == '\\' || *p == '*')
            return "the path in the repository is that of one file or folder, without '*' and '\\'";
    return NULL;
}

/* How long the revision at the beginning of text is: to the first '/', but refs/pr/N and
 * refs/convert/X have two of their own. */
static size_t revision_length(const char *text)
{
    static const char *const with_slashes[] = {"refs/pr/", "refs/convert/"};

    for (size_t i = 0; i < sizeof(with_slashes) / sizeof(with_slashes[0]); i++) {
        size_t n = strlen(with_slashes[i]);
        if (strncmp(text, with_slashes[i], n) == 0)
            return n + strcspn(text + n, "/");
    }
    return strcspn(text, "/");
}

/* A copy with %2F as '/'. */
static char *decoded(const char *text, size_t n)
{
    char *out = xstrndup(text, n), *to = out;

    for (const char *p = out; *p; p++) {
        bool slash = strncasecmp(p, "%2f", 3) == 0;
        *to++ = slash ? '/' : *p;
        p += slash ? 2 : 0;
    }
    *to = '\0';
    return out;
}

bool spec_file_parse(const char *text, struct spec_file *file, char *why, size_t why_cap)
{
    static const char scheme[] = "hf://datasets/";
    const char *rest = text + strlen(scheme), *fault = "a data set begins with \"hf://datasets/\"";
    char *repo = NULL, *revision = NULL, *folder = NULL;
    size_t n;

    if (strncmp(text, scheme, strlen(scheme)) == 0) {
        n = strcspn(rest, "/@");
        if (rest[n] == '/')
            n += 1 + strcspn(rest + n + 1, "/@");
        repo = xstrndup(rest, n);
        rest += n;
        n = *rest == '@' ? revision_length(++rest) : 0;
        revision = rest[-1] == '@' ? decoded(rest, n) : xstrdup("main");
        rest += n;
        folder = xstrdup(*rest == '/' ? rest + 1 : rest);
        n = strlen(folder);
        if (n > 0 && folder[n - 1] == '/')
            folder[n - 1] = '\0';
        fault = check_repo(repo);
        fault = fault ? fault : check_revision(revision);
        fault = fault ? fault : check_folder(folder);
    }
    if (fault) {
        snprintf(why, why_cap, "%s", fault);
        free(repo);
        free(revision);
        free(folder);
        return false;
    }
    file->id = xstrdup(text);
    file->repo = repo;
    file->revision = revision;
    file->folder = *folder ? folder : NULL;
    if (!*folder)
        free(folder);
    return true;
}
