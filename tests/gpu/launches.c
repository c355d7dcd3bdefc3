/*
 * A shared object to preload: which of its CUDA kernels a program launches. Writes to the file that
 * LAUNCHES_FILE names, at the end, one line a kernel: "launched" or "idle", and the mangled name.
 * It stands between the program and what nvcc's host code (CUDA 13's, and cudaLaunchKernel of those
 * before) calls in the CUDA runtime; kernels of libraries, which start theirs by the driver, do not
 * show.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

enum { KERNELS = 8192 };

static struct {
    const void *host;   /* the function that stands for it in the program */
    const void *handle; /* the runtime's, or NULL */
    const char *name;
    int launched;
} kernels[KERNELS];
static int count;

struct sides {
    unsigned x, y, z;
};

static void *next(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);

    if (!f) {
        fprintf(stderr, "launches: no %s in the CUDA runtime\n", name);
        abort();
    }
    return f;
}

static void note(const void *kernel)
{
    for (int i = 0; i < count; i++)
        if (kernels[i].host == kernel || kernels[i].handle == kernel) {
            kernels[i].launched = 1;
            return;
        }
    fprintf(stderr, "launches: a kernel that was never registered\n");
    abort();
}

typedef void register_function(void **, const char *, char *, const char *, int, void *, void *,
                               void *, void *, int *);
register_function __cudaRegisterFunction;
void __cudaRegisterFunction(void **module, const char *host, char *device, const char *name,
                            int limit, void *thread, void *block, void *block_sides,
                            void *grid_sides, int *warp)
{
    register_function *real;

    *(void **)&real = next("__cudaRegisterFunction");
    if (count == KERNELS)
        abort();
    kernels[count].host = host;
    kernels[count++].name = name;
    real(module, host, device, name, limit, thread, block, block_sides, grid_sides, warp);
}

typedef int get_kernel(void **, const void *);
get_kernel __cudaGetKernel;
int __cudaGetKernel(void **kernel, const void *host)
{
    get_kernel *real;

    *(void **)&real = next("__cudaGetKernel");
    int rc = real(kernel, host);
    for (int i = 0; i < count && rc == 0; i++)
        if (kernels[i].host == host)
            kernels[i].handle = *kernel;
    return rc;
}

typedef int launch_kernel(const void *, struct sides, struct sides, void **, size_t, void *);
launch_kernel __cudaLaunchKernel, cudaLaunchKernel;
int __cudaLaunchKernel(const void *kernel, struct sides grid, struct sides block, void **args,
                       size_t shared, void *stream)
{
    launch_kernel *real;

    *(void **)&real = next("__cudaLaunchKernel");
    note(kernel);
    return real(kernel, grid, block, args, shared, stream);
}

int cudaLaunchKernel(const void *host, struct sides grid, struct sides block, void **args,
                     size_t shared, void *stream)
{
    launch_kernel *real;

    *(void **)&real = next("cudaLaunchKernel");
    note(host);
    return real(host, grid, block, args, shared, stream);
}

typedef int launch_config(const void *, const void *, void **);
launch_config cudaLaunchKernelExC;
int cudaLaunchKernelExC(const void *config, const void *host, void **args)
{
    launch_config *real;

    *(void **)&real = next("cudaLaunchKernelExC");
    note(host);
    return real(config, host, args);
}

__attribute__((destructor)) static void write_launches(void)
{
    const char *path = getenv("LAUNCHES_FILE");
    FILE *file = path && count > 0 ? fopen(path, "w") : NULL; /* not those that start the program */

    if (!file)
        return;
    for (int i = 0; i < count; i++)
        fprintf(file, "%s %s\n", kernels[i].launched ? "launched" : "idle", kernels[i].name);
    fclose(file);
}
