#include "api/attempt_exit.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/record.h"
#include "core/alloc.h"
#include "core/fs.h"
#include "core/json.h"

static const struct record_field exit_fields[] = {
    {"t", RECORD_REAL, offsetof(struct attempt_exit, t)},
    {"ok", RECORD_BOOL, offsetof(struct attempt_exit, ok), .flags = RECORD_REQUIRED},
    {"first_failed_rank", RECORD_INT, offsetof(struct attempt_exit, first_failed_rank),
     .initial = -1},
};

static const struct record_field rank_fields[] = {
    {"rank", RECORD_INT, offsetof(struct rank_exit, rank), .flags = RECORD_REQUIRED},
    {"pid", RECORD_INT, offsetof(struct rank_exit, pid)},
    {"exit_code", RECORD_INT32, offsetof(struct rank_exit, exit_code), .initial = -1},
    {"signal", RECORD_INT32, offsetof(struct rank_exit, signal)},
    {"step", RECORD_INT, offsetof(struct rank_exit, step), .initial = -1},
    {"where", RECORD_CHARS, offsetof(struct rank_exit, where), .cap = 64},
    {"log_tail", RECORD_CHARS, offsetof(struct rank_exit, log_tail), .cap = 512},
};

static const struct record_field supervisor_fields[] = {
    {"pid", RECORD_INT, offsetof(struct supervisor_record, pid), .min = 1, .max = INT32_MAX,
     .flags = RECORD_REQUIRED},
    {"start_ticks", RECORD_INT, offsetof(struct supervisor_record, start_ticks),
     .flags = RECORD_REQUIRED},
    {"boot_id", RECORD_CHARS, offsetof(struct supervisor_record, boot_id), .cap = 40,
     .flags = RECORD_REQUIRED},
    {"host", RECORD_CHARS, offsetof(struct supervisor_record, host), .cap = 64,
     .flags = RECORD_REQUIRED},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

json_t *attempt_exit_to_json(const struct attempt_exit *e)
{
    json_t *object = json_object();
    json_t *ranks = json_array();

    json_object_set_new(object, "v", json_integer(1));
    record_write(exit_fields, COUNT(exit_fields), e, object);
    for (int64_t i = 0; i < e->n_ranks; i++) {
        json_t *rank = json_object();
        record_write(rank_fields, COUNT(rank_fields), &e->ranks[i], rank);
        json_array_append_new(ranks, rank);
    }
    json_object_set_new(object, "ranks", ranks);
    return object;
}

int attempt_exit_from_json(const json_t *value, struct attempt_exit *out, struct err *err)
{
    const json_t *ranks = json_object_get(value, "ranks");
    struct attempt_exit e = {0};
    int rc = 0;

    TRY(record_read(exit_fields, COUNT(exit_fields), value, &e, err));
    if (!json_is_array(ranks) || json_array_size(ranks) > ATTEMPT_MAX_RANKS) {
        rc = err_set(err, ERR_INVALID, "ranks must be an array of at most %d objects",
                     ATTEMPT_MAX_RANKS);
        goto out;
    }
    e.ranks = xcalloc(json_array_size(ranks) + 1, sizeof(e.ranks[0]));
    for (size_t i = 0; i < json_array_size(ranks); i++, e.n_ranks++) {
        rc = record_read(rank_fields, COUNT(rank_fields), json_array_get(ranks, i), &e.ranks[i],
                         err);
        if (rc != 0) {
            err_wrap(err, rc, "ranks[%zu]", i);
            goto out;
        }
    }
    *out = e;
    return 0;
out:
    attempt_exit_fini(&e);
    return rc;
}

void attempt_exit_fini(struct attempt_exit *e)
{
    free(e->ranks);
    memset(e, 0, sizeof(*e));
}

/* State letter and start time of a process, from /proc/PID/stat. The second field, the program's
 * name in brackets, may hold blanks and brackets: the last ')' ends it. */
static int read_proc_stat(int64_t pid, char *state, int64_t *start_ticks, struct err *err)
{
    char path[64];
    struct buf text = {0};
    int rc = 0;

    snprintf(path, sizeof(path), "/proc/%" PRId64 "/stat", pid);
    TRY(fs_read_file(path, 8192, &text, err));
    const char *p = strrchr(buf_str(&text), ')');
    if (p && p[1] == ' ' && p[2]) {
        *state = p[2];
        p += 2; /* field 3; 22 is 19 blanks further */
        for (int i = 0; p && i < 19; i++) {
            p = strchr(p, ' ');
            p = p ? p + 1 : NULL;
        }
    }
    if (!p || *p < '0' || *p > '9') {
        rc = err_set(err, ERR_CORRUPT, "%s does not have the form that proc(5) describes", path);
        goto out;
    }
    *start_ticks = strtoll(p, NULL, 10);
out:
    buf_fini(&text);
    return rc;
}

static int read_boot_id(char out[40], struct err *err)
{
    struct buf text = {0};
    int rc = 0;

    TRY(fs_read_file("/proc/sys/kernel/random/boot_id", 256, &text, err));
    snprintf(out, 40, "%.*s", (int)strcspn(buf_str(&text), "\n"), buf_str(&text));
out:
    buf_fini(&text);
    return rc;
}

int supervisor_record_of(int64_t pid, struct supervisor_record *out, struct err *err)
{
    struct supervisor_record r = {.pid = pid};
    char state;
    int rc = 0;

    TRY(read_proc_stat(r.pid, &state, &r.start_ticks, err));
    TRY(read_boot_id(r.boot_id, err));
    if (gethostname(r.host, sizeof(r.host) - 1) != 0)
        r.host[0] = '\0';
    *out = r;
out:
    return rc;
}

int supervisor_record_self(struct supervisor_record *out, struct err *err)
{
    return supervisor_record_of(getpid(), out, err);
}

int supervisor_record_save(const char *path, const struct supervisor_record *r, struct err *err)
{
    json_t *object = json_object();
    int rc;

    json_object_set_new(object, "v", json_integer(1));
    record_write(supervisor_fields, COUNT(supervisor_fields), r, object);
    char *line = json_to_line(object);
    rc = fs_write_file_atomic(path, line, strlen(line), err);
    free(line);
    json_decref(object);
    return rc;
}

int supervisor_record_load(const char *path, struct supervisor_record *out, struct err *err)
{
    struct supervisor_record r;
    json_t *object = NULL;
    int rc = 0;

    TRY(json_parse_file(path, 65536, JSON_MAX_DEPTH_REQUEST, &object, err));
    rc = record_read(supervisor_fields, COUNT(supervisor_fields), object, &r, err);
    if (rc != 0) {
        err_wrap(err, rc, "%s", path);
        goto out;
    }
    *out = r;
out:
    json_decref(object);
    return rc;
}

bool supervisor_record_alive(const struct supervisor_record *r)
{
    char boot_id[40], state = 'Z';
    int64_t start_ticks = -1;

    if (read_boot_id(boot_id, NULL) != 0 || strcmp(boot_id, r->boot_id) != 0)
        return false;
    if (read_proc_stat(r->pid, &state, &start_ticks, NULL) != 0)
        return false;
    return start_ticks == r->start_ticks && state != 'Z' && state != 'X';
}
