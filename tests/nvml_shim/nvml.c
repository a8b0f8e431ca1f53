/* A libnvidia-ml.so.1 that does what a text file tells it.
 *
 * The file is named by NVML_SHIM_SCRIPT and read again whenever it is replaced. One setting a line, # for
 * comments; a line that cannot be understood aborts the process. N is a GPU's index.
 *
 *   driver VERSION                    what nvmlSystemGetDriverVersion says
 *   gpus COUNT                        GPUs the driver counts
 *   return CALL CODE                  a call that fails for the whole driver
 *   shutdown TIMES                    NVML is shut down behind the caller's back when TIMES changes
 *   N uuid TEXT | N name TEXT
 *   N handle GENERATION               another generation is another handle; older ones answer GPU_IS_LOST
 *   N return CALL CODE                a call that fails for this GPU; CALL * is every call with its handle
 *   N hang CALL                       the call blocks until this line is gone
 *   N energy MJ [STEP]                cumulative counter, advanced by STEP at each reading
 *   N power MW | N limit MW | N max_limit MW | N utilization PERCENT | N memory BYTES | N reasons MASK
 *   N processes COUNT | N mig MODE
 *   N field ID SCOPE CODE TYPE VALUE  one field of nvmlDeviceGetFieldValues; TYPE as nvmlValueType_t
 *   N no_field ID SCOPE
 *
 * Fields 83 (energy) and 185, 186, 190, 188 (power, limits) of GPU scope follow the figures above until a
 * line says otherwise. Types, numbers and struct layouts are those of NVIDIA's nvml.h.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15,
    MAX_GPUS = 32,
    MAX_RULES = 32,
    MAX_FIELDS = 32,
};

typedef union {
    double number;
    uint32_t ui;
    uint64_t ull;
} Value;

typedef struct {
    uint32_t id, scope;
    int64_t timestamp_us, latency_us;
    uint32_t type, result;
    Value value;
} FieldValue;
_Static_assert(sizeof(FieldValue) == 40, "nvmlFieldValue_t");

typedef struct {
    uint32_t pid;
    uint64_t memory;
    uint32_t gpu_instance, compute_instance;
} Process;
_Static_assert(sizeof(Process) == 24, "nvmlProcessInfo_v2_t");

typedef struct {
    char call[64];
    int code;
    int hangs;
} Rule;

typedef struct {
    char uuid[80], name[80];
    unsigned handle;
    uint64_t energy, step;
    uint64_t power, limit, max_limit, utilization, memory, reasons, processes, mig;
    int n_rules, n_fields;
    Rule rules[MAX_RULES];
    FieldValue fields[MAX_FIELDS];
} Gpu;

static struct {
    char driver[80];
    unsigned count, shutdowns;
    int n_rules;
    Rule rules[MAX_RULES];
    Gpu gpus[MAX_GPUS];
} script;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct timespec script_time;
static ino_t script_inode;
static uint64_t counters[MAX_GPUS], counters_set_to[MAX_GPUS];
static unsigned shutdowns_done, hanging;
static int references;
static pid_t owner;
static struct {
    char call[64];
    unsigned times;
} calls[64];

static void add_rule(Rule *rules, int *count, const char *call, int code, int hangs) {
    if (*count == MAX_RULES) abort();
    snprintf(rules[*count].call, sizeof rules->call, "%s", call);
    rules[*count].code = code;
    rules[(*count)++].hangs = hangs;
}

static void set_field(Gpu *gpu, unsigned id, unsigned scope, unsigned code, unsigned type, const char *value) {
    FieldValue *field = gpu->fields;
    while (field < gpu->fields + gpu->n_fields && (field->id != id || field->scope != scope)) field++;
    if (field == gpu->fields + MAX_FIELDS) abort();
    if (field == gpu->fields + gpu->n_fields) gpu->n_fields++;
    *field = (FieldValue){.id = id, .scope = scope, .type = type, .result = code};
    if (type == 0) field->value.number = strtod(value, NULL);
    else field->value.ull = strtoull(value, NULL, 10);
}

static int parse_gpu(Gpu *gpu, const char *line) {
    char call[64], value[64];
    unsigned id, scope, code, type;
    unsigned long long a, b = 0;
    int found;
    if (sscanf(line, "uuid %79[^\n]", gpu->uuid) == 1 || sscanf(line, "name %79[^\n]", gpu->name) == 1) return 1;
    if (sscanf(line, "handle %u", &gpu->handle) == 1) return 1;
    if (sscanf(line, "return %63s %u", call, &code) == 2) return add_rule(gpu->rules, &gpu->n_rules, call, code, 0), 1;
    if (sscanf(line, "hang %63s", call) == 1) return add_rule(gpu->rules, &gpu->n_rules, call, 0, 1), 1;
    if (sscanf(line, "field %u %u %u %u %63s", &id, &scope, &code, &type, value) == 5)
        return set_field(gpu, id, scope, code, type, value), 1;
    if (sscanf(line, "no_field %u %u", &id, &scope) == 2)
        return set_field(gpu, id, scope, NOT_SUPPORTED, 3, "0"), 1;
    if ((found = sscanf(line, "energy %llu %llu", &a, &b)) >= 1) return gpu->energy = a, gpu->step = b, 1;
    struct {
        const char *name;
        uint64_t *where;
    } figures[] = {
        {"power", &gpu->power},     {"limit", &gpu->limit},     {"max_limit", &gpu->max_limit},
        {"memory", &gpu->memory},   {"reasons", &gpu->reasons}, {"utilization", &gpu->utilization},
        {"mig", &gpu->mig},         {"processes", &gpu->processes},
    };
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        if (sscanf(line, "%63s %llu", call, &a) == 2 && !strcmp(call, figures[i].name))
            return *figures[i].where = a, 1;
    return 0;
}

static void parse(FILE *file) {
    char line[512], call[64];
    int offset, code;
    unsigned index;
    memset(&script, 0, sizeof script);
    for (unsigned i = 0; i < MAX_GPUS; i++) {
        Gpu *gpu = &script.gpus[i];
        snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-%08x-0000-0000-0000-000000000000", i);
        snprintf(gpu->name, sizeof gpu->name, "NVIDIA H100 80GB HBM3");
        gpu->energy = 1000000, gpu->power = 300000, gpu->limit = gpu->max_limit = 700000;
    }
    while (fgets(line, sizeof line, file)) {
        char *text = line + strspn(line, " \t");
        if (*text == '#' || *text == '\n' || !*text) continue;
        if (sscanf(text, "driver %79[^\n]", script.driver) == 1 || sscanf(text, "gpus %u", &script.count) == 1 ||
            sscanf(text, "shutdown %u", &script.shutdowns) == 1)
            continue;
        if (sscanf(text, "return %63s %d", call, &code) == 2) {
            add_rule(script.rules, &script.n_rules, call, code, 0);
            continue;
        }
        if (sscanf(text, "%u %n", &index, &offset) == 1 && index < MAX_GPUS &&
            parse_gpu(&script.gpus[index], text + offset))
            continue;
        fprintf(stderr, "nvml shim: cannot understand: %s", line);
        abort();
    }
    for (unsigned i = 0; i < MAX_GPUS; i++)
        if (counters_set_to[i] != script.gpus[i].energy)
            counters[i] = counters_set_to[i] = script.gpus[i].energy;
    if (shutdowns_done != script.shutdowns) shutdowns_done = script.shutdowns, references = 0;
}

static void refresh(void) {
    struct stat now;
    const char *path = getenv("NVML_SHIM_SCRIPT");
    if (!path || stat(path, &now)) {
        fprintf(stderr, "nvml shim: NVML_SHIM_SCRIPT names no file\n");
        abort();
    }
    if (now.st_ino == script_inode && !memcmp(&now.st_mtim, &script_time, sizeof script_time)) return;
    FILE *file = fopen(path, "r");
    if (!file) abort();
    parse(file);
    fclose(file);
    script_inode = now.st_ino, script_time = now.st_mtim;
}

static void count_call(const char *call) {
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (!*calls[i].call) snprintf(calls[i].call, sizeof calls[i].call, "%s", call);
        if (!strcmp(calls[i].call, call)) {
            calls[i].times++;
            return;
        }
    }
    abort();
}

static const Rule *rule_of(const Rule *rules, int count, const char *call) {
    for (int i = 0; i < count; i++)
        if (!strcmp(rules[i].call, call) || !strcmp(rules[i].call, "*")) return &rules[i];
    return NULL;
}

/* Takes the lock, which leave() gives back. */
static int enter(const char *call) {
    pthread_mutex_lock(&lock);
    refresh();
    count_call(call);
    const Rule *rule = rule_of(script.rules, script.n_rules, call);
    if (rule) return rule->code;
    return references > 0 && owner == getpid() ? OK : UNINITIALIZED;
}

static int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}

static int enter_gpu(const char *call, void *device, Gpu **gpu) {
    int code = enter(call);
    if (code) return code;
    uintptr_t handle = (uintptr_t)device;
    unsigned index = (handle & 0xff) - 1;
    if (index >= MAX_GPUS) return INVALID_ARGUMENT;
    *gpu = &script.gpus[index];
    const Rule *rule;
    while ((rule = rule_of((*gpu)->rules, (*gpu)->n_rules, call)) && rule->hangs) {
        hanging++;
        pthread_mutex_unlock(&lock);
        usleep(2000);
        pthread_mutex_lock(&lock);
        hanging--;
        refresh();
    }
    if (rule) return rule->code;
    return handle >> 8 == (*gpu)->handle ? OK : GPU_IS_LOST;
}

#define EXPORT(name, ...) int name(__VA_ARGS__)
#define ENTER_GPU()                                       \
    Gpu *gpu = NULL;                                      \
    int entered = enter_gpu(__func__, device, &gpu);      \
    if (entered) return leave(entered)

unsigned nvml_shim_calls(const char *call) {
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (!strcmp(calls[i].call, call)) return calls[i].times;
    return 0;
}

unsigned nvml_shim_hanging(void) { return hanging; }

EXPORT(nvmlInitWithFlags, unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    refresh();
    count_call(__func__);
    const Rule *rule = rule_of(script.rules, script.n_rules, __func__);
    if (rule) return leave(rule->code);
    if (owner != getpid()) owner = getpid(), references = 0;
    references++;
    return leave(OK);
}

EXPORT(nvmlShutdown, void) {
    int code = enter(__func__);
    if (!code) references--;
    return leave(code);
}

const char *nvmlErrorString(int code) { return code == 31 ? "a code of a later driver" : "Unknown Error"; }

EXPORT(nvmlSystemGetDriverVersion, char *version, unsigned length) {
    int code = enter(__func__);
    if (!code) snprintf(version, length, "%s", *script.driver ? script.driver : "580.105.08");
    return leave(code);
}

EXPORT(nvmlDeviceGetCount_v2, unsigned *count) {
    int code = enter(__func__);
    if (!code) *count = script.count;
    return leave(code);
}

EXPORT(nvmlDeviceGetHandleByIndex_v2, unsigned index, void **device) {
    int code = enter(__func__);
    if (code) return leave(code);
    if (index >= script.count) return leave(INVALID_ARGUMENT);
    Gpu *gpu = &script.gpus[index];
    const Rule *rule = rule_of(gpu->rules, gpu->n_rules, __func__);
    if (rule && strcmp(rule->call, "*")) return leave(rule->code);
    *device = (void *)((uintptr_t)gpu->handle << 8 | (index + 1));
    return leave(OK);
}

EXPORT(nvmlDeviceGetUUID, void *device, char *uuid, unsigned length) {
    ENTER_GPU();
    snprintf(uuid, length, "%s", gpu->uuid);
    return leave(OK);
}

EXPORT(nvmlDeviceGetName, void *device, char *name, unsigned length) {
    ENTER_GPU();
    snprintf(name, length, "%s", gpu->name);
    return leave(OK);
}

static uint64_t next_energy(Gpu *gpu) {
    uint64_t *counter = &counters[gpu - script.gpus];
    return *counter += gpu->step;
}

EXPORT(nvmlDeviceGetTotalEnergyConsumption, void *device, unsigned long long *energy) {
    ENTER_GPU();
    *energy = next_energy(gpu);
    return leave(OK);
}

#define EXPORT_FIGURE(call, type, figure)            \
    EXPORT(call, void *device, type *answer) {       \
        ENTER_GPU();                                 \
        *answer = (type)gpu->figure;                 \
        return leave(OK);                            \
    }
EXPORT_FIGURE(nvmlDeviceGetPowerUsage, unsigned, power)
EXPORT_FIGURE(nvmlDeviceGetEnforcedPowerLimit, unsigned, limit)
#ifndef WITHOUT_CLOCKS_EVENT_REASONS
EXPORT_FIGURE(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, reasons)
#endif

EXPORT(nvmlDeviceGetPowerManagementLimitConstraints, void *device, unsigned *least, unsigned *most) {
    ENTER_GPU();
    *least = 100000, *most = (unsigned)gpu->max_limit;
    return leave(OK);
}

EXPORT(nvmlDeviceGetMigMode, void *device, unsigned *current, unsigned *pending) {
    ENTER_GPU();
    if (!gpu->mig) return leave(NOT_SUPPORTED);
    *current = *pending = (unsigned)gpu->mig;
    return leave(OK);
}

EXPORT(nvmlDeviceGetUtilizationRates, void *device, unsigned rates[2]) {
    ENTER_GPU();
    if (gpu->mig) return leave(NOT_SUPPORTED);
    rates[0] = (unsigned)gpu->utilization, rates[1] = 0;
    return leave(OK);
}

EXPORT(nvmlDeviceGetMemoryInfo, void *device, unsigned long long memory[3]) {
    ENTER_GPU();
    memory[0] = 80ull << 30, memory[1] = (80ull << 30) - gpu->memory, memory[2] = gpu->memory;
    return leave(OK);
}

EXPORT(nvmlDeviceGetComputeRunningProcesses_v3, void *device, unsigned *count, Process *processes) {
    ENTER_GPU();
    unsigned room = *count;
    *count = (unsigned)gpu->processes;
    if (room < *count) return leave(INSUFFICIENT_SIZE);
    for (unsigned i = 0; i < *count; i++) processes[i] = (Process){.pid = 4000 + i, .memory = 1 << 30};
    return leave(OK);
}

static void fill_field(Gpu *gpu, FieldValue *wanted) {
    for (FieldValue *field = gpu->fields; field < gpu->fields + gpu->n_fields; field++)
        if (field->id == wanted->id && field->scope == wanted->scope) {
            *wanted = *field;
            return;
        }
    wanted->type = 1;
    wanted->result = OK;
    if (wanted->scope) wanted->result = NOT_SUPPORTED;
    else if (wanted->id == 83) wanted->type = 3, wanted->value.ull = next_energy(gpu);
    else if (wanted->id == 185 || wanted->id == 186) wanted->value.ui = (uint32_t)gpu->power;
    else if (wanted->id == 190) wanted->value.ui = (uint32_t)gpu->limit;
    else if (wanted->id == 188) wanted->value.ui = (uint32_t)gpu->max_limit;
    else wanted->result = INVALID_ARGUMENT;
}

EXPORT(nvmlDeviceGetFieldValues, void *device, int count, FieldValue *values) {
    ENTER_GPU();
    for (int i = 0; i < count; i++) fill_field(gpu, &values[i]);
    /* the call succeeds if any field did */
    for (int i = 0; i < count; i++)
        if (values[i].result == OK) return leave(OK);
    return leave(count ? (int)values[0].result : INVALID_ARGUMENT);
}
