/* What a GPU does right now: load, memory, power, processes, clocks. */
#include "standin.h"

#include <string.h>

#define NUMBER_OF_GPU(function, value) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned *to) \
    { \
        ENTER_WHOLE(device); \
        return standin_number(to, value); \
    }
NUMBER_OF_GPU(nvmlDeviceGetPowerUsage, g->power)
NUMBER_OF_GPU(nvmlDeviceGetFanSpeed, g->fan)

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
    ENTER_WHOLE(device);
    if (g->mig || gpu_util(g) == NA) return NVML_ERROR_NOT_SUPPORTED;
    rates->gpu = (unsigned)gpu_util(g);
    rates->memory = (unsigned)g->mem_util;
    return NVML_SUCCESS;
}

static void memory_of(const Gpu *g, int part, u64 *total, u64 *used)
{
    *total = part < 0 ? g->mem_total : g->parts[part].memory_mib << 20;
    *used = part < 0 ? g->mem_used : 0;
    for (int i = 0; i < g->process_count && part >= 0; i++)
        if (g->processes[i].gi == g->parts[part].gi && g->processes[i].memory != NA)
            *used += g->processes[i].memory;
}

/* The first version counts what the driver reserves as used; the second does not. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    ENTER(device);
    memory_of(g, device->part, &memory->total, &memory->used);
    if (memory->used == NA) return NVML_ERROR_NOT_SUPPORTED;
    if (device->part < 0) memory->used += g->mem_reserved;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    ENTER(device);
    if (memory->version != (sizeof *memory | 2U << 24)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory_of(g, device->part, &memory->total, &memory->used);
    if (memory->used == NA) return NVML_ERROR_NOT_SUPPORTED;
    memory->reserved = device->part < 0 ? g->mem_reserved : 0;
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory)
{
    ENTER_WHOLE(device);
    memory->bar1Total = 137438953472ULL;
    memory->bar1Used = 1048576;
    memory->bar1Free = memory->bar1Total - memory->bar1Used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, u64 *millijoules)
{
    ENTER_WHOLE(device);
    return standin_long(millijoules, g->energy_base == NA ? NA : gpu_energy(g, now_microseconds()));
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned *celsius)
{
    ENTER_WHOLE(device);
    if (sensor != NVML_TEMPERATURE_GPU) return NVML_ERROR_INVALID_ARGUMENT;
    return standin_number(celsius, g->temp);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t threshold,
                                                      unsigned *celsius)
{
    ENTER_WHOLE(device);
    static const unsigned limits[] = {95, 92, 95, 87};
    if ((unsigned)threshold >= sizeof limits / sizeof *limits) return NVML_ERROR_NOT_SUPPORTED;
    return standin_number(celsius, limits[threshold]);
}

static u64 within(u64 clock, u64 low, u64 high)
{
    if (clock == NA || !high) return clock;
    return clock < low ? low : clock > high ? high : clock;
}

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned *megahertz)
{
    ENTER_WHOLE(device);
    switch (type) {
    case NVML_CLOCK_GRAPHICS: return standin_number(megahertz, within(g->clock_gr, g->locked_gr_min, g->locked_gr_max));
    case NVML_CLOCK_SM: return standin_number(megahertz, within(g->clock_sm, g->locked_gr_min, g->locked_gr_max));
    case NVML_CLOCK_MEM: return standin_number(megahertz, within(g->clock_mem, g->locked_mem_min, g->locked_mem_max));
    case NVML_CLOCK_VIDEO: return standin_number(megahertz, g->clock_video);
    default: return NVML_ERROR_INVALID_ARGUMENT;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned *megahertz)
{
    ENTER_WHOLE(device);
    switch (type) {
    case NVML_CLOCK_GRAPHICS: return standin_number(megahertz, g->clock_gr_max);
    case NVML_CLOCK_SM: return standin_number(megahertz, g->clock_sm_max);
    case NVML_CLOCK_MEM: return standin_number(megahertz, g->clock_mem_max);
    case NVML_CLOCK_VIDEO: return standin_number(megahertz, g->clock_video_max);
    default: return NVML_ERROR_INVALID_ARGUMENT;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, u64 *reasons)
{
    ENTER_WHOLE(device);
    return standin_long(reasons, g->reasons);
}

EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *state)
{
    ENTER_WHOLE(device);
    if (g->pstate == NA) return NVML_ERROR_NOT_SUPPORTED;
    *state = (nvmlPstates_t)g->pstate;
    return NVML_SUCCESS;
}

static nvmlReturn_t engine(u64 util, unsigned *utilization, unsigned *period)
{
    *period = SAMPLE_MICROSECONDS;
    return standin_number(utilization, util);
}

EXPORT nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned *utilization, unsigned *period)
{
    ENTER_WHOLE(device);
    return engine(g->enc_util, utilization, period);
}

EXPORT nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned *utilization, unsigned *period)
{
    ENTER_WHOLE(device);
    return engine(g->dec_util, utilization, period);
}

static nvmlReturn_t list(const Gpu *g, int part, char kind, unsigned *count, nvmlProcessInfo_t *infos)
{
    unsigned found = 0;
    for (int i = 0; i < g->process_count; i++) {
        const Process *p = &g->processes[i];
        if (p->kind != kind || (part >= 0 && (p->gi != g->parts[part].gi || p->ci != g->parts[part].ci))) continue;
        if (infos && found < *count) {
            infos[found].pid = p->pid;
            infos[found].usedGpuMemory = p->memory;
            infos[found].gpuInstanceId = p->gi;
            infos[found].computeInstanceId = p->ci;
        }
        found++;
    }
    nvmlReturn_t answer = found > *count || (!infos && found) ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
    *count = found;
    return answer;
}

#define PROCESSES_OF_GPU(function, kind) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned *count, nvmlProcessInfo_t *infos) \
    { \
        ENTER(device); \
        return list(g, device->part, kind, count, infos); \
    }
PROCESSES_OF_GPU(nvmlDeviceGetComputeRunningProcesses_v3, 'C')
PROCESSES_OF_GPU(nvmlDeviceGetGraphicsRunningProcesses_v3, 'G')
PROCESSES_OF_GPU(nvmlDeviceGetMPSComputeRunningProcesses_v3, 'M')

/* The size query answers a hundred whatever runs, and nothing running is NOT_FOUND, as the driver does. */
EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
                                                    unsigned *count, u64 last_seen)
{
    ENTER_WHOLE(device);
    u64 now = now_microseconds();
    if (g->mig) return NVML_ERROR_NOT_SUPPORTED;
    if (!samples || !*count) {
        *count = 100;
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    unsigned found = 0;
    for (int i = 0; i < g->process_count && found < *count && last_seen < now; i++) {
        const Process *p = &g->processes[i];
        if (!p->sm && !p->mem) continue;
        samples[found++] = (nvmlProcessUtilizationSample_t){
            .pid = p->pid, .timeStamp = now, .smUtil = p->sm, .memUtil = p->mem};
    }
    *count = found;
    return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type, u64 last_seen,
                                         nvmlValueType_t *value_type, unsigned *count, nvmlSample_t *samples)
{
    ENTER_WHOLE(device);
    if (type != NVML_GPU_UTILIZATION_SAMPLES || g->mig) return NVML_ERROR_NOT_SUPPORTED;
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (!samples) {
        *count = SAMPLES_MAX;
        return NVML_SUCCESS;
    }
    if (!*count) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned found = 0;
    u64 period = g->sampling * 1000, newest = period ? now_microseconds() / period * period : 0;
    memset(samples, 0, *count * sizeof *samples);
    for (int i = 0; i < g->sample_count && found < *count; i++) {
        if (g->samples[i].at <= last_seen) continue;
        samples[found].timeStamp = g->samples[i].at;
        samples[found++].sampleValue.uiVal = (unsigned)g->samples[i].value;
    }
    for (u64 back = SAMPLES_MAX; !g->sample_count && period && back-- && found < *count;) {
        if (newest - back * period <= last_seen) continue;
        samples[found].timeStamp = newest - back * period;
        samples[found++].sampleValue.uiVal = (unsigned)gpu_util(g);
    }
    *count = found;
    return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
