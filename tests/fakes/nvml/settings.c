/* What root may set. A setter appends its own line to the journal, so that every process sees one machine. */
#include "standin.h"

#define SET(...) return machine_append(__VA_ARGS__) ? NVML_ERROR_UNKNOWN : NVML_SUCCESS

#define NUMBER_OF_GPU(function, value) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned *to) \
    { \
        ENTER_WHOLE(device); \
        return standin_number(to, value); \
    }
NUMBER_OF_GPU(nvmlDeviceGetPowerManagementLimit, g->power_limit)
NUMBER_OF_GPU(nvmlDeviceGetPowerManagementDefaultLimit, g->power_limit_default)
NUMBER_OF_GPU(nvmlDeviceGetEnforcedPowerLimit, g->power_limit)
NUMBER_OF_GPU(nvmlDeviceGetAccountingBufferSize, 4000)

#define STATE_OF_GPU(function, value) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, nvmlEnableState_t *to) \
    { \
        ENTER_WHOLE(device); \
        if ((value) == NA) return NVML_ERROR_NOT_SUPPORTED; \
        *to = (value) ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED; \
        return NVML_SUCCESS; \
    }
STATE_OF_GPU(nvmlDeviceGetPersistenceMode, g->persistence)
STATE_OF_GPU(nvmlDeviceGetAccountingMode, g->accounting)
STATE_OF_GPU(nvmlDeviceGetDisplayMode, 0)
STATE_OF_GPU(nvmlDeviceGetDisplayActive, 0)

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned *low, unsigned *high)
{
    ENTER_WHOLE(device);
    TRY(standin_number(low, g->power_limit_min));
    return standin_number(high, g->power_limit_max);
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned milliwatts)
{
    ENTER_ROOT(device);
    if (g->power_limit == NA) return NVML_ERROR_NOT_SUPPORTED;
    if (milliwatts < g->power_limit_min || milliwatts > g->power_limit_max) return NVML_ERROR_INVALID_ARGUMENT;
    SET("gpu %d power_limit %u\n", g->index, milliwatts);
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t mode)
{
    ENTER_ROOT(device);
    SET("gpu %d persistence %d\n", g->index, mode == NVML_FEATURE_ENABLED);
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode)
{
    ENTER_WHOLE(device);
    if (g->compute_mode == NA) return NVML_ERROR_NOT_SUPPORTED;
    *mode = (nvmlComputeMode_t)g->compute_mode;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, nvmlComputeMode_t mode)
{
    ENTER_ROOT(device);
    if ((unsigned)mode >= NVML_COMPUTEMODE_COUNT) return NVML_ERROR_INVALID_ARGUMENT;
    SET("gpu %d compute_mode %d\n", g->index, (int)mode);
}

EXPORT nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned low, unsigned high)
{
    ENTER_ROOT(device);
    if (low > high || high > g->clock_gr_max) return NVML_ERROR_INVALID_ARGUMENT;
    SET("gpu %d locked_gr_min %u\ngpu %d locked_gr_max %u\n", g->index, low, g->index, high);
}

EXPORT nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device)
{
    ENTER_ROOT(device);
    SET("gpu %d locked_gr_min 0\ngpu %d locked_gr_max 0\n", g->index, g->index);
}

EXPORT nvmlReturn_t nvmlDeviceSetMemoryLockedClocks(nvmlDevice_t device, unsigned low, unsigned high)
{
    ENTER_ROOT(device);
    if (low > high || high > g->clock_mem_max) return NVML_ERROR_INVALID_ARGUMENT;
    SET("gpu %d locked_mem_min %u\ngpu %d locked_mem_max %u\n", g->index, low, g->index, high);
}

EXPORT nvmlReturn_t nvmlDeviceResetMemoryLockedClocks(nvmlDevice_t device)
{
    ENTER_ROOT(device);
    SET("gpu %d locked_mem_min 0\ngpu %d locked_mem_max 0\n", g->index, g->index);
}

/* Under MIG accounting is off and cannot be switched. */
EXPORT nvmlReturn_t nvmlDeviceSetAccountingMode(nvmlDevice_t device, nvmlEnableState_t mode)
{
    ENTER_ROOT(device);
    if (g->mig) return NVML_ERROR_NOT_SUPPORTED;
    SET("gpu %d accounting %d\n", g->index, mode == NVML_FEATURE_ENABLED);
}

EXPORT nvmlReturn_t nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned *count, unsigned *pids)
{
    ENTER_WHOLE(device);
    if (!g->accounting) return NVML_ERROR_NOT_SUPPORTED;
    unsigned room = *count;
    *count = (unsigned)g->account_count;
    if (!*count) return NVML_SUCCESS;
    if (!pids || room < *count) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (int i = 0; i < g->account_count; i++) pids[i] = g->accounts[i].pid;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned pid, nvmlAccountingStats_t *stats)
{
    ENTER_WHOLE(device);
    if (!g->accounting) return NVML_ERROR_NOT_SUPPORTED;
    for (int i = 0; i < g->account_count; i++) {
        const Account *a = &g->accounts[i];
        if (a->pid != pid) continue;
        *stats = (nvmlAccountingStats_t){
            .gpuUtilization = a->gpu_util, .memoryUtilization = a->mem_util, .maxMemoryUsage = a->max_memory,
            .time = a->milliseconds, .startTime = a->start, .isRunning = a->running};
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceClearAccountingPids(nvmlDevice_t device)
{
    ENTER_ROOT(device);
    SET("gpu %d acct- *\n", g->index);
}

/* A changed ECC mode is pending until the GPU is reset. */
EXPORT nvmlReturn_t nvmlDeviceSetEccMode(nvmlDevice_t device, nvmlEnableState_t mode)
{
    ENTER_ROOT(device);
    if (g->ecc == NA) return NVML_ERROR_NOT_SUPPORTED;
    SET("gpu %d ecc_pending %d\n", g->index, mode == NVML_FEATURE_ENABLED);
}

EXPORT nvmlReturn_t nvmlDeviceClearEccErrorCounts(nvmlDevice_t device, nvmlEccCounterType_t counter)
{
    ENTER_ROOT(device);
    const char *which = counter == NVML_VOLATILE_ECC ? "vol" : "agg";
    int i = g->index;
    SET("gpu %d ecc_cor_%s_dram 0\ngpu %d ecc_cor_%s_sram 0\ngpu %d ecc_unc_%s_dram 0\ngpu %d ecc_unc_%s_sram 0\n",
        i, which, i, which, i, which, i, which);
}

/* With a client on the GPU the mode stays pending, and the activation says why. */
EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned mode, nvmlReturn_t *activation)
{
    ENTER_ROOT(device);
    if (g->mig == NA) return NVML_ERROR_NOT_SUPPORTED;
    if (mode > 1) return NVML_ERROR_INVALID_ARGUMENT;
    int busy = g->process_count > 0;
    *activation = busy ? NVML_ERROR_IN_USE : NVML_SUCCESS;
    SET("gpu %d %s %u\n", g->index, busy ? "mig_pending" : "mig", mode);
}

/* Driver models are a matter of Windows. */
EXPORT nvmlReturn_t nvmlDeviceGetDriverModel_v2(nvmlDevice_t device, nvmlDriverModel_t *current,
                                                nvmlDriverModel_t *pending)
{
    ENTER_WHOLE(device);
    (void)current;
    (void)pending;
    return NVML_ERROR_NOT_SUPPORTED;
}
