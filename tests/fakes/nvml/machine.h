/* The machine that the stand-in shows: what the journal says, and what every call does first. */
#ifndef STANDIN_MACHINE_H
#define STANDIN_MACHINE_H

#include <stddef.h>

#define GPUS_MAX 16
#define PARTS_MAX 7
#define PROCESSES_MAX 64
#define ACCOUNTS_MAX 64
#define FIELDS_MAX 32
#define SAMPLES_MAX 120 /* about what the driver keeps: 20 s at six a second */
#define LINKS_MAX 18
#define LINK_COUNTERS 5
#define TEXT 96
#define SAMPLE_MICROSECONDS 166667

typedef unsigned long long u64;

#define NA (~0ULL) /* the journal's `NA`: the product does not have it */

/* Every number that `gpu N NAME VALUE` sets, with what a machine at rest has. */
#define NUMBERS(X) \
    X(util, 0) X(mem_util, 0) X(enc_util, 0) X(dec_util, 0) \
    X(mem_total, 85520809984ULL) X(mem_used, 4194304) X(mem_reserved, 600000000) \
    X(power, 70000) X(temp, 31) X(mem_temp, 35) X(fan, NA) X(reasons, 1) X(pstate, 0) \
    X(clock_gr, 345) X(clock_sm, 345) X(clock_mem, 2619) X(clock_video, 765) \
    X(clock_gr_max, 1980) X(clock_sm_max, 1980) X(clock_mem_max, 2619) X(clock_video_max, 1665) \
    X(locked_gr_min, 0) X(locked_gr_max, 0) X(locked_mem_min, 0) X(locked_mem_max, 0) \
    X(power_limit, 700000) X(power_limit_default, 700000) X(power_limit_min, 200000) \
    X(power_limit_max, 700000) X(compute_mode, 0) X(persistence, 1) X(accounting, 0) \
    X(mig, 0) X(mig_pending, 0) X(ecc, 1) X(ecc_pending, 1) \
    X(ecc_cor_vol_dram, 0) X(ecc_cor_vol_sram, 0) X(ecc_cor_agg_dram, 0) X(ecc_cor_agg_sram, 0) \
    X(ecc_unc_vol_dram, 0) X(ecc_unc_vol_sram, 0) X(ecc_unc_agg_dram, 0) X(ecc_unc_agg_sram, 0) \
    X(remap_cor, 0) X(remap_unc, 0) X(remap_pending, 0) X(remap_failed, 0) X(recovery_action, 0) \
    X(nvlinks, LINKS_MAX) X(pcie_gen, 5) X(pcie_gen_max, 5) X(pcie_width, 16) X(pcie_width_max, 16) \
    X(pcie_replay, 0) X(pcie_tx, 0) X(pcie_rx, 0) \
    X(fabric_state, 3) X(fabric_status, 0) X(fabric_clique, 0) X(fabric_health, 1) \
    X(virtualization, 0) X(bus, 0) X(minor, 0) X(numa, 0) X(lost, 0) X(present, 1) \
    X(sampling, 0) X(residue, 0) X(ghost, 0)

/* Every text that `gpu N NAME TEXT` sets. */
#define STRINGS(X) X(name) X(uuid) X(serial) X(board_part) X(vbios) X(fabric_uuid)

typedef struct { unsigned pid; char kind; u64 memory; unsigned sm, mem, gi, ci; } Process;
typedef struct { char uuid[TEXT]; unsigned gi, ci, multiprocessors, gi_slices, ci_slices; u64 memory_mib;
    } Part;
typedef struct { unsigned pid, gpu_util, mem_util, running; u64 max_memory, milliseconds, start; } Account;

typedef struct {
    int index;
#define X(name, at_rest) u64 name;
    NUMBERS(X)
#undef X
#define X(name) char name[TEXT];
    STRINGS(X)
#undef X
    u64 energy_base, energy_rate, energy_since;
    Process processes[PROCESSES_MAX]; int process_count;
    Account accounts[ACCOUNTS_MAX]; int account_count;
    Part parts[PARTS_MAX];
    struct { unsigned id; u64 value; } fields[FIELDS_MAX]; int field_count;
    struct { u64 at, value; } samples[SAMPLES_MAX]; int sample_count;
    int link_down[LINKS_MAX];
    u64 link_errors[LINKS_MAX][LINK_COUNTERS];
} Gpu;

typedef struct { int slot; u64 type, data; unsigned gi, ci; } Event;

typedef struct {
    Gpu gpus[GPUS_MAX];
    int gpu_count, init_answer, root;
    u64 cc_feature, cc_environment, cc_devtools, cc_ready, cuda_version, latency_microseconds;
    char driver[TEXT], nvml_version[TEXT];
    Event *events; size_t event_count;
} Machine;

extern Machine machine;

/* Take the lock and read what was appended; every use of `machine` lies between take and leave. */
void machine_take(void);
void machine_leave(void);
/* Let the lock go while `function` hangs or takes its time, as the journal says. Call with the lock held. */
void machine_delay(const char *function);
/* Return the code that the journal wants of `function` on this GPU (-1: on none), or 0. */
int machine_refusal(const char *function, int slot);
/* Append one or more lines to the journal, as another process would. Returns 0 or -1. */
int machine_append(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *machine_process_name(unsigned pid);
/* Sleep up to so many milliseconds or until the journal grows. Call without the lock. */
void machine_wait(int milliseconds);
/* Counts how often the state was read anew from the start: another journal, or a truncated one. */
unsigned machine_generation(void);

u64 now_microseconds(void);
u64 gpu_energy(const Gpu *gpu, u64 at);
u64 gpu_util(const Gpu *gpu);

#endif
