/* A stand-in for libnvidia-ml.so.1, so that the unmodified pynvml can be tested where no GPU is.
 *
 * Our own code; prototypes, struct layouts and error numbers follow the public nvml.h. The state is an
 * append-only text journal named by NVML_STANDIN_STATE; it is read again whenever it has grown, so that a
 * test is one write to a file. One statement a line:
 *
 *   gpus 2                              how many GPUs there are, with the defaults below
 *   gpu 0 name NVIDIA H200              strings: name uuid serial
 *   gpu 0 util 93                       numbers: util mem_total mem_used power energy temp mig
 *   gpu * temp 60                       all GPUs
 *   gpu 0 proc 4242 C                   a process with a compute (C) or graphics (G) context
 *   gpu 0 proc- 4242                    it ended; `proc- *` ends all
 *   gpu 1 lost 1                        fell off the bus: every call on it answers 15
 *   gpu 1 err nvmlDeviceGetPowerUsage 3 this function answers this code on this GPU; 0 clears
 *   init_ret 9                          what nvmlInit answers
 *   hang nvmlDeviceGetUtilizationRates 60000    this function sleeps so many milliseconds, on any GPU
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define GPUS_MAX 16
#define PROCESSES_MAX 32
#define ERRORS_MAX 64
#define TEXT 96

typedef struct { char name[TEXT], uuid[TEXT], serial[TEXT]; int index, lost;
    unsigned long long util, mem_total, mem_used, power, energy, temp, mig;
    struct { unsigned pid; char kind; } processes[PROCESSES_MAX]; int process_count; } Gpu;
typedef Gpu *nvmlDevice_t;
typedef int nvmlReturn_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { char busIdLegacy[16]; unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32]; } nvmlPciInfo_t;
typedef struct { unsigned pid; unsigned long long usedGpuMemory; unsigned gpuInstanceId, computeInstanceId;
    } nvmlProcessInfo_t;

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15, ARGUMENT_VERSION_MISMATCH = 25 };

static Gpu gpus[GPUS_MAX];
static struct { int gpu, code; char function[TEXT]; } errors[ERRORS_MAX];
static int gpu_count, error_count, initialized, init_answer;
static char hang_function[TEXT];
static long hang_milliseconds, journal_size = -1;

static void defaults(void)
{
    memset(gpus, 0, sizeof gpus);
    gpu_count = error_count = init_answer = 0;
    hang_milliseconds = 0;
    for (int i = 0; i < GPUS_MAX; i++) {
        Gpu *g = &gpus[i];
        g->index = i;
        snprintf(g->name, TEXT, "NVIDIA H100 80GB HBM3");
        snprintf(g->uuid, TEXT, "GPU-00000000-0000-4000-8000-%012d", i);
        snprintf(g->serial, TEXT, "16500%08d", i);
        g->mem_total = 85520809984ULL;
        g->mem_used = 4194304;
        g->power = 70000;
        g->energy = 1000000;
        g->temp = 31;
    }
}

static void process(Gpu *g, const char *line, int add)
{
    unsigned pid = 0;
    char kind = 'C';
    int all = strchr(line, '*') != NULL;
    if (!all && sscanf(line, "%u %c", &pid, &kind) < 1) return;
    int kept = 0;
    for (int i = 0; i < g->process_count; i++)
        if (!(all || (g->processes[i].pid == pid && (!add || g->processes[i].kind == kind))))
            g->processes[kept++] = g->processes[i];
    g->process_count = kept;
    if (add && kept < PROCESSES_MAX) {
        g->processes[kept].pid = pid;
        g->processes[kept].kind = kind;
        g->process_count++;
    }
}

static void attribute(Gpu *g, const char *key, const char *rest)
{
    struct { const char *key; unsigned long long *value; } numbers[] = {
        {"util", &g->util}, {"mem_total", &g->mem_total}, {"mem_used", &g->mem_used},
        {"power", &g->power}, {"energy", &g->energy}, {"temp", &g->temp}, {"mig", &g->mig}};
    struct { const char *key; char *value; } strings[] = {
        {"name", g->name}, {"uuid", g->uuid}, {"serial", g->serial}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key)) *numbers[i].value = strtoull(rest, NULL, 10);
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
        if (!strcmp(key, strings[i].key)) snprintf(strings[i].value, TEXT, "%s", rest);
    if (!strcmp(key, "lost")) g->lost = atoi(rest);
    if (!strcmp(key, "proc")) process(g, rest, 1);
    if (!strcmp(key, "proc-")) process(g, rest, 0);
    if (!strcmp(key, "err") && error_count < ERRORS_MAX
        && sscanf(rest, "%95s %d", errors[error_count].function, &errors[error_count].code) == 2)
        errors[error_count++].gpu = g->index;
}

static void statement(char *line)
{
    char which[8], key[TEXT];
    int at = 0;
    line[strcspn(line, "\r\n")] = 0;
    if (!strncmp(line, "gpu ", 4) && sscanf(line, "gpu %7s %95s %n", which, key, &at) == 2 && at) {
        for (int i = 0; i < GPUS_MAX; i++)
            if (which[0] == '*' || atoi(which) == i) attribute(&gpus[i], key, line + at);
        return;
    }
    sscanf(line, "gpus %d", &gpu_count);
    sscanf(line, "init_ret %d", &init_answer);
    sscanf(line, "hang %95s %ld", hang_function, &hang_milliseconds);
}

static void refresh(void)
{
    const char *path = getenv("NVML_STANDIN_STATE");
    struct stat about;
    if (!path || stat(path, &about) || about.st_size == journal_size) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    char line[256];
    journal_size = about.st_size;
    defaults();
    while (fgets(line, sizeof line, file)) statement(line);
    fclose(file);
}

/* What every call on a device does first: hang, and answer an error that the journal asks for. */
static nvmlReturn_t enter(const char *function, Gpu *g)
{
    refresh();
    if (hang_milliseconds && !strcmp(function, hang_function)) {
        struct timespec pause = {hang_milliseconds / 1000, hang_milliseconds % 1000 * 1000000L};
        nanosleep(&pause, NULL);
    }
    if (!initialized) return UNINITIALIZED;
    if (!g) return SUCCESS;
    if (g->lost) return GPU_IS_LOST;
    nvmlReturn_t answer = SUCCESS;
    for (int i = 0; i < error_count; i++)
        if (errors[i].gpu == g->index && !strcmp(errors[i].function, function)) answer = errors[i].code;
    return answer;
}

#define ENTER(device) do { nvmlReturn_t r_ = enter(__func__, device); if (r_) return r_; } while (0)

static nvmlReturn_t give(char *to, unsigned length, const char *text)
{
    if (strlen(text) + 1 > length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    refresh();
    if (init_answer) return init_answer;
    initialized++;
    return SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void)
{
    if (!initialized) return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
    switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case GPU_IS_LOST: return "GPU is lost";
    case 9: return "Driver Not Loaded";
    default: return "Stand-in Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    ENTER(NULL);
    return give(text, length, "580.95.05");
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    ENTER(NULL);
    *count = (unsigned)gpu_count;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    ENTER(NULL);
    if (index >= (unsigned)gpu_count) return INVALID_ARGUMENT;
    if (gpus[index].lost) return GPU_IS_LOST;
    *device = &gpus[index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    ENTER(NULL);
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) {
            *device = &gpus[i];
            return gpus[i].lost ? GPU_IS_LOST : SUCCESS;
        }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t g, char *text, unsigned length)
{
    ENTER(g);
    return give(text, length, g->name);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t g, char *text, unsigned length)
{
    ENTER(g);
    return give(text, length, g->uuid);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t g, char *text, unsigned length)
{
    ENTER(g);
    return give(text, length, g->serial);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t g, nvmlPciInfo_t *pci)
{
    ENTER(g);
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x10 + 8 * (unsigned)g->index;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t g, unsigned *current, unsigned *pending)
{
    ENTER(g);
    *current = *pending = (unsigned)g->mig;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t g, nvmlUtilization_t *rates)
{
    ENTER(g);
    if (g->mig) return NOT_SUPPORTED;
    rates->gpu = (unsigned)g->util;
    rates->memory = 0;
    return SUCCESS;
}

/* The first version counts what the driver reserves as used; the second does not. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t g, nvmlMemory_t *memory)
{
    ENTER(g);
    memory->total = g->mem_total;
    memory->used = g->mem_used + 600000000ULL;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t g, nvmlMemory_v2_t *memory)
{
    ENTER(g);
    if (memory->version != (sizeof *memory | 2U << 24)) return ARGUMENT_VERSION_MISMATCH;
    memory->total = g->mem_total;
    memory->reserved = 600000000ULL;
    memory->used = g->mem_used;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t g, unsigned *milliwatts)
{
    ENTER(g);
    *milliwatts = (unsigned)g->power;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t g, unsigned long long *millijoules)
{
    ENTER(g);
    *millijoules = g->energy;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t g, int sensor, unsigned *celsius)
{
    ENTER(g);
    if (sensor) return INVALID_ARGUMENT;
    *celsius = (unsigned)g->temp;
    return SUCCESS;
}

static nvmlReturn_t list(Gpu *g, char kind, unsigned *count, nvmlProcessInfo_t *infos)
{
    unsigned found = 0;
    for (int i = 0; i < g->process_count; i++) {
        if (g->processes[i].kind != kind) continue;
        if (infos && found < *count) {
            infos[found].pid = g->processes[i].pid;
            infos[found].usedGpuMemory = ~0ULL;
            infos[found].gpuInstanceId = infos[found].computeInstanceId = 0xFFFFFFFFU;
        }
        found++;
    }
    nvmlReturn_t answer = found > *count || (!infos && found) ? INSUFFICIENT_SIZE : SUCCESS;
    *count = found;
    return answer;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t g, unsigned *count,
                                                     nvmlProcessInfo_t *infos)
{
    ENTER(g);
    return list(g, 'C', count, infos);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t g, unsigned *count,
                                                      nvmlProcessInfo_t *infos)
{
    ENTER(g);
    return list(g, 'G', count, infos);
}
