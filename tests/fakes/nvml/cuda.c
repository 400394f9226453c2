/* A stand-in for libcuda.so.1: the few driver functions that a look at left-over memory needs.
 *
 * The machine is that of the journal (see machine.c). With `gpu N residue 1` memory that was not written
 * comes back as 0xA5 and not as zero, until nearly all that is free has been set to zero. `gpu N cuda_err
 * cuMemAlloc_v2 2` makes a function answer a code. `gpu N ghost 1` is a GPU that shows full load although
 * nothing runs; a context that is opened and closed on it puts an end to that. CUDA_VISIBLE_DEVICES is
 * understood as a list of UUIDs or indices.
 */
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define BLOCKS_MAX 4096
#define RESIDUE 0xA5
#define SCRUBBED_SHARE 0.9 /* of what was free when the context was opened */

typedef int CUdevice;
typedef int CUresult;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st { int slot; } *CUcontext;
typedef struct { unsigned char bytes[16]; } CUuuid;

enum { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3, CUDA_ERROR_NO_DEVICE = 100, CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803, CUDA_ERROR_UNKNOWN = 999 };

typedef struct { CUdeviceptr at; u64 length; int slot, written; unsigned char byte; } Block;

static struct { int open; u64 free_at_opening, zeroed; } contexts[GPUS_MAX];
static Block blocks[BLOCKS_MAX];
static int devices[GPUS_MAX], device_count, initialized, current = -1;
static CUdeviceptr next_address = 0x700000000000ULL;

static void left(const int *held) { (void)held; machine_leave(); }

#define LOCKED \
    __attribute__((cleanup(left))) int held_ = 1; \
    (void)held_; \
    machine_take()

/* What every function begins with; it is refused on the GPU in question, or on any before one is chosen. */
#define ENTER(slot) \
    LOCKED; \
    do { CUresult r_ = enter(__func__, slot); if (r_) return r_; } while (0)

#define ENTER_DEVICE(device) \
    LOCKED; \
    if (initialized && ((device) < 0 || (device) >= device_count)) return CUDA_ERROR_INVALID_DEVICE; \
    int slot = initialized ? devices[device] : -1; \
    do { CUresult r_ = enter(__func__, slot); if (r_) return r_; } while (0)

#define ENTER_CONTEXT \
    ENTER(current); \
    if (current < 0) return CUDA_ERROR_INVALID_CONTEXT; \
    Gpu *g = &machine.gpus[current]

static CUresult enter(const char *function, int slot)
{
    machine_delay(function);
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
    if (slot >= 0 && machine.gpus[slot].lost) return CUDA_ERROR_UNKNOWN;
    return slot >= 0 ? machine_refusal(function, slot) : 0;
}

static int is_visible(const Gpu *g)
{
    const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
    char list[1024], index[16], *rest = NULL;
    if (!wanted) return 1;
    snprintf(list, sizeof list, "%s", wanted);
    snprintf(index, sizeof index, "%d", g->index);
    for (char *item = strtok_r(list, ",", &rest); item; item = strtok_r(NULL, ",", &rest))
        if (!strcmp(item, g->uuid) || !strcmp(item, index)) return 1;
    return 0;
}

EXPORT CUresult cuInit(unsigned flags)
{
    (void)flags;
    LOCKED;
    machine_delay(__func__);
    if (machine_refusal(__func__, -1)) return machine_refusal(__func__, -1);
    if (machine.init_answer == 18) return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
    if (machine.init_answer) return CUDA_ERROR_NO_DEVICE;
    device_count = 0;
    for (int i = 0; i < machine.gpu_count; i++) {
        const Gpu *g = &machine.gpus[i];
        if (g->present && !g->lost && is_visible(g)) devices[device_count++] = i;
    }
    if (!device_count) return CUDA_ERROR_NO_DEVICE;
    initialized = 1;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int *version)
{
    LOCKED;
    *version = (int)machine.cuda_version;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult code, const char **name)
{
    switch (code) {
    case CUDA_SUCCESS: *name = "CUDA_SUCCESS"; break;
    case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case CUDA_ERROR_NOT_INITIALIZED: *name = "CUDA_ERROR_NOT_INITIALIZED"; break;
    case CUDA_ERROR_NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case CUDA_ERROR_INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case CUDA_ERROR_INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; break;
    case CUDA_ERROR_UNKNOWN: *name = "CUDA_ERROR_UNKNOWN"; break;
    default: *name = NULL; return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult code, const char **text) { return cuGetErrorName(code, text); }

EXPORT CUresult cuDeviceGetCount(int *count)
{
    ENTER(-1);
    *count = device_count;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER_DEVICE(ordinal);
    (void)slot;
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *bus_id)
{
    ENTER(-1);
    unsigned domain, bus, place;
    if (sscanf(bus_id, "%x:%x:%x", &domain, &bus, &place) != 3) return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < device_count; i++)
        if (!domain && machine.gpus[devices[i]].bus == bus) {
            *device = i;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    ENTER_DEVICE(device);
    const char *text = machine.gpus[slot].uuid + strlen("GPU-");
    memset(uuid, 0, sizeof *uuid);
    for (int i = 0; i < 16; i++, text += 2) {
        unsigned byte;
        if (*text == '-') text++;
        if (sscanf(text, "%2x", &byte) != 1) return CUDA_ERROR_UNKNOWN;
        uuid->bytes[i] = (unsigned char)byte;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    ENTER_DEVICE(device);
    *bytes = machine.gpus[slot].mem_total;
    return CUDA_SUCCESS;
}

static u64 allocated(int slot)
{
    u64 total = 0;
    for (int i = 0; i < BLOCKS_MAX; i++)
        if (blocks[i].length && blocks[i].slot == slot) total += blocks[i].length;
    return total;
}

static u64 free_memory(const Gpu *g)
{
    u64 taken = g->mem_reserved + g->mem_used + allocated(g->index);
    return g->mem_total > taken ? g->mem_total - taken : 0;
}

static void open_context(int slot)
{
    current = slot;
    if (contexts[slot].open++) return;
    contexts[slot].free_at_opening = free_memory(&machine.gpus[slot]);
    contexts[slot].zeroed = 0;
}

static CUresult close_context(int slot)
{
    if (!contexts[slot].open) return CUDA_ERROR_INVALID_CONTEXT;
    if (--contexts[slot].open) return CUDA_SUCCESS;
    for (int i = 0; i < BLOCKS_MAX; i++)
        if (blocks[i].slot == slot) blocks[i].length = 0;
    if (current == slot) current = -1;
    if (machine.gpus[slot].ghost && machine_append("gpu %d ghost 0\n", slot)) return CUDA_ERROR_UNKNOWN;
    return CUDA_SUCCESS;
}

static struct CUctx_st handles[GPUS_MAX];

EXPORT CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device)
{
    (void)flags;
    ENTER_DEVICE(device);
    open_context(slot);
    handles[slot].slot = slot;
    *context = &handles[slot];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxDestroy_v2(CUcontext context)
{
    ENTER(-1);
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    return close_context(context->slot);
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    ENTER_DEVICE(device);
    int before = current;
    open_context(slot);
    current = before; /* retaining does not make it current */
    handles[slot].slot = slot;
    *context = &handles[slot];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    ENTER_DEVICE(device);
    return close_context(slot);
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
    ENTER(-1);
    if (context && !contexts[context->slot].open) return CUDA_ERROR_INVALID_CONTEXT;
    current = context ? context->slot : -1;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize(void)
{
    ENTER_CONTEXT;
    (void)g;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    ENTER_CONTEXT;
    *free_bytes = free_memory(g);
    *total_bytes = g->mem_total;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes)
{
    ENTER_CONTEXT;
    int i = 0;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    while (i < BLOCKS_MAX && blocks[i].length) i++;
    if (i == BLOCKS_MAX || bytes > free_memory(g)) return CUDA_ERROR_OUT_OF_MEMORY;
    blocks[i] = (Block){.at = next_address, .length = bytes, .slot = current};
    next_address += (bytes + 0x1fffff) & ~0x1fffffULL;
    *at = blocks[i].at;
    return CUDA_SUCCESS;
}

static Block *block_of(CUdeviceptr at, u64 length)
{
    for (int i = 0; i < BLOCKS_MAX; i++)
        if (blocks[i].length && at >= blocks[i].at && at + length <= blocks[i].at + blocks[i].length)
            return &blocks[i];
    return NULL;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr at)
{
    ENTER_CONTEXT;
    (void)g;
    Block *block = block_of(at, 0);
    if (!block || block->at != at) return CUDA_ERROR_INVALID_VALUE;
    block->length = 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes)
{
    ENTER_CONTEXT;
    const Block *block = block_of(from, bytes);
    if (!block) return CUDA_ERROR_INVALID_VALUE;
    memset(to, block->written ? block->byte : g->residue ? RESIDUE : 0, bytes);
    return CUDA_SUCCESS;
}

/* A block is remembered as a whole: set from its start to its end, or not at all. */
EXPORT CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char byte, size_t bytes)
{
    ENTER_CONTEXT;
    Block *block = block_of(at, bytes);
    if (!block) return CUDA_ERROR_INVALID_VALUE;
    if (block->at != at || block->length != bytes) return CUDA_SUCCESS;
    block->written = 1;
    block->byte = byte;
    if (!byte) contexts[current].zeroed += bytes;
    if (g->residue && (double)contexts[current].zeroed >= SCRUBBED_SHARE * (double)contexts[current].free_at_opening
        && machine_append("gpu %d residue 0\n", g->index))
        return CUDA_ERROR_UNKNOWN;
    return CUDA_SUCCESS;
}
