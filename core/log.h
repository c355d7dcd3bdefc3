/*
 * Log lines for operators: one line on stderr, `2026-11-22T21:52:17.123Z level subsystem key=value
 * ... message`, written with one write(2). Never log tokens, keys or data-set text.
 *
 * CASTOR_LOG sets what is shown: a level ("debug", "info", "warn", "error"), optionally followed by
 * subsystems: "info,hub=debug". Default info. This is the program's only global state besides the
 * op tables; log_set_prefix is called once, before threads start ("job=ftjob-x rank=0").
 */
#ifndef CASTOR_CORE_LOG_H
#define CASTOR_CORE_LOG_H

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };

void log_set_prefix(const char *prefix); /* copied */
void log_write(enum log_level level, const char *subsystem, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(subsystem, ...) log_write(LOG_LEVEL_DEBUG, subsystem, __VA_ARGS__)
#define log_info(subsystem, ...)  log_write(LOG_LEVEL_INFO, subsystem, __VA_ARGS__)
#define log_warn(subsystem, ...)  log_write(LOG_LEVEL_WARN, subsystem, __VA_ARGS__)
#define log_error(subsystem, ...) log_write(LOG_LEVEL_ERROR, subsystem, __VA_ARGS__)

#endif
