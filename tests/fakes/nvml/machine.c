/* Read the journal named by NVML_STANDIN_STATE, as far as it has grown, and keep what it says.
 *
 * One statement a line, the last one wins. A test is one append to a file; what a setter does is appended
 * too, so that every process sees one machine. N is a GPU's index or `*` for all; `NA` in place of a number
 * makes the calls that read it answer NOT_SUPPORTED.
 *
 *   gpus 8                                how many GPUs there are, with the figures of machine.h at rest
 *   gpu N NAME VALUE                      any name of NUMBERS and STRINGS in machine.h: util 93, temp 60
 *   gpu N lost 1 | present 0              fell off the bus | taken out: gone after the next nvmlInit
 *   gpu N proc PID C|G|M [BYTES SM MEM [GI CI]]   a process; without BYTES its memory is not told
 *   gpu N proc- PID | *                   it ended
 *   gpu N energy MILLIJOULES [AT]         the counter; AT in microseconds since 1970, now when left out
 *   gpu N energy_rate MILLIWATTS [AT]     from AT on the counter grows, in steps of 100 ms
 *   gpu N samples [@AT] 10 20 93 | -      appended to the buffer of utilisation samples | emptied;
 *                                         AT is the last one's time, they lie 1/6 s apart
 *   gpu N sampling MILLISECONDS           an empty buffer is filled with the present utilisation
 *   gpu N err FUNCTION CODE               this function answers this code; 0 clears. cuda_err is the same
 *   gpu N field ID VALUE | NA             what nvmlDeviceGetFieldValues answers for a field
 *   gpu N nvlink LINK 0|1                 down | up
 *   gpu N nvlink_error LINK COUNTER VALUE COUNTER as in nvmlNvLinkErrorCounter_t
 *   gpu N migdev INDEX UUID GI CI MIB SMS GI_SLICES CI_SLICES,  gpu N migdev- *
 *   gpu N acct PID GPU% MEM% BYTES MILLISECONDS START RUNNING,  gpu N acct- *
 *   xid N CODE [GI CI]                    an Xid; once, in order, to the event sets registered before
 *   event N TYPE DATA                     any event
 *   err FUNCTION CODE                     a function that has no GPU
 *   hang FUNCTION MILLISECONDS            it sleeps, on any GPU; 0 clears, also for those that sleep
 *   latency_us N                          every call takes that long
 *   init_ret 18                           what nvmlInit answers
 *   root 0                                setters answer NO_PERMISSION
 *   driver 580.95.05, nvml 13.580.95.05, cuda 13000, process_name PID TEXT
 *   cc_feature 1, cc_environment 2, cc_devtools 0, cc_ready 1
 */
#include "machine.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define REFUSALS_MAX 128
#define HANGS_MAX 16
#define NAMES_MAX 64
#define CHUNK 65536
#define HANG_SLICE_MILLISECONDS 20

Machine machine;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { int slot, code; char function[TEXT]; } refusals[REFUSALS_MAX];
static struct { char function[TEXT]; long milliseconds; } hangs[HANGS_MAX];
static struct { unsigned pid; char name[TEXT]; } names[NAMES_MAX];
static int refusal_count, hang_count, name_count;
static struct { int fd; char path[PATH_MAX]; dev_t device; ino_t inode; off_t seen, parsed; } journal = {
    .fd = -1};
static unsigned generation;

u64 now_microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (u64)now.tv_sec * 1000000ULL + (u64)now.tv_nsec / 1000;
}

u64 gpu_energy(const Gpu *gpu, u64 at)
{
    u64 steps = at > gpu->energy_since ? (at - gpu->energy_since) / 100000 : 0;
    return gpu->energy_base + gpu->energy_rate * steps / 10;
}

/* A ghost shows full load although nothing runs; see cuda.c for its cure. */
u64 gpu_util(const Gpu *gpu) { return gpu->ghost && !gpu->process_count ? 100 : gpu->util; }

static void at_rest(void)
{
    free(machine.events);
    memset(&machine, 0, sizeof machine);
    refusal_count = hang_count = name_count = 0;
    machine.root = 1;
    machine.cuda_version = 13000;
    machine.cc_ready = 1;
    snprintf(machine.driver, TEXT, "580.95.05");
    snprintf(machine.nvml_version, TEXT, "13.580.95.05");
    for (int i = 0; i < GPUS_MAX; i++) {
        Gpu *g = &machine.gpus[i];
        g->index = i;
#define X(name, value) g->name = value;
        NUMBERS(X)
#undef X
        snprintf(g->name, TEXT, "NVIDIA H100 80GB HBM3");
        snprintf(g->uuid, TEXT, "GPU-00000000-0000-4000-8000-%012d", i);
        snprintf(g->serial, TEXT, "16500%08d", i);
        snprintf(g->board_part, TEXT, "692-2G520-0200-000");
        snprintf(g->vbios, TEXT, "96.00.74.00.01");
        snprintf(g->fabric_uuid, TEXT, "00000000-0000-0000-0000-000000000000");
        g->bus = 0x10 + 8 * (u64)i;
        g->minor = (u64)i;
        g->numa = i >= 4;
        g->energy_base = 1000000;
    }
    generation++;
}

static u64 number(const char *text) { return strncmp(text, "NA", 2) ? strtoull(text, NULL, 10) : NA; }

static void set_process(Gpu *g, const char *rest, int add)
{
    Process p = {.kind = 'C', .memory = NA, .sm = 0, .mem = 0, .gi = ~0U, .ci = ~0U};
    int all = rest[0] == '*';
    if (!all
        && sscanf(rest, "%u %c %llu %u %u %u %u", &p.pid, &p.kind, &p.memory, &p.sm, &p.mem, &p.gi, &p.ci)
            < 1)
        return;
    int kept = 0;
    for (int i = 0; i < g->process_count; i++)
        if (!all && (g->processes[i].pid != p.pid || (add && g->processes[i].kind != p.kind)))
            g->processes[kept++] = g->processes[i];
    if (add && !all && kept < PROCESSES_MAX) g->processes[kept++] = p;
    g->process_count = kept;
}

static void set_samples(Gpu *g, const char *rest)
{
    u64 values[SAMPLES_MAX], last = now_microseconds();
    int count = 0;
    if (rest[0] == '-') g->sample_count = 0;
    if (rest[0] == '@') last = strtoull(rest + 1, (char **)&rest, 10);
    for (char *end; count < SAMPLES_MAX; rest = end) {
        u64 value = strtoull(rest, &end, 10);
        if (end == rest || rest[0] == '-') break;
        values[count++] = value;
    }
    for (int i = 0; i < count; i++) {
        u64 at = last - (u64)(count - 1 - i) * SAMPLE_MICROSECONDS;
        if (g->sample_count && at <= g->samples[g->sample_count - 1].at)
            at = g->samples[g->sample_count - 1].at + 1;
        if (g->sample_count == SAMPLES_MAX)
            memmove(g->samples, g->samples + 1, sizeof g->samples[0] * (size_t)--g->sample_count);
        g->samples[g->sample_count].at = at;
        g->samples[g->sample_count++].value = values[i];
    }
}

static void set_field(Gpu *g, const char *rest)
{
    unsigned id;
    int at = 0;
    if (sscanf(rest, "%u %n", &id, &at) < 1 || !at) return;
    int i = 0;
    while (i < g->field_count && g->fields[i].id != id) i++;
    if (i == FIELDS_MAX) return;
    if (i == g->field_count) g->field_count++;
    g->fields[i].id = id;
    g->fields[i].value = number(rest + at);
}

static void set_refusal(int slot, const char *rest)
{
    char function[TEXT];
    int code, i = 0;
    if (sscanf(rest, "%95s %d", function, &code) != 2) return;
    while (i < refusal_count && (refusals[i].slot != slot || strcmp(refusals[i].function, function))) i++;
    if (i == REFUSALS_MAX || (i == refusal_count && !code)) return;
    if (!code) {
        refusals[i] = refusals[--refusal_count];
        return;
    }
    if (i == refusal_count) refusal_count++;
    refusals[i].slot = slot;
    refusals[i].code = code;
    snprintf(refusals[i].function, TEXT, "%s", function);
}

static void set_hang(const char *rest)
{
    char function[TEXT];
    long milliseconds;
    int i = 0;
    if (sscanf(rest, "%95s %ld", function, &milliseconds) != 2) return;
    while (i < hang_count && strcmp(hangs[i].function, function)) i++;
    if (i == HANGS_MAX) return;
    if (i == hang_count) hang_count++;
    snprintf(hangs[i].function, TEXT, "%s", function);
    hangs[i].milliseconds = milliseconds;
}

static void set_energy(Gpu *g, const char *rest, int rate)
{
    u64 value = 0, at = now_microseconds();
    if (sscanf(rest, "%llu %llu", &value, &at) < 1) value = number(rest);
    g->energy_base = rate ? gpu_energy(g, at) : value;
    if (rate) g->energy_rate = value;
    g->energy_since = at;
}

static void set_part(Gpu *g, const char *rest)
{
    unsigned index;
    Part p = {0};
    if (sscanf(rest, "%u %95s %u %u %llu %u %u %u", &index, p.uuid, &p.gi, &p.ci, &p.memory_mib,
               &p.multiprocessors, &p.gi_slices, &p.ci_slices) >= 5
        && index < PARTS_MAX)
        g->parts[index] = p;
}

static void set_account(Gpu *g, const char *rest)
{
    Account a = {0};
    if (sscanf(rest, "%u %u %u %llu %llu %llu %u", &a.pid, &a.gpu_util, &a.mem_util, &a.max_memory,
               &a.milliseconds, &a.start, &a.running) >= 1
        && g->account_count < ACCOUNTS_MAX)
        g->accounts[g->account_count++] = a;
}

static void attribute(Gpu *g, const char *key, const char *rest)
{
    static const struct { const char *key; size_t at; } numbers[] = {
#define X(name, value) {#name, offsetof(Gpu, name)},
        NUMBERS(X)
#undef X
    }, strings[] = {
#define X(name) {#name, offsetof(Gpu, name)},
        STRINGS(X)
#undef X
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key)) *(u64 *)((char *)g + numbers[i].at) = number(rest);
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
        if (!strcmp(key, strings[i].key)) snprintf((char *)g + strings[i].at, TEXT, "%s", rest);
    unsigned link, counter;
    u64 value;
    if (!strcmp(key, "mig")) g->mig_pending = g->mig;
    if (!strcmp(key, "ecc")) g->ecc_pending = g->ecc;
    if (!strcmp(key, "proc")) set_process(g, rest, 1);
    if (!strcmp(key, "proc-")) set_process(g, rest, 0);
    if (!strcmp(key, "samples")) set_samples(g, rest);
    if (!strcmp(key, "field")) set_field(g, rest);
    if (!strcmp(key, "energy")) set_energy(g, rest, 0);
    if (!strcmp(key, "energy_rate")) set_energy(g, rest, 1);
    if (!strcmp(key, "migdev")) set_part(g, rest);
    if (!strcmp(key, "migdev-")) memset(g->parts, 0, sizeof g->parts);
    if (!strcmp(key, "acct")) set_account(g, rest);
    if (!strcmp(key, "acct-")) g->account_count = 0;
    if (!strcmp(key, "err") || !strcmp(key, "cuda_err")) set_refusal(g->index, rest);
    if (!strcmp(key, "nvlink") && sscanf(rest, "%u %llu", &link, &value) == 2 && link < LINKS_MAX)
        g->link_down[link] = !value;
    if (!strcmp(key, "nvlink_error") && sscanf(rest, "%u %u %llu", &link, &counter, &value) == 3
        && link < LINKS_MAX && counter < LINK_COUNTERS)
        g->link_errors[link][counter] = value;
}

static void add_event(Event event)
{
    if (event.slot < 0 || event.slot >= GPUS_MAX) return;
    Event *grown = realloc(machine.events, (machine.event_count + 1) * sizeof event);
    if (!grown) return;
    machine.events = grown;
    machine.events[machine.event_count++] = event;
}

static void statement(char *line)
{
    static const struct { const char *format; u64 *to; } numbers[] = {
        {"cc_feature %llu", &machine.cc_feature}, {"cc_environment %llu", &machine.cc_environment},
        {"cc_devtools %llu", &machine.cc_devtools}, {"cc_ready %llu", &machine.cc_ready},
        {"cuda %llu", &machine.cuda_version}, {"latency_us %llu", &machine.latency_microseconds}};
    char which[8], key[TEXT];
    int at = 0;
    Event event = {.gi = ~0U, .ci = ~0U};
    if (!strncmp(line, "gpu ", 4)) {
        if (sscanf(line, "gpu %7s %95s %n", which, key, &at) != 2 || !at) return;
        for (int i = 0; i < GPUS_MAX; i++)
            if (which[0] == '*' || atoi(which) == i) attribute(&machine.gpus[i], key, line + at);
        return;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sscanf(line, numbers[i].format, numbers[i].to);
    if (sscanf(line, "gpus %d", &machine.gpu_count) == 1 && machine.gpu_count > GPUS_MAX)
        machine.gpu_count = GPUS_MAX;
    sscanf(line, "init_ret %d", &machine.init_answer);
    sscanf(line, "root %d", &machine.root);
    sscanf(line, "driver %95s", machine.driver);
    sscanf(line, "nvml %95s", machine.nvml_version);
    if (!strncmp(line, "err ", 4)) set_refusal(-1, line + 4);
    if (!strncmp(line, "hang ", 5)) set_hang(line + 5);
    if (sscanf(line, "xid %d %llu %u %u", &event.slot, &event.data, &event.gi, &event.ci) >= 2) {
        event.type = 8;
        add_event(event);
    }
    if (sscanf(line, "event %d %llu %llu", &event.slot, &event.type, &event.data) == 3) add_event(event);
    if (name_count < NAMES_MAX
        && sscanf(line, "process_name %u %95[^\n]", &names[name_count].pid, names[name_count].name) == 2)
        name_count++;
}

static void open_journal(const char *path)
{
    struct stat about;
    if (journal.fd >= 0) close(journal.fd);
    journal.fd = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(journal.path, sizeof journal.path, "%s", path);
    journal.seen = journal.parsed = 0;
    at_rest();
    if (journal.fd >= 0 && !fstat(journal.fd, &about)) {
        journal.device = about.st_dev;
        journal.inode = about.st_ino;
    }
}

/* Read what was appended since the last call; a line without its end is left for later. */
static void refresh(void)
{
    static char chunk[CHUNK + 1];
    const char *path = getenv("NVML_STANDIN_STATE");
    struct stat about;
    if (!path) path = "";
    if (journal.fd < 0 || strcmp(path, journal.path)) open_journal(path);
    if (journal.fd < 0) return;
    if (fstat(journal.fd, &about) || about.st_dev != journal.device || about.st_ino != journal.inode) {
        journal.fd = -1; /* somebody closed it under us and opened something else */
        open_journal(path);
        if (journal.fd < 0 || fstat(journal.fd, &about)) return;
    }
    if (about.st_size == journal.seen) return;
    if (about.st_size < journal.parsed) {
        journal.parsed = 0;
        at_rest();
    }
    journal.seen = about.st_size;
    for (;;) {
        ssize_t length = pread(journal.fd, chunk, CHUNK, journal.parsed);
        if (length <= 0) return;
        chunk[length] = 0;
        char *line = chunk;
        for (char *end; (end = memchr(line, '\n', (size_t)(chunk + length - line))); line = end + 1) {
            *end = 0;
            statement(line);
        }
        if (line == chunk) return;
        journal.parsed += line - chunk;
    }
}

void machine_take(void)
{
    pthread_mutex_lock(&lock);
    refresh();
}

void machine_leave(void) { pthread_mutex_unlock(&lock); }

static void pause_microseconds(u64 microseconds)
{
    struct timespec pause = {(time_t)(microseconds / 1000000), (long)(microseconds % 1000000) * 1000L};
    nanosleep(&pause, NULL);
}

static long hang_milliseconds(const char *function)
{
    for (int i = 0; i < hang_count; i++)
        if (!strcmp(hangs[i].function, function)) return hangs[i].milliseconds;
    return 0;
}

void machine_delay(const char *function)
{
    long wanted = hang_count ? hang_milliseconds(function) : 0;
    for (long slept = 0; slept < wanted; slept += HANG_SLICE_MILLISECONDS) {
        machine_leave();
        pause_microseconds(HANG_SLICE_MILLISECONDS * 1000);
        machine_take();
        wanted = hang_milliseconds(function);
    }
    if (machine.latency_microseconds) {
        u64 microseconds = machine.latency_microseconds;
        machine_leave();
        pause_microseconds(microseconds);
        machine_take();
    }
}

int machine_refusal(const char *function, int slot)
{
    for (int i = 0; i < refusal_count; i++)
        if (refusals[i].slot == slot && !strcmp(refusals[i].function, function)) return refusals[i].code;
    return 0;
}

int machine_append(const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    int fd = open(journal.path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) return -1;
    int answer = length < (int)sizeof text && write(fd, text, (size_t)length) == length ? 0 : -1;
    close(fd);
    refresh();
    return answer;
}

const char *machine_process_name(unsigned pid)
{
    for (int i = name_count - 1; i >= 0; i--)
        if (names[i].pid == pid) return names[i].name;
    return NULL;
}

void machine_wait(int milliseconds)
{
    const char *path = getenv("NVML_STANDIN_STATE");
    int fd = inotify_init1(IN_CLOEXEC);
    struct stat about;
    if (fd < 0 || !path || inotify_add_watch(fd, path, IN_MODIFY) < 0) {
        if (fd >= 0) close(fd);
        pause_microseconds(milliseconds < 10 ? (u64)milliseconds * 1000 : 10000);
        return;
    }
    pthread_mutex_lock(&lock);
    int grown = stat(path, &about) || about.st_size != journal.seen;
    pthread_mutex_unlock(&lock);
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    if (!grown) poll(&wanted, 1, milliseconds);
    close(fd);
}

unsigned machine_generation(void) { return generation; }
