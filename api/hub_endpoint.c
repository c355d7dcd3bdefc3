#include "api/hub_endpoint.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/alloc.h"

enum { MAX_BYTES = 512 };
#define PUBLIC_HUB "https://huggingface.co"
#define LETTERS    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define DIGITS     "0123456789"

/* The parts lie in the text. */
struct parts {
    const char *scheme, *host, *port, *path;
    size_t host_n, port_n, path_n;
};

static bool split(const char *text, struct parts *p)
{
    bool tls = strncasecmp(text, "https://", 8) == 0;

    if (!tls && strncasecmp(text, "http://", 7) != 0)
        return false;
    *p = (struct parts){.scheme = tls ? "https" : "http", .host = text + (tls ? 8 : 7)};
    if (p->host[0] == '[') {
        p->host_n = 1 + strspn(p->host + 1, "abcdefABCDEF:." DIGITS);
        if (p->host_n < 3 || p->host[p->host_n++] != ']')
            return false;
    } else {
        p->host_n = strspn(p->host, LETTERS DIGITS "-._");
    }
    p->port = p->path = p->host + p->host_n;
    if (p->port[0] == ':') {
        p->port++;
        p->port_n = strspn(p->port, DIGITS);
        p->path = p->port + p->port_n;
        if (p->port_n == 0 || p->port_n > 5)
            return false;
    }
    p->path_n = strspn(p->path, LETTERS DIGITS "-._~/");
    if (p->path[p->path_n] != '\0' || (p->path_n > 0 && p->path[0] != '/'))
        return false;
    while (p->path_n > 0 && p->path[p->path_n - 1] == '/')
        p->path_n--;
    return p->host_n > 0 && !strstr(p->path, "..");
}

int hub_endpoint_canonical(const char *text, char **out, struct err *err)
{
    struct parts p;

    if (strlen(text) > MAX_BYTES || !split(text, &p))
        return err_set(err, ERR_INVALID,
                       "a hub's address is like https://huggingface.co: http or https, a host, "
                       "perhaps a port and a path, without user, password, query and fragment");
    const char *usual = strcmp(p.scheme, "https") == 0 ? "443" : "80";
    bool show_port = p.port_n > 0 && (p.port_n != strlen(usual) || memcmp(p.port, usual, p.port_n));
    char *url =
        xasprintf("%s://%.*s%s%.*s%.*s", p.scheme, (int)p.host_n, p.host, show_port ? ":" : "",
                  show_port ? (int)p.port_n : 0, p.port, (int)p.path_n, p.path);
    for (char *c = url; c < url + strlen(p.scheme) + 3 + p.host_n; c++)
        if (*c >= 'A' && *c <= 'Z')
            *c = (char)(*c - 'A' + 'a');
    *out = url;
    return 0;
}

int hub_endpoint_default(char **out, struct err *err)
{
    const char *named = getenv("HF_ENDPOINT");
    int rc = hub_endpoint_canonical(named && *named ? named : PUBLIC_HUB, out, err);

    return rc ? err_wrap(err, rc, "HF_ENDPOINT") : 0;
}
