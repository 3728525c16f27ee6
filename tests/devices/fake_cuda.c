/* A stand-in for libcuda.so.1: GPUs in the order of the UUIDs in FAKE_CUDA (32 hex digits each,
 * with blanks between), as CUDA's own order by speed would have them. Fails with code 100, as
 * CUDA does without a GPU, if that is not set.
 */
#include <stdio.h>
#include <stdlib.h>

int cuInit(unsigned flags) {
    (void)flags;
    /* The question is how CUDA counts all GPUs: the variable must not hide any. */
    return getenv("FAKE_CUDA") && !getenv("CUDA_VISIBLE_DEVICES") ? 0 : 100;
}

int cuDeviceGetCount(int *count) {
    *count = 0;
    for (const char *at = getenv("FAKE_CUDA"); *at; at += 32 + (at[32] == ' ')) ++*count;
    return 0;
}

int cuDeviceGet(int *device, int number) {
    *device = number;
    return 0;
}

int cuDeviceGetUuid(unsigned char *uuid, int device) {
    const char *at = getenv("FAKE_CUDA") + 33 * device;
    for (int place = 0; place < 16; place++) sscanf(at + 2 * place, "%2hhx", &uuid[place]);
    return 0;
}
