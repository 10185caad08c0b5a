/* A libnvidia-ml.so.1 without GPUs: it answers what a file says, read at every call.
 *
 * The file that NVML_STUB names has lines "key value": `init 9` makes nvmlInit fail with that code; `count 2` is the
 * number of GPUs; `gpu0.total 1000`, `gpu0.mig1.uuid MIG-…` are what a device tells; `gpu0.fail.power 15` makes one
 * question fail. What the file does not say is not supported (3). Layouts of structures: NVIDIA's nvml.h, R570.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GPUS 8
#define MIGS 8

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

typedef struct { char prefix[24]; } device_t;
typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned version, sensor; int temperature; } temperature_t;
typedef struct { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; } process_t;

static device_t devices[GPUS][MIGS + 1];
static int references;

/* Find a key; 1 and its value if it is there. */
static int look_up(const char *key, char *value, size_t size) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    int found = 0;
    size_t length = strlen(key);
    if (file == NULL) return 0;
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    }
    fclose(file);
    return found;
}

static int code_of(const char *key) {
    char value[64];
    return look_up(key, value, sizeof value) ? atoi(value) : SUCCESS;
}

/* Whether a question about a device may be answered: initialised, not lost, not made to fail. */
static int check(device_t *device, const char *field) {
    char key[96];
    int code;
    if (references == 0) return UNINITIALIZED;
    if (device == NULL) return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "%.4s.lost", device->prefix);
    if ((code = code_of(key)) != SUCCESS) return code;
    snprintf(key, sizeof key, "%s.fail.%s", device->prefix, field);
    return code_of(key);
}

static int tell(device_t *device, const char *field, char *value, size_t size) {
    char key[96];
    int code = check(device, field);
    if (code != SUCCESS) return code;
    snprintf(key, sizeof key, "%s.%s", device->prefix, field);
    return look_up(key, value, size) ? SUCCESS : NOT_SUPPORTED;
}

static int tell_number(device_t *device, const char *field, u64 *number) {
    char value[64];
    int code = tell(device, field, value, sizeof value);
    if (code == SUCCESS) *number = strtoull(value, NULL, 0);
    return code;
}

static int tell_unsigned(device_t *device, const char *field, unsigned *number) {
    u64 wide;
    int code = tell_number(device, field, &wide);
    if (code == SUCCESS) *number = (unsigned)wide;
    return code;
}

int nvmlInitWithFlags(unsigned flags) {
    int code = code_of("init");
    (void)flags;
    if (code == SUCCESS) references++;
    return code;
}

int nvmlShutdown(void) {
    if (references == 0) return UNINITIALIZED;
    references--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) { (void)code; return "a fault of the stand-in"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    char value[64];
    int code = code_of("fail.count");
    if (references == 0) return UNINITIALIZED;
    if (code != SUCCESS) return code;
    *count = look_up("count", value, sizeof value) ? (unsigned)atoi(value) : 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **device) {
    char key[64], value[64];
    device_t *found;
    if (references == 0) return UNINITIALIZED;
    /* `order.0 1`: after a GPU fell off, number 0 is what was number 1 before. */
    snprintf(key, sizeof key, "order.%u", index);
    if (look_up(key, value, sizeof value)) index = (unsigned)atoi(value);
    if (index >= GPUS) return INVALID_ARGUMENT;
    found = &devices[index][MIGS];
    snprintf(found->prefix, sizeof found->prefix, "gpu%u", index);
    *device = found;
    return check(found, "handle");
}

int nvmlDeviceGetUUID(device_t *device, char *text, unsigned size) { return tell(device, "uuid", text, size); }
int nvmlDeviceGetName(device_t *device, char *text, unsigned size) { return tell(device, "name", text, size); }

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory) {
    u64 used = 0, reserved = 0;
    int code = tell_number(device, "total", &memory->total);
    if (code != SUCCESS) return code;
    tell_number(device, "used", &used);
    tell_number(device, "reserved", &reserved);
    memory->used = used;
    memory->free = memory->total - used - reserved;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *rates) {
    rates->memory = 0;
    return tell_unsigned(device, "utilisation", &rates->gpu);
}

int nvmlDeviceGetTemperature(device_t *device, unsigned sensor, unsigned *celsius) {
    (void)sensor;
    return tell_unsigned(device, "temperature", celsius);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetTemperatureV(device_t *device, temperature_t *temperature) {
    unsigned celsius;
    int code = tell_unsigned(device, "temperature", &celsius);
    if (temperature->version != 0x100000C) return INVALID_ARGUMENT;
    if (code == SUCCESS) temperature->temperature = (int)celsius;
    return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t *device, u64 *reasons) {
    return tell_number(device, "throttle", reasons);
}
#endif

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, u64 *reasons) {
    return tell_number(device, "throttle", reasons);
}

int nvmlDeviceGetPowerUsage(device_t *device, unsigned *milliwatts) { return tell_unsigned(device, "power", milliwatts); }

int nvmlDeviceGetEnforcedPowerLimit(device_t *device, unsigned *milliwatts) {
    return tell_unsigned(device, "power_limit", milliwatts);
}

int nvmlDeviceGetTotalEccErrors(device_t *device, unsigned kind, unsigned counter, u64 *count) {
    if (counter != 0) return INVALID_ARGUMENT;
    return tell_number(device, kind == 0 ? "ecc_corrected" : "ecc_uncorrected", count);
}

int nvmlDeviceGetMigMode(device_t *device, unsigned *current, unsigned *pending) {
    int code = tell_unsigned(device, "mig", current);
    if (code == SUCCESS) *pending = *current;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, unsigned *count) {
    *count = MIGS - 1;
    return check(device, "max_migs");
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned index, device_t **instance) {
    char key[64], value[256];
    device_t *found;
    int code = check(device, "mig_handle");
    if (code != SUCCESS) return code;
    if (index >= MIGS) return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "%s.mig%u.uuid", device->prefix, index);
    if (!look_up(key, value, sizeof value)) return NOT_FOUND;
    found = &devices[device->prefix[3] - '0'][index];
    snprintf(found->prefix, sizeof found->prefix, "%.4s.mig%u", device->prefix, index);
    *instance = found;
    return SUCCESS;
}

/* `gpu0.compute 12:1000,13:n/a`: bytes by process. */
static int processes(device_t *device, const char *field, unsigned *count, process_t *found) {
    char value[256], *entry, *rest = value;
    unsigned room = *count, number = 0;
    int code = tell(device, field, value, sizeof value);
    if (code != SUCCESS) return code;
    while ((entry = strtok_r(rest, ",", &rest))) {
        if (found != NULL && number < room) {
            char *colon = strchr(entry, ':');
            memset(&found[number], 0, sizeof *found);
            found[number].pid = (unsigned)strtoul(entry, NULL, 10);
            found[number].bytes = colon[1] == 'n' ? ~0ULL : strtoull(colon + 1, NULL, 10);
        }
        number++;
    }
    *count = number;
    return number > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device_t *device, unsigned *count, process_t *found) {
    return processes(device, "compute", count, found);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, unsigned *count, process_t *found) {
    return processes(device, "compute", count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *device, unsigned *count, process_t *found) {
    return processes(device, "graphics", count, found);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t *device, unsigned *count, process_t *found) {
    return processes(device, "mps", count, found);
}
#endif
