/* What every exported function begins with. */
#ifndef STANDIN_H
#define STANDIN_H

#include "machine.h"
#include "nvml_types.h"

/* A handle stands for a GPU, or for one part of a GPU that MIG has cut. */
struct nvmlDevice_st { int slot, part; /* -1: the whole GPU */ };

#define EXPORT __attribute__((visibility("default")))

static inline void standin_left(const int *held) { (void)held; machine_leave(); }

/* Takes the lock until the function returns, whichever way it does. */
#define LOCKED \
    __attribute__((cleanup(standin_left))) int held_ = 1; \
    (void)held_; \
    machine_take()

#define TRY(call) do { nvmlReturn_t r_ = (call); if (r_) return r_; } while (0)

/* A function of the library: initialised, not hung, not refused. */
#define ENTER_LIBRARY LOCKED; TRY(standin_enter(__func__))

/* A function of a device or a MIG part, which is then `g`. */
#define ENTER(device) \
    Gpu *g = NULL; \
    LOCKED; \
    TRY(standin_enter_device(__func__, device, &g))

/* A function that MIG parts do not have. */
#define ENTER_WHOLE(device) \
    ENTER(device); \
    if ((device)->part >= 0) return NVML_ERROR_NOT_SUPPORTED

/* A function that changes a setting: root only. */
#define ENTER_ROOT(device) \
    ENTER_WHOLE(device); \
    if (!machine.root) return NVML_ERROR_NO_PERMISSION

nvmlReturn_t standin_enter(const char *function);
nvmlReturn_t standin_enter_device(const char *function, nvmlDevice_t device, Gpu **gpu);
nvmlDevice_t standin_device(int slot);
int standin_initialized(void);
nvmlReturn_t standin_text(char *to, unsigned length, const char *text);
nvmlReturn_t standin_number(unsigned *to, u64 value);
nvmlReturn_t standin_long(u64 *to, u64 value);

#endif
