/* The library itself, handles and identity. */
#include "standin.h"

#include <stdio.h>
#include <string.h>

static struct nvmlDevice_st handles[GPUS_MAX][1 + PARTS_MAX];
static int visible[GPUS_MAX], visible_count, initialized; /* the enumeration is fixed at nvmlInit */
static unsigned enumerated_generation;

static void enumerate(void)
{
    visible_count = 0;
    for (int i = 0; i < machine.gpu_count; i++)
        if (machine.gpus[i].present) visible[visible_count++] = i;
    enumerated_generation = machine_generation();
}

int standin_initialized(void) { return initialized > 0; }

nvmlDevice_t standin_device(int slot)
{
    handles[slot][0].slot = slot;
    handles[slot][0].part = -1;
    return &handles[slot][0];
}

nvmlReturn_t standin_text(char *to, unsigned length, const char *text)
{
    if (!to) return NVML_ERROR_INVALID_ARGUMENT;
    if (!strcmp(text, "NA")) return NVML_ERROR_NOT_SUPPORTED;
    if (strlen(text) + 1 > length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, text);
    return NVML_SUCCESS;
}

nvmlReturn_t standin_number(unsigned *to, u64 value)
{
    if (!to) return NVML_ERROR_INVALID_ARGUMENT;
    if (value == NA) return NVML_ERROR_NOT_SUPPORTED;
    *to = (unsigned)value;
    return NVML_SUCCESS;
}

nvmlReturn_t standin_long(u64 *to, u64 value)
{
    if (!to) return NVML_ERROR_INVALID_ARGUMENT;
    if (value == NA) return NVML_ERROR_NOT_SUPPORTED;
    *to = value;
    return NVML_SUCCESS;
}

nvmlReturn_t standin_enter(const char *function)
{
    machine_delay(function);
    if (!initialized) return NVML_ERROR_UNINITIALIZED;
    if (enumerated_generation != machine_generation()) enumerate();
    return (nvmlReturn_t)machine_refusal(function, -1);
}

nvmlReturn_t standin_enter_device(const char *function, nvmlDevice_t device, Gpu **gpu)
{
    TRY(standin_enter(function));
    if (!device || device < &handles[0][0] || device > &handles[GPUS_MAX - 1][PARTS_MAX])
        return NVML_ERROR_INVALID_ARGUMENT;
    Gpu *g = &machine.gpus[device->slot];
    if (g->lost || !g->present) return NVML_ERROR_GPU_IS_LOST;
    if (device->part >= 0 && (!g->mig || !g->parts[device->part].uuid[0])) return NVML_ERROR_INVALID_ARGUMENT;
    *gpu = g;
    return (nvmlReturn_t)machine_refusal(function, g->index);
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    LOCKED;
    machine_delay(__func__);
    if (machine.init_answer) return (nvmlReturn_t)machine.init_answer;
    if (!initialized++) enumerate();
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT nvmlReturn_t nvmlShutdown(void)
{
    LOCKED;
    machine_delay(__func__);
    if (!initialized) return NVML_ERROR_UNINITIALIZED;
    initialized--;
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t code)
{
    static const struct { nvmlReturn_t code; const char *text; } texts[] = {
        {NVML_SUCCESS, "The operation was successful"}, {NVML_ERROR_UNINITIALIZED, "Uninitialized"},
        {NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"}, {NVML_ERROR_NOT_SUPPORTED, "Not Supported"},
        {NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"}, {NVML_ERROR_NOT_FOUND, "Not Found"},
        {NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"}, {NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"},
        {NVML_ERROR_TIMEOUT, "Timeout"}, {NVML_ERROR_GPU_IS_LOST, "GPU is lost"},
        {NVML_ERROR_RESET_REQUIRED, "GPU requires reset"}, {NVML_ERROR_IN_USE, "In use by another client"},
        {NVML_ERROR_LIB_RM_VERSION_MISMATCH, "Driver/library version mismatch"},
        {NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "Argument version mismatch"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].code == code) return texts[i].text;
    return "Unknown Error";
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    ENTER_LIBRARY;
    return standin_text(text, length, machine.driver);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *text, unsigned length)
{
    ENTER_LIBRARY;
    return standin_text(text, length, machine.nvml_version);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    ENTER_LIBRARY;
    *version = (int)machine.cuda_version;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length)
{
    ENTER_LIBRARY;
    const char *known = machine_process_name(pid);
    if (!known) return NVML_ERROR_NOT_FOUND;
    return standin_text(name, length, known);
}

EXPORT nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state)
{
    ENTER_LIBRARY;
    state->environment = (unsigned)machine.cc_environment;
    state->ccFeature = (unsigned)machine.cc_feature;
    state->devToolsMode = (unsigned)machine.cc_devtools;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetConfComputeGpusReadyState(unsigned *ready)
{
    ENTER_LIBRARY;
    return standin_number(ready, machine.cc_ready);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    ENTER_LIBRARY;
    return standin_number(count, (u64)visible_count);
}

/* A GPU that is gone stays in the count until the next nvmlInit, and answers that it is lost. */
static nvmlReturn_t give(const char *function, int slot, nvmlDevice_t *device)
{
    const Gpu *g = &machine.gpus[slot];
    if (g->lost || !g->present) return NVML_ERROR_GPU_IS_LOST;
    *device = standin_device(slot);
    return (nvmlReturn_t)machine_refusal(function, slot);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    ENTER_LIBRARY;
    if (index >= (unsigned)visible_count) return NVML_ERROR_INVALID_ARGUMENT;
    return give(__func__, visible[index], device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    ENTER_LIBRARY;
    for (int i = 0; i < visible_count; i++) {
        Gpu *g = &machine.gpus[visible[i]];
        if (!strcmp(g->uuid, uuid)) return give(__func__, g->index, device);
        for (int part = 0; part < PARTS_MAX && g->mig; part++)
            if (!strcmp(g->parts[part].uuid, uuid)) {
                TRY(give(__func__, g->index, device));
                handles[g->index][1 + part] = (struct nvmlDevice_st){g->index, part};
                *device = &handles[g->index][1 + part];
                return NVML_SUCCESS;
            }
    }
    return NVML_ERROR_NOT_FOUND;
}

static void bus_ids(const Gpu *g, char *legacy, char *full)
{
    snprintf(legacy, 16, "0000:%02X:00.0", (unsigned)g->bus & 0xff);
    snprintf(full, 32, "00000000:%02X:00.0", (unsigned)g->bus & 0xff);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    ENTER_LIBRARY;
    for (int i = 0; i < visible_count; i++) {
        char legacy[16], full[32];
        bus_ids(&machine.gpus[visible[i]], legacy, full);
        if (!strcasecmp(bus_id, legacy) || !strcasecmp(bus_id, full))
            return give(__func__, visible[i], device);
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    ENTER_LIBRARY;
    for (int i = 0; i < visible_count; i++)
        if (!strcmp(machine.gpus[visible[i]].serial, serial)) return give(__func__, visible[i], device);
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
    ENTER(device);
    int at = 0;
    while (at < visible_count && visible[at] != g->index) at++;
    return standin_number(index, device->part >= 0 ? (u64)device->part : (u64)at);
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *text, unsigned length)
{
    ENTER(device);
    char name[2 * TEXT];
    if (device->part < 0) return standin_text(text, length, g->name);
    const Part *part = &g->parts[device->part];
    snprintf(name, sizeof name, "%s MIG %ug.%llugb", g->name, part->gi_slices, (part->memory_mib + 1023) / 1024);
    return standin_text(text, length, name);
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *text, unsigned length)
{
    ENTER(device);
    return standin_text(text, length, device->part < 0 ? g->uuid : g->parts[device->part].uuid);
}

#define TEXT_OF_GPU(function, field) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned length) \
    { \
        ENTER_WHOLE(device); \
        return standin_text(text, length, g->field); \
    }
TEXT_OF_GPU(nvmlDeviceGetSerial, serial)
TEXT_OF_GPU(nvmlDeviceGetBoardPartNumber, board_part)
TEXT_OF_GPU(nvmlDeviceGetVbiosVersion, vbios)

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    ENTER_WHOLE(device);
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned)g->bus;
    pci->pciDeviceId = 0x233010DE;
    pci->pciSubSystemId = 0x16C110DE;
    bus_ids(g, pci->busIdLegacy, pci->busId);
    return NVML_SUCCESS;
}

#define NUMBER_OF_GPU(function, value) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned *to) \
    { \
        ENTER_WHOLE(device); \
        return standin_number(to, value); \
    }
NUMBER_OF_GPU(nvmlDeviceGetMinorNumber, g->minor)
NUMBER_OF_GPU(nvmlDeviceGetNumaNodeId, g->numa)
NUMBER_OF_GPU(nvmlDeviceGetNumGpuCores, 16896)
NUMBER_OF_GPU(nvmlDeviceGetMemoryBusWidth, 5120)
NUMBER_OF_GPU(nvmlDeviceGetMaxMigDeviceCount, PARTS_MAX)

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major_version, int *minor_version)
{
    ENTER(device);
    *major_version = 9;
    *minor_version = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *architecture)
{
    ENTER(device);
    return standin_number(architecture, 9); /* Hopper */
}

EXPORT nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t *brand)
{
    ENTER(device);
    *brand = (nvmlBrandType_t)14; /* NVIDIA */
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, nvmlGpuVirtualizationMode_t *mode)
{
    ENTER_WHOLE(device);
    if (g->virtualization == NA) return NVML_ERROR_NOT_SUPPORTED;
    *mode = (nvmlGpuVirtualizationMode_t)g->virtualization;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    ENTER_WHOLE(device);
    TRY(standin_number(current, g->mig));
    return standin_number(pending, g->mig_pending);
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *part)
{
    ENTER_WHOLE(device);
    if (!g->mig) return NVML_ERROR_NOT_SUPPORTED;
    if (index >= PARTS_MAX) return NVML_ERROR_INVALID_ARGUMENT;
    if (!g->parts[index].uuid[0]) return NVML_ERROR_NOT_FOUND;
    handles[g->index][1 + index] = (struct nvmlDevice_st){g->index, (int)index};
    *part = &handles[g->index][1 + index];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t part, nvmlDevice_t *device)
{
    ENTER(part);
    if (part->part < 0) return NVML_ERROR_INVALID_ARGUMENT;
    *device = standin_device(g->index);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is_part)
{
    ENTER(device);
    return standin_number(is_part, device->part >= 0);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id)
{
    ENTER(device);
    if (device->part < 0) return NVML_ERROR_INVALID_ARGUMENT;
    return standin_number(id, g->parts[device->part].gi);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned *id)
{
    ENTER(device);
    if (device->part < 0) return NVML_ERROR_INVALID_ARGUMENT;
    return standin_number(id, g->parts[device->part].ci);
}

EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    ENTER(device);
    memset(attributes, 0, sizeof *attributes);
    if (device->part < 0) return NVML_ERROR_NOT_SUPPORTED;
    const Part *part = &g->parts[device->part];
    attributes->multiprocessorCount = part->multiprocessors;
    attributes->gpuInstanceSliceCount = part->gi_slices;
    attributes->computeInstanceSliceCount = part->ci_slices;
    attributes->memorySizeMB = part->memory_mib;
    return NVML_SUCCESS;
}
