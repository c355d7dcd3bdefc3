#include "worker/hub/settings.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/alloc.h"
#include "core/buf.h"
#include "core/fs.h"

/* NULL for a variable that is absent or empty. */
static const char *variable(const char *name)
{
    const char *value = getenv(name);

    return value && *value ? value : NULL;
}

static bool is_true(const char *value)
{
    static const char *const words[] = {"1", "ON", "YES", "TRUE"};

    for (size_t i = 0; value && i < sizeof(words) / sizeof(words[0]); i++)
        if (strcasecmp(value, words[i]) == 0)
            return true;
    return false;
}

/* "~/x" and "$NAME/x", "${NAME}/x"; what has no value stays as it is. */
static char *expand(const char *path)
{
    const char *home = variable("HOME");
    struct buf out = {0};
    const char *p = path;

    if (p[0] == '~' && (p[1] == '/' || p[1] == '\0') && home) {
        buf_add_str(&out, home);
        p++;
    }
    while (*p) {
        bool braces = p[0] == '$' && p[1] == '{';
        const char *name = p + (braces ? 2 : 1);
        size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");
        char *key = p[0] == '$' && n > 0 && (!braces || name[n] == '}') ? xstrndup(name, n) : NULL;
        const char *value = key ? getenv(key) : NULL;

        if (value) {
            buf_add_str(&out, value);
            p = name + n + (braces ? 1 : 0);
        } else {
            buf_add_char(&out, *p++);
        }
        free(key);
    }
    return buf_take(&out);
}

static char *home_dir(void)
{
    const char *home = variable("HF_HOME"), *xdg = variable("XDG_CACHE_HOME");

    if (home)
        return expand(home);
    char *cache = expand(xdg ? xdg : "~/.cache");
    char *dir = fs_join(cache, "huggingface");
    free(cache);
    return dir;
}

char *settings_endpoint(void)
{
    const char *endpoint = variable("HF_ENDPOINT");

    return xstrdup(endpoint ? endpoint : "https://huggingface.co");
}

char *settings_cache_root(void)
{
    const char *dir = variable("HF_HUB_CACHE");

    if (!dir)
        dir = variable("HUGGINGFACE_HUB_CACHE");
    if (dir)
        return expand(dir);
    char *home = home_dir();
    char *root = fs_join(home, "hub");
    free(home);
    return root;
}

bool settings_offline(void)
{
    const char *hub = variable("HF_HUB_OFFLINE");

    return is_true(hub ? hub : variable("TRANSFORMERS_OFFLINE"));
}

bool settings_no_links(void)
{
    return is_true(variable("HF_HUB_DISABLE_SYMLINKS"));
}

double settings_timeout(void)
{
    const char *text = variable("HF_HUB_DOWNLOAD_TIMEOUT");
    char *end = NULL;
    double seconds = text ? strtod(text, &end) : 0;

    return end && *end == '\0' && seconds >= 1 && seconds <= 3600 ? seconds : 10;
}

/* Without the white space that copying and files add; NULL when nothing is left. */
static char *clean_token(const char *text)
{
    struct buf out = {0};

    for (const char *p = text; *p; p++)
        if (!strchr(" \r\n", *p))
            buf_add_char(&out, *p);
    if (out.len > 0)
        return buf_take(&out);
    buf_fini(&out);
    return NULL;
}

static char *token_from_file(void)
{
    enum { MAX_TOKEN_BYTES = 4096 };
    const char *named = variable("HF_TOKEN_PATH");
    char *home = home_dir();
    char *path = named ? expand(named) : fs_join(home, "token");
    struct buf text = {0};
    char *token = NULL;

    if (fs_read_file(path, MAX_TOKEN_BYTES, &text, NULL) == 0)
        token = clean_token(buf_str(&text));
    buf_fini(&text);
    free(path);
    free(home);
    return token;
}

char *settings_token(void)
{
    static const char *const names[] = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"};

    if (is_true(getenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")))
        return NULL;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const char *value = variable(names[i]);
        char *token = value ? clean_token(value) : NULL;
        if (token)
            return token;
    }
    return token_from_file();
}
