/* What speaks for or against a GPU's health: ECC, remapped rows, links, fabric, field values. */
#include "standin.h"

#include <stdio.h>
#include <string.h>

#define NUMBER_OF_GPU(function, value) \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned *to) \
    { \
        ENTER_WHOLE(device); \
        return standin_number(to, value); \
    }
NUMBER_OF_GPU(nvmlDeviceGetCurrPcieLinkGeneration, g->pcie_gen)
NUMBER_OF_GPU(nvmlDeviceGetMaxPcieLinkGeneration, g->pcie_gen_max)
NUMBER_OF_GPU(nvmlDeviceGetCurrPcieLinkWidth, g->pcie_width)
NUMBER_OF_GPU(nvmlDeviceGetMaxPcieLinkWidth, g->pcie_width_max)
NUMBER_OF_GPU(nvmlDeviceGetPcieReplayCounter, g->pcie_replay)

EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned *kilobytes)
{
    ENTER_WHOLE(device);
    return standin_number(kilobytes, counter == NVML_PCIE_UTIL_TX_BYTES ? g->pcie_tx : g->pcie_rx);
}

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending)
{
    ENTER_WHOLE(device);
    if (g->ecc == NA) return NVML_ERROR_NOT_SUPPORTED;
    *current = (nvmlEnableState_t)g->ecc;
    *pending = (nvmlEnableState_t)g->ecc_pending;
    return NVML_SUCCESS;
}

static u64 ecc_count(const Gpu *g, int uncorrected, int aggregate, int sram)
{
    const u64 counts[] = {
        g->ecc_cor_vol_dram, g->ecc_cor_vol_sram, g->ecc_cor_agg_dram, g->ecc_cor_agg_sram,
        g->ecc_unc_vol_dram, g->ecc_unc_vol_sram, g->ecc_unc_agg_dram, g->ecc_unc_agg_sram};
    return g->ecc == NA || !g->ecc ? NA : counts[uncorrected * 4 + aggregate * 2 + sram];
}

static u64 ecc_total(const Gpu *g, int uncorrected, int aggregate)
{
    u64 dram = ecc_count(g, uncorrected, aggregate, 0), sram = ecc_count(g, uncorrected, aggregate, 1);
    return dram == NA || sram == NA ? NA : dram + sram;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                                nvmlEccCounterType_t counter, u64 *count)
{
    ENTER_WHOLE(device);
    if ((unsigned)type > 1 || (unsigned)counter > 1) return NVML_ERROR_INVALID_ARGUMENT;
    return standin_long(count, ecc_total(g, (int)type, (int)counter));
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t type,
                                                    nvmlEccCounterType_t counter, nvmlMemoryLocation_t location,
                                                    u64 *count)
{
    ENTER_WHOLE(device);
    if ((unsigned)type > 1 || (unsigned)counter > 1) return NVML_ERROR_INVALID_ARGUMENT;
    if (location != NVML_MEMORY_LOCATION_DRAM && location != NVML_MEMORY_LOCATION_SRAM)
        return NVML_ERROR_NOT_SUPPORTED;
    return standin_long(count, ecc_count(g, (int)type, (int)counter, location == NVML_MEMORY_LOCATION_SRAM));
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *corrected, unsigned *uncorrected,
                                              unsigned *pending, unsigned *failed)
{
    ENTER_WHOLE(device);
    TRY(standin_number(corrected, g->remap_cor));
    TRY(standin_number(uncorrected, g->remap_unc));
    TRY(standin_number(pending, g->remap_pending));
    return standin_number(failed, g->remap_failed);
}

static nvmlReturn_t check_link(const Gpu *g, unsigned link)
{
    if (!g->nvlinks || g->nvlinks == NA) return NVML_ERROR_NOT_SUPPORTED;
    return link < g->nvlinks && link < LINKS_MAX ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, nvmlEnableState_t *active)
{
    ENTER_WHOLE(device);
    TRY(check_link(g, link));
    *active = g->link_down[link] ? NVML_FEATURE_DISABLED : NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned link,
                                                    nvmlNvLinkErrorCounter_t counter, u64 *value)
{
    ENTER_WHOLE(device);
    TRY(check_link(g, link));
    if ((unsigned)counter >= LINK_COUNTERS) return NVML_ERROR_INVALID_ARGUMENT;
    return standin_long(value, g->link_errors[link][counter]);
}

EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t other,
                                                        nvmlGpuTopologyLevel_t *level)
{
    ENTER_WHOLE(device);
    if (!other || other->part >= 0) return NVML_ERROR_INVALID_ARGUMENT;
    u64 numa = machine.gpus[other->slot].numa;
    *level = device == other ? NVML_TOPOLOGY_INTERNAL
        : numa == g->numa    ? NVML_TOPOLOGY_NODE
                             : NVML_TOPOLOGY_SYSTEM;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device, nvmlDevice_t other, nvmlGpuP2PCapsIndex_t index,
                                           nvmlGpuP2PStatus_t *status)
{
    ENTER_WHOLE(device);
    (void)index;
    if (!other || other->part >= 0) return NVML_ERROR_INVALID_ARGUMENT;
    *status = NVML_P2P_STATUS_OK;
    return NVML_SUCCESS;
}

static void parse_uuid(const char *text, unsigned char bytes[16])
{
    unsigned byte;
    for (int i = 0; i < 16; i++, text += 2) {
        if (*text == '-') text++;
        if (sscanf(text, "%2x", &byte) != 1) return;
        bytes[i] = (unsigned char)byte;
    }
}

/* The caller says by the version word which layout it has: the second ends before `healthSummary`. */
EXPORT nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *info)
{
    ENTER_WHOLE(device);
    if (g->fabric_state == NA) return NVML_ERROR_NOT_SUPPORTED;
    unsigned version = info->version;
    if (version != (sizeof(nvmlGpuFabricInfo_v3_t) | 3U << 24)
        && version != (sizeof(nvmlGpuFabricInfo_v2_t) | 2U << 24))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memset(info->clusterUuid, 0, sizeof info->clusterUuid);
    parse_uuid(g->fabric_uuid, info->clusterUuid);
    info->status = (nvmlReturn_t)g->fabric_status;
    info->cliqueId = (unsigned)g->fabric_clique;
    info->state = (nvmlGpuFabricState_t)g->fabric_state;
    info->healthMask = 0;
    if (version >> 24 == 3) info->healthSummary = (unsigned char)g->fabric_health;
    return NVML_SUCCESS;
}

static u64 link_total(const Gpu *g, int counter)
{
    u64 total = 0;
    if (!g->nvlinks || g->nvlinks == NA) return NA;
    for (int link = 0; link < LINKS_MAX; link++) total += g->link_errors[link][counter];
    return total;
}

static u64 field(const Gpu *g, unsigned id, nvmlValueType_t *type)
{
    for (int i = 0; i < g->field_count; i++)
        if (g->fields[i].id == id) return g->fields[i].value;
    switch (id) {
    case 3: return ecc_total(g, 0, 0);
    case 4: return ecc_total(g, 1, 0);
    case 5: return ecc_total(g, 0, 1);
    case 6: return ecc_total(g, 1, 1);
    case 38: return link_total(g, 2);
    case 45: return link_total(g, 3);
    case 52: return link_total(g, 0);
    case 59: return link_total(g, 1);
    case 83: case 191: return g->energy_base == NA ? NA : gpu_energy(g, now_microseconds());
    }
    *type = NVML_VALUE_TYPE_UNSIGNED_INT;
    switch (id) {
    case 1: return g->ecc;
    case 2: return g->ecc_pending;
    case 82: return g->mem_temp;
    case 91: return g->nvlinks;
    case 94: return g->pcie_replay;
    case 142: return g->remap_cor;
    case 143: return g->remap_unc;
    case 144: return g->remap_pending;
    case 145: return g->remap_failed;
    case 185: case 186: return g->power;
    case 230: return g->recovery_action;
    default: return NA;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    ENTER_WHOLE(device);
    for (int i = 0; i < count; i++) {
        values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        u64 value = field(g, values[i].fieldId, &values[i].valueType);
        values[i].timestamp = (long long)now_microseconds();
        values[i].latencyUsec = 0;
        values[i].nvmlReturn = value == NA ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
        values[i].value.ullVal = value == NA ? 0 : value;
    }
    return NVML_SUCCESS;
}
