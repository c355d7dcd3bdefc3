/* A shared object to preload: the CUDA runtime says that there is one GPU, as much as opening it
 * asks for, of the compute capability in FAKE_CAPABILITY's first digit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cudaGetDeviceCount(int *count);
int cudaGetDeviceCount(int *count)
{
    *count = 1;
    return 0;
}

int cudaSetDevice(int index);
int cudaSetDevice(int index)
{
    (void)index;
    return 0;
}

/* Whichever is asked for: the major number of the compute capability. */
int cudaDeviceGetAttribute(int *value, int attribute, int index);
int cudaDeviceGetAttribute(int *value, int attribute, int index)
{
    const char *capability = getenv("FAKE_CAPABILITY");
    (void)attribute;
    (void)index;
    *value = capability ? capability[0] - '0' : 9;
    return 0;
}

/* The properties begin with a name of 256 bytes. */
int cudaGetDeviceProperties(char *properties, int index);
int cudaGetDeviceProperties(char *properties, int index)
{
    snprintf(properties, 256, "imaginary GPU %d", index);
    return 0;
}

int cudaGetDeviceProperties_v2(char *properties, int index);
int cudaGetDeviceProperties_v2(char *properties, int index)
{
    return cudaGetDeviceProperties(properties, index);
}

/* Kernels: three a module, of which the one that is asked for is the first. Those that are loaded
 * are written to the file that FAKE_LOADED names. */
enum { KERNELS = 3 };

int cudaGetFuncBySymbol(const char **function, const char *symbol);
int cudaGetFuncBySymbol(const char **function, const char *symbol)
{
    *function = symbol;
    return 0;
}

static int module_of(const char **module, const char *function)
{
    *module = function;
    return 0;
}

static int count(unsigned *n, const char *module)
{
    (void)module;
    *n = KERNELS;
    return 0;
}

static int list(const char **functions, unsigned n, const char *module)
{
    for (unsigned k = 0; k < n; k++)
        functions[k] = module + k;
    return 0;
}

static int load(const char *function)
{
    const char *path = getenv("FAKE_LOADED");
    FILE *file = path ? fopen(path, "a") : NULL;

    if (file) {
        fprintf(file, "%p\n", (const void *)function);
        fclose(file);
    }
    return 0;
}

int cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version,
                                     unsigned long long flags, int *found);
int cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version,
                                     unsigned long long flags, int *found)
{
    const struct {
        const char *name;
        void *entry;
    } calls[] = {{"cuFuncGetModule", (void *)module_of},
                 {"cuModuleGetFunctionCount", (void *)count},
                 {"cuModuleEnumerateFunctions", (void *)list},
                 {"cuFuncLoad", (void *)load}};
    (void)version;
    (void)flags;
    *entry = NULL;
    *found = 1; /* no such call */
    for (unsigned k = 0; k < sizeof calls / sizeof calls[0]; k++)
        if (strcmp(name, calls[k].name) == 0) {
            *entry = calls[k].entry;
            *found = 0;
        }
    return 0;
}
