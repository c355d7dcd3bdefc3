#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"

static int saved_stderr;
static int pipe_out;

/* From here to capture_end, stderr is a pipe; the lines of one test fit into its buffer. */
static void capture_start(const char *setting)
{
    int ends[2];

    if (setting)
        setenv("CASTOR_LOG", setting, 1);
    else
        unsetenv("CASTOR_LOG");
    cr_assert_eq(pipe(ends), 0);
    saved_stderr = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    pipe_out = ends[0];
}

static const char *capture_end(void)
{
    static char text[65536];
    size_t n = 0;
    ssize_t got;

    dup2(saved_stderr, STDERR_FILENO);
    while ((got = read(pipe_out, text + n, sizeof(text) - 1 - n)) > 0)
        n += (size_t)got;
    text[n] = '\0';
    close(pipe_out);
    return text;
}

static int line_count(const char *text)
{
    int n = 0;

    for (; *text; text++)
        n += *text == '\n';
    return n;
}

Test(log, line_has_time_level_subsystem_prefix_message)
{
    char level[16], subsystem[16], rest[64];
    int year, month, day, hour, minute, second, ms;

    capture_start(NULL);
    log_set_prefix("job=ftjob-x rank=0");
    log_info("hub", "step=%d done", 3);
    const char *text = capture_end();
    cr_assert_eq(sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ %15s %15s %63[^\n]", &year, &month,
                        &day, &hour, &minute, &second, &ms, level, subsystem, rest),
                 10, "%s", text);
    cr_assert_str_eq(level, "info");
    cr_assert_str_eq(subsystem, "hub");
    cr_assert_str_eq(rest, "job=ftjob-x rank=0 step=3 done");
    cr_assert_eq(line_count(text), 1);
}

static const char *log_all_levels(const char *setting)
{
    capture_start(setting);
    log_debug("hub", "hub-debug");
    log_info("hub", "hub-info");
    log_warn("hub", "hub-warn");
    log_error("hub", "hub-error");
    log_debug("plan", "plan-debug");
    log_info("plan", "plan-info");
    log_warn("plan", "plan-warn");
    log_error("plan", "plan-error");
    return capture_end();
}

static void expect_lines(const char *text, const char *const *wanted, int count)
{
    cr_assert_eq(line_count(text), count, "%s", text);
    for (int i = 0; i < count; i++)
        cr_assert_not_null(strstr(text, wanted[i]), "no %s in %s", wanted[i], text);
}

Test(log, default_level_is_info)
{
    const char *wanted[] = {"hub-info",  "hub-warn",  "hub-error",
                            "plan-info", "plan-warn", "plan-error"};

    expect_lines(log_all_levels(NULL), wanted, 6);
}

Test(log, level_setting)
{
    const char *wanted[] = {"hub-error", "plan-error"};

    expect_lines(log_all_levels("error"), wanted, 2);
}

Test(log, subsystem_setting)
{
    const char *wanted[] = {"hub-debug", "hub-info", "hub-warn", "hub-error", "plan-error"};

    expect_lines(log_all_levels("error,hub=debug"), wanted, 5);
}

Test(log, subsystem_can_be_quieter_than_the_rest)
{
    const char *wanted[] = {"hub-error", "plan-debug", "plan-info", "plan-warn", "plan-error"};

    expect_lines(log_all_levels("hub=error,debug"), wanted, 5);
}

Test(log, wrong_settings_are_named_and_ignored)
{
    const char *wanted[] = {"'loud'",    "'=debug'",  "'hub=loud'", "hub-warn",
                            "hub-error", "plan-warn", "plan-error"};

    expect_lines(log_all_levels("loud,=debug,,hub=loud,warn"), wanted, 7);
}

Test(log, control_characters_cannot_forge_lines)
{
    capture_start(NULL);
    log_info("hub", "name=%s",
             "a\nb\x1b[31m\r\x7f"
             "\xC3\xA9");
    const char *text = capture_end();
    cr_assert_eq(line_count(text), 1);
    cr_assert_null(strchr(text, '\x1b'));
    cr_assert_null(strchr(text, '\r'));
    cr_assert_not_null(strstr(text, "name=a b [31m  \xC3\xA9\n"), "%s", text);
}

Test(log, long_lines_are_cut_to_one_atomic_write)
{
    char message[8000];

    for (size_t n = 3900; n < sizeof(message); n = n < 4200 ? n + 1 : n + 1000) {
        memset(message, 'm', n);
        message[n] = '\0';
        capture_start(NULL);
        log_info("hub", "%s", message);
        const char *text = capture_end();
        size_t len = strlen(text);
        cr_assert(len <= 4096 && text[len - 1] == '\n' && line_count(text) == 1);
        if (len < 4096)
            cr_assert_eq(text[len - 2], 'm');
        if (n > 4096)
            cr_assert_eq(memcmp(text + len - 4, "...\n", 4), 0);
    }
}

Test(log, keeps_errno)
{
    capture_start(NULL);
    errno = ENOSPC;
    log_info("hub", "%m");
    cr_assert_eq(errno, ENOSPC);
    cr_assert_not_null(strstr(capture_end(), "No space left"));
}
