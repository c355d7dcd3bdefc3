#include "kernels/gemm_file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

/* The number counts changes of struct gemm_file_plan. */
static const char HEAD[] = "castor gemm plans 3";

static void put_hex(FILE *f, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        fprintf(f, "%02x", ((const unsigned char *)data)[i]);
}

int gemm_file_save(const char *path, const struct gemm_file_owner *owner,
                   const struct gemm_file_plan *plans, int64_t n, struct err *err)
{
    FILE *f = fopen(path, "w");
    if (!f)
        return err_set_errno(err, errno, "cannot write the GEMM plans to %s", path);
    fprintf(f, "%s\n%s\n%zu\n", HEAD, owner->gpu, owner->version);
    for (int64_t i = 0; i < n; i++) {
        put_hex(f, &plans[i].key, sizeof plans[i].key);
        fputc(' ', f);
        put_hex(f, &plans[i].own, sizeof plans[i].own);
        fputc(' ', f);
        put_hex(f, plans[i].algo, sizeof plans[i].algo);
        fputc('\n', f);
    }
    bool failed = ferror(f) != 0;
    if (fclose(f) != 0 || failed)
        return err_set_errno(err, errno, "cannot write the GEMM plans to %s", path);
    return 0;
}

static int nibble(int c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool get_hex(FILE *f, void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        int high = nibble(fgetc(f)), low = high < 0 ? -1 : nibble(fgetc(f));
        if (low < 0)
            return false;
        ((unsigned char *)data)[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

/* The next plan; 0 = none is left, -1 = damaged. */
static int next_plan(FILE *f, struct gemm_file_plan *p)
{
    int c = fgetc(f);
    if (c == EOF)
        return 0;
    ungetc(c, f);
    return get_hex(f, &p->key, sizeof p->key) && fgetc(f) == ' ' &&
                   get_hex(f, &p->own, sizeof p->own) && fgetc(f) == ' ' &&
                   get_hex(f, p->algo, sizeof p->algo) && fgetc(f) == '\n'
               ? 1
               : -1;
}

static int load_plans(FILE *f, const char *path, struct gemm_file_plan **out, int64_t *n_out,
                      struct err *err)
{
    struct gemm_file_plan *plans = NULL, p;
    int64_t n = 0, cap = 0;
    int more;

    memset(&p, 0, sizeof p); /* its padding, too: plans are compared as bytes */
    while ((more = next_plan(f, &p)) > 0) {
        if (n == cap) {
            cap = cap ? 2 * cap : 64;
            plans = xrealloc(plans, (size_t)cap * sizeof *plans);
        }
        plans[n++] = p;
    }
    if (more < 0) {
        free(plans);
        return err_set(err, ERR_CORRUPT, "%s is damaged; delete it and the plans are made anew",
                       path);
    }
    *out = plans;
    *n_out = n;
    return 0;
}

int gemm_file_load(const char *path, const struct gemm_file_owner *owner,
                   struct gemm_file_plan **plans, int64_t *n, struct err *err)
{
    char head[64] = "", gpu[80] = "";
    size_t version = 0;
    int rc;

    FILE *f = fopen(path, "r");
    if (!f)
        return err_set_errno(err, errno, "cannot read the GEMM plans in %s", path);
    bool complete = fscanf(f, "%63[^\n]%*1[\n]%79[^\n]%*1[\n]%zu", head, gpu, &version) == 3 &&
                    fgetc(f) == '\n';
    if (!complete || strcmp(head, HEAD) != 0)
        rc = err_set(err, ERR_CORRUPT, "%s holds no GEMM plans; delete it and they are made anew",
                     path);
    else if (strcmp(gpu, owner->gpu) != 0 || version != owner->version)
        rc = err_set(err, ERR_CONFLICT,
                     "the GEMM plans in %s were made on %s with cuBLASLt %zu, this is %s with %zu; "
                     "continue there, or delete the file and accept other roundings",
                     path, gpu, version, owner->gpu, owner->version);
    else
        rc = load_plans(f, path, plans, n, err);
    fclose(f);
    return rc;
}
