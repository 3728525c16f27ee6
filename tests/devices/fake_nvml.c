/* A stand-in for libnvidia-ml.so.1, scripted by the file that FAKE_NVML names, read anew by every
 * call. Built by the tests (nvml_fakes.py), so that the real pynvml runs against it. One line each:
 *
 *   init CODE                  what nvmlInit answers
 *   driver NUMBER              another number is a driver loaded anew: all says "uninitialized"
 *   gpu KEY=VALUE ...          a GPU; keys: uuid bus name total used, and codes to answer with:
 *                              find (looking it up), ask (any query), memory, list; mig=1
 *   mig GPU KEY=VALUE ...      an instance of the GPU with that number
 *   proc GPU PID BYTES KIND    a process on it; BYTES may be na, KIND is C, G or CG
 *
 * Compiled with -DOLD_DRIVER it lacks what came with driver 510.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7 };

typedef struct {
    char uuid[96], bus[32], name[96];
    unsigned long long total, used;
    int find, ask, memory, list, mig, parent;
} Gpu;

typedef struct {
    int gpu;
    unsigned pid;
    unsigned long long bytes;
    char kind[4];
} Process;

typedef struct {
    unsigned pid;
    unsigned long long bytes;
    unsigned instance, compute_instance;
} ProcessInfo;

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} PciInfo;

static int init_code, driver, opened = -1, gpu_count, process_count;
static Gpu gpus[64];
static Process processes[256];

static void set(Gpu *gpu, const char *key, const char *value) {
    if (!strcmp(key, "uuid")) strcpy(gpu->uuid, value);
    else if (!strcmp(key, "bus")) strcpy(gpu->bus, value);
    else if (!strcmp(key, "name")) strcpy(gpu->name, value);
    else if (!strcmp(key, "total")) gpu->total = strtoull(value, NULL, 10);
    else if (!strcmp(key, "used")) gpu->used = strtoull(value, NULL, 10);
    else if (!strcmp(key, "find")) gpu->find = atoi(value);
    else if (!strcmp(key, "ask")) gpu->ask = atoi(value);
    else if (!strcmp(key, "memory")) gpu->memory = atoi(value);
    else if (!strcmp(key, "list")) gpu->list = atoi(value);
    else if (!strcmp(key, "mig")) gpu->mig = atoi(value);
    else abort();
}

static void read_gpu(char *words, int parent) {
    Gpu *gpu = &gpus[gpu_count++];
    memset(gpu, 0, sizeof *gpu);
    gpu->parent = parent;
    for (char *word = strtok(words, " \n"); word; word = strtok(NULL, " \n")) {
        char *value = strchr(word, '=');
        *value = 0;
        set(gpu, word, value + 1);
    }
}

static void read_script(void) {
    char line[1024], bytes[32];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    if (!file) abort();
    init_code = driver = gpu_count = process_count = 0;
    while (fgets(line, sizeof line, file)) {
        Process *one = &processes[process_count];
        int parent, length;
        if (sscanf(line, "init %d", &init_code) == 1) continue;
        if (sscanf(line, "driver %d", &driver) == 1) continue;
        if (!strncmp(line, "gpu ", 4)) read_gpu(line + 4, -1);
        else if (sscanf(line, "mig %d %n", &parent, &length) == 1) read_gpu(line + length, parent);
        else if (sscanf(line, "proc %d %u %31s %3s", &one->gpu, &one->pid, bytes, one->kind) == 4) {
            one->bytes = strcmp(bytes, "na") ? strtoull(bytes, NULL, 10) : ~0ULL;
            process_count++;
        } else if (line[0] != '\n') abort();
    }
    fclose(file);
}

static int number_of(void *handle) { return (int)(long)handle - 1; }

/* Read the script and return the GPU behind a handle, or NULL and the code that it answers with. */
static Gpu *ask(void *handle, int *code) {
    read_script();
    int number = number_of(handle);
    if (opened != driver) {
        *code = UNINITIALIZED;
        return NULL;
    }
    if (number < 0 || number >= gpu_count) {
        *code = INVALID;
        return NULL;
    }
    *code = gpus[number].ask;
    return *code ? NULL : &gpus[number];
}

static int found(int number, void **handle) {
    if (opened != driver) return UNINITIALIZED;
    if (gpus[number].find) return gpus[number].find;
    *handle = (void *)(long)(number + 1);
    return SUCCESS;
}

/* Find the place-th GPU below `parent`; -1 for whole GPUs. */
static int nth(int parent, unsigned place) {
    for (int number = 0; number < gpu_count; number++)
        if (gpus[number].parent == parent && place-- == 0) return number;
    return -1;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    read_script();
    if (!init_code) opened = driver;
    return init_code;
}

int nvmlShutdown(void) {
    opened = -1;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the stand-in";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    read_script();
    *count = 0;
    while (nth(-1, *count) >= 0) ++*count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    read_script();
    int number = nth(-1, index);
    return number < 0 ? INVALID : found(number, handle);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    read_script();
    for (int number = 0; number < gpu_count; number++)
        if (!strcmp(gpus[number].uuid, uuid)) return found(number, handle);
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **handle) {
    read_script();
    for (int number = 0; number < gpu_count; number++)
        if (!strcmp(gpus[number].bus, bus)) return found(number, handle);
    return NOT_FOUND;
}

static int text(void *handle, char *buffer, unsigned size, size_t offset) {
    int code;
    Gpu *gpu = ask(handle, &code);
    if (!gpu) return code;
    const char *value = (const char *)gpu + offset;
    if (!*value) return NOT_SUPPORTED;
    snprintf(buffer, size, "%s", value);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned size) {
    return text(handle, buffer, size, offsetof(Gpu, uuid));
}

int nvmlDeviceGetName(void *handle, char *buffer, unsigned size) {
    return text(handle, buffer, size, offsetof(Gpu, name));
}

int nvmlDeviceGetPciInfo_v3(void *handle, PciInfo *info) {
    memset(info, 0, sizeof *info);
    return text(handle, info->bus_id, sizeof info->bus_id, offsetof(Gpu, bus));
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *total_free_used) {
    int code;
    Gpu *gpu = ask(handle, &code);
    if (!gpu || gpu->memory) return gpu ? gpu->memory : code;
    total_free_used[0] = gpu->total;
    total_free_used[1] = gpu->total - gpu->used;
    total_free_used[2] = gpu->used;
    return SUCCESS;
}

static int list(void *handle, unsigned *room, ProcessInfo *infos, char kind) {
    int code;
    unsigned count = 0;
    Gpu *gpu = ask(handle, &code);
    if (!gpu || gpu->list) return gpu ? gpu->list : code;
    for (int place = 0; place < process_count; place++) {
        const Process *one = &processes[place];
        if (one->gpu != number_of(handle) || !strchr(one->kind, kind)) continue;
        if (count < *room && infos) infos[count] = (ProcessInfo){one->pid, one->bytes, ~0u, ~0u};
        count++;
    }
    code = count > *room ? TOO_SMALL : SUCCESS;
    *room = count;
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *room, ProcessInfo *infos) {
    return list(handle, room, infos, 'C');
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(void *handle, unsigned *room, ProcessInfo *infos) {
    return list(handle, room, infos, 'G');
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *room, ProcessInfo *infos) {
    return list(handle, room, infos, 'C');
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *room, ProcessInfo *infos) {
    return list(handle, room, infos, 'G');
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    int code;
    Gpu *gpu = ask(handle, &code);
    if (gpu) *current = *pending = gpu->mig;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    int code;
    *count = 7;
    return ask(handle, &code) ? SUCCESS : code;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    int code;
    if (!ask(handle, &code)) return code;
    int number = nth(number_of(handle), index);
    return number < 0 ? NOT_FOUND : found(number, instance);
}
#endif
