/*
 * The grammar of a model reference, as huggingface_hub's repository ids have it: "name" or
 * "organization/name" of letters, digits, '-', '_' and '.', at most 96 characters, no "--" or "..",
 * no '-' or '.' at the ends of a part, not ending in ".git"; then optionally '@' and a git
 * revision.
 */
#include <stdio.h>
#include <string.h>

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
