/* Event sets: what happened to a GPU after it was registered, once and in order. */
#include "standin.h"

#include <stdlib.h>
#include <time.h>

#define SUPPORTED 0xC09FULL /* ECC, P-state, XID, clocks, power source; GPU unavailable, recovery action */
#define SLICE_MILLISECONDS 200 /* how long an unforeseen change may go unseen */

struct nvmlEventSet_st {
    struct { u64 types; size_t from; } registered[GPUS_MAX];
    size_t next;
    unsigned generation;
};

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    ENTER_LIBRARY;
    *set = calloc(1, sizeof **set);
    if (!*set) return NVML_ERROR_MEMORY;
    (*set)->generation = machine_generation();
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    ENTER_LIBRARY;
    if (!set) return NVML_ERROR_INVALID_ARGUMENT;
    free(set);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, u64 *types)
{
    ENTER_WHOLE(device);
    return standin_long(types, SUPPORTED);
}

EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, u64 types, nvmlEventSet_t set)
{
    ENTER_WHOLE(device);
    if (!set || !types) return NVML_ERROR_INVALID_ARGUMENT;
    if (types & ~SUPPORTED) return NVML_ERROR_NOT_SUPPORTED;
    if (!set->registered[g->index].types) set->registered[g->index].from = machine.event_count;
    set->registered[g->index].types |= types;
    return NVML_SUCCESS;
}

/* Give the next event of the set, or that one of its GPUs is lost, or that there is nothing yet. */
static nvmlReturn_t look(nvmlEventSet_t set, nvmlEventData_t *data)
{
    if (set->generation != machine_generation()) {
        set->generation = machine_generation();
        set->next = 0;
        for (int i = 0; i < GPUS_MAX; i++) set->registered[i].from = 0;
    }
    while (set->next < machine.event_count) {
        const Event *event = &machine.events[set->next++];
        if (!(set->registered[event->slot].types & event->type)) continue;
        if (set->next <= set->registered[event->slot].from) continue;
        data->device = standin_device(event->slot);
        data->eventType = event->type;
        data->eventData = event->data;
        data->gpuInstanceId = event->gi;
        data->computeInstanceId = event->ci;
        return NVML_SUCCESS;
    }
    for (int i = 0; i < GPUS_MAX; i++)
        if (set->registered[i].types && (machine.gpus[i].lost || !machine.gpus[i].present))
            return NVML_ERROR_GPU_IS_LOST;
    return NVML_ERROR_TIMEOUT;
}

static long long milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static nvmlReturn_t enter_and_look(const char *function, nvmlEventSet_t set, nvmlEventData_t *data)
{
    LOCKED;
    TRY(standin_enter(function));
    return look(set, data);
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned timeout)
{
    if (!set || !data) return NVML_ERROR_INVALID_ARGUMENT;
    long long until = milliseconds() + timeout;
    for (;;) {
        nvmlReturn_t answer = enter_and_look(__func__, set, data);
        long long left = until - milliseconds();
        if (answer != NVML_ERROR_TIMEOUT || left <= 0) return answer;
        machine_wait(left < SLICE_MILLISECONDS ? (int)left : SLICE_MILLISECONDS);
    }
}
