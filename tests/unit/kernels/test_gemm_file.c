/* The file of matrix products' plans: what is saved comes back; what is damaged or another's does
 * not. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/alloc.h"
#include "core/fs.h"
#include "kernels/gemm_file.h"

static const struct gemm_file_owner here = {.gpu = "NVIDIA H100 80GB HBM3", .version = 130000};

static char *temporary(void)
{
    const char *top = getenv("TMPDIR");
    char *path = xasprintf("%s/castor-plans-XXXXXX", top ? top : "/tmp");
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    return path;
}

static void make_plans(struct gemm_file_plan *plans, int64_t n)
{
    memset(plans, 0, (size_t)n * sizeof *plans);
    for (int64_t i = 0; i < n; i++) {
        plans[i].key =
            (struct gemm_key){.m = 768 + i, .n = -1, .k = INT64_MAX, .type_b = (int32_t)i};
        plans[i].own = (int32_t)(i % 3);
        for (size_t b = 0; b < sizeof plans[i].algo; b++)
            plans[i].algo[b] = (unsigned char)(17 * b + (size_t)i);
    }
}

Test(gemm_file, what_is_saved_comes_back)
{
    enum { MANY = 150 };
    struct gemm_file_plan plans[MANY], *loaded = NULL;
    struct err err = {0};
    char *path = temporary();
    int64_t n = -1;

    make_plans(plans, MANY);
    for (int64_t count = 0; count <= MANY; count += MANY / 2) {
        cr_assert_eq(gemm_file_save(path, &here, plans, count, &err), 0, "%s", err.msg);
        cr_assert_eq(gemm_file_load(path, &here, &loaded, &n, &err), 0, "%s", err.msg);
        cr_assert_eq(n, count);
        if (count > 0)
            cr_assert_eq(memcmp(plans, loaded, (size_t)count * sizeof *plans), 0);
        free(loaded);
        loaded = NULL;
    }
    unlink(path);
    free(path);
}

Test(gemm_file, of_another_gpu_or_library_is_a_conflict)
{
    const struct gemm_file_owner others[] = {{.gpu = "NVIDIA H200", .version = 130000},
                                             {.gpu = here.gpu, .version = 130100}};
    struct gemm_file_plan plans[2], *loaded = NULL;
    struct err err = {0};
    char *path = temporary();
    int64_t n;

    make_plans(plans, 2);
    cr_assert_eq(gemm_file_save(path, &here, plans, 2, &err), 0, "%s", err.msg);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(gemm_file_load(path, &others[i], &loaded, &n, &err), ERR_CONFLICT);
        cr_assert(strstr(err.msg, here.gpu) && strstr(err.msg, "delete"), "%s", err.msg);
        err_clear(&err);
    }
    unlink(path);
    free(path);
}

/* Cut anywhere but behind a line, a byte changed, or text behind the end. */
Test(gemm_file, damage_is_found)
{
    struct gemm_file_plan plans[2], *loaded = NULL;
    struct err err = {0};
    char *path = temporary();
    struct buf file = {0};
    int64_t n;

    make_plans(plans, 2);
    cr_assert_eq(gemm_file_save(path, &here, plans, 2, &err), 0, "%s", err.msg);
    cr_assert_eq(fs_read_file(path, 1 << 20, &file, &err), 0, "%s", err.msg);
    size_t size = file.len;
    char *text = buf_take(&file);
    for (size_t cut = 0, lines = 0; cut < size; cut++) {
        lines += cut > 0 && text[cut - 1] == '\n';
        if (lines >= 3 && text[cut - 1] == '\n') /* fewer plans */
            continue;
        cr_assert_eq(fs_write_file_atomic(path, text, cut, &err), 0, "%s", err.msg);
        cr_assert_eq(gemm_file_load(path, &here, &loaded, &n, &err), ERR_CORRUPT, "cut at %zu",
                     cut);
        err_clear(&err);
    }
    for (size_t at = 0; at < size; at += 7) {
        char kept = text[at];
        text[at] = kept == ' ' ? '0' : ' ';
        cr_assert_eq(fs_write_file_atomic(path, text, size, &err), 0, "%s", err.msg);
        int rc = gemm_file_load(path, &here, &loaded, &n, &err);
        cr_assert(rc == ERR_CORRUPT || rc == ERR_CONFLICT, "byte %zu: %d", at, rc);
        text[at] = kept;
        err_clear(&err);
    }
    free(text);
    unlink(path);
    free(path);
}

Test(gemm_file, a_path_that_cannot_be_is_named)
{
    struct gemm_file_plan *loaded = NULL;
    struct err err = {0};
    int64_t n;

    cr_assert_neq(gemm_file_load("/nonexistent/plans", &here, &loaded, &n, &err), 0);
    cr_assert(strstr(err.msg, "/nonexistent/plans"), "%s", err.msg);
    err_clear(&err);
    cr_assert_neq(gemm_file_save("/nonexistent/plans", &here, NULL, 0, &err), 0);
    cr_assert(strstr(err.msg, "/nonexistent/plans"), "%s", err.msg);
}
