/* A shared object to preload: the CUDA runtime says that there is one GPU, as much as opening it
 * asks for, of the compute capability in FAKE_CAPABILITY's first digit. */
#include <stdio.h>
#include <stdlib.h>

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
