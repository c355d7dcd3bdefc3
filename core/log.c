#include "core/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"

/* A pipe takes up to PIPE_BUF = 4096 bytes in one piece, so that the lines of several processes
 * with one stderr do not mix. */
enum { LINE_MAX_BYTES = 4096, PREFIX_MAX_BYTES = 256, SUBSYSTEMS_MAX = 16, NAME_MAX_BYTES = 32 };

static const char *const level_names[] = {"debug", "info", "warn", "error"};

static struct {
    pthread_once_t once;
    char prefix[PREFIX_MAX_BYTES];
    enum log_level level;
    int subsystem_count;
    struct {
        char name[NAME_MAX_BYTES];
        enum log_level level;
    } subsystems[SUBSYSTEMS_MAX];
} config = {.once = PTHREAD_ONCE_INIT, .level = LOG_LEVEL_INFO};

static bool level_parse(const char *text, size_t n, enum log_level *out)
{
    for (int i = LOG_LEVEL_DEBUG; i <= LOG_LEVEL_ERROR; i++) {
        if (strlen(level_names[i]) == n && memcmp(level_names[i], text, n) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    }
    return false;
}

/* One item of CASTOR_LOG: "info" or "hub=debug". */
static bool config_item(const char *item, size_t n)
{
    const char *equals = memchr(item, '=', n);
    size_t name_n;
    enum log_level level;

    if (!equals)
        return level_parse(item, n, &config.level);
    name_n = (size_t)(equals - item);
    if (name_n == 0 || name_n >= NAME_MAX_BYTES || config.subsystem_count == SUBSYSTEMS_MAX ||
        !level_parse(equals + 1, n - name_n - 1, &level))
        return false;
    memcpy(config.subsystems[config.subsystem_count].name, item, name_n);
    config.subsystems[config.subsystem_count].level = level;
    config.subsystem_count++;
    return true;
}

static void config_read(void)
{
    const char *text = getenv("CASTOR_LOG");

    while (text && *text) {
        size_t n = strcspn(text, ",");
        if (n > 0 && !config_item(text, n))
            fprintf(stderr,
                    "CASTOR_LOG: '%.*s' is not a level (debug, info, warn, error) or "
                    "subsystem=level; ignored\n",
                    (int)n, text);
        text += n + (text[n] == ',');
    }
}

void log_set_prefix(const char *prefix)
{
    snprintf(config.prefix, sizeof(config.prefix), "%s", prefix);
}

static bool is_shown(enum log_level level, const char *subsystem)
{
    for (int i = 0; i < config.subsystem_count; i++)
        if (strcmp(config.subsystems[i].name, subsystem) == 0)
            return level >= config.subsystems[i].level;
    return level >= config.level;
}

void log_write(enum log_level level, const char *subsystem, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    char when[32];
    int saved_errno = errno;
    int n, m;
    va_list args;

    pthread_once(&config.once, config_read);
    if (!is_shown(level, subsystem))
        return;
    clock_format(clock_wall(), when);
    n = snprintf(line, sizeof(line), "%s %s %.64s %s%s", when, level_names[level], subsystem,
                 config.prefix, config.prefix[0] ? " " : "");
    errno = saved_errno; /* for %m */
    va_start(args, fmt);
    m = vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, args);
    va_end(args);
    bool was_cut = m >= (int)sizeof(line) - n;
    n = m < 0 ? n : was_cut ? (int)sizeof(line) - 1 : n + m;
    /* Names and messages from outside must not forge a second line or drive a terminal. */
    for (int i = 0; i < n; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7F)
            line[i] = ' ';
    if (was_cut)
        memcpy(line + n - 3, "...", 3);
    line[n++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written; /* there is no other place to complain */
    errno = saved_errno;
}
