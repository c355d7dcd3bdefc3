#include "server/auth.h"

#include <nettle/memops.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "core/hash.h"

static const char *presented_key(const struct request *req)
{
    const char *authorization = request_header(req, "Authorization");

    if (authorization && strncasecmp(authorization, "Bearer ", 7) == 0) {
        const char *key = authorization + 7;
        return key + strspn(key, " ");
    }
    return request_header(req, "api-key");
}

/* Every key is compared, so that the time does not tell which one came close. */
static const struct api_key *find_key(const struct server_config *config, const char *presented)
{
    const struct api_key *found = NULL;
    struct hash h;
    char hex[65];

    hash_init(&h, HASH_SHA256, 0);
    hash_update(&h, presented, strlen(presented));
    hash_final_hex(&h, hex);
    for (int64_t i = 0; i < config->n_keys; i++)
        if (memeql_sec(hex, config->keys[i].sha256, 64))
            found = &config->keys[i];
    return found;
}

/* "localhost:8080", "127.0.0.1", "[::1]:8080": names that no DNS answer can move here. */
static bool names_this_machine(const char *host)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        size_t n = strlen(names[i]);
        if (strncasecmp(host, names[i], n) == 0 && (host[n] == '\0' || host[n] == ':'))
            return true;
    }
    return strncmp(host, "127.", 4) == 0 && strspn(host, "0123456789.:") == strlen(host);
}

static bool allow_without_keys(const struct request *req, struct reply *rep)
{
    const char *host = request_header(req, "Host");
    const char *origin = request_header(req, "Origin");

    if (host && !names_this_machine(host)) {
        reply_error(rep, 403, NULL, "host_not_allowed",
                    "without API keys castord answers requests to localhost only, not to '%.200s'; "
                    "set api_keys in its configuration",
                    host);
        return false;
    }
    if (origin) {
        const char *authority = strstr(origin, "://");
        if (!authority || !host || strcasecmp(authority + 3, host) != 0) {
            reply_error(rep, 403, NULL, "origin_not_allowed",
                        "without API keys castord refuses requests from web pages of other "
                        "origins; set api_keys in its configuration");
            return false;
        }
    }
    return true;
}

bool auth_allow(const struct server_config *config, enum role needed, struct request *req,
                struct reply *rep)
{
    const char *presented;

    if (needed == ROLE_PUBLIC)
        return true;
    if (config->n_keys == 0)
        return allow_without_keys(req, rep);
    presented = presented_key(req);
    if (!presented || !*presented) {
        reply_error(rep, 401, NULL, NULL,
                    "You didn't provide an API key. Send it in the header 'Authorization: Bearer "
                    "YOUR_KEY'.");
        reply_header(rep, "WWW-Authenticate", "Bearer");
        return false;
    }
    req->key = find_key(config, presented);
    if (!req->key) {
        reply_error(rep, 401, NULL, "invalid_api_key",
                    "Incorrect API key provided. Ask whoever runs this server for a key.");
        reply_header(rep, "WWW-Authenticate", "Bearer");
        return false;
    }
    if (req->key->role < needed) {
        static const char *const names[] = {"public", "read", "submit", "admin"};
        reply_error(rep, 403, NULL, "insufficient_permissions",
                    "the API key '%s' has the role '%s', and this needs '%s'", req->key->name,
                    names[req->key->role], names[needed]);
        return false;
    }
    return true;
}
