/* What other exporters ask NVML for beyond tests/nvml_shim/nvml.c, answered at no cost of its own.
 * Types and numbers are those of NVIDIA's nvml.h.
 */
#define ANSWER(name, ...) __attribute__((visibility("default"))) int name(__VA_ARGS__)

enum { DONE = 0, NO_FAN = 3, NO_SAMPLES = 6 };

ANSWER(nvmlSystemGetCudaDriverVersion_v2, int *version) { return *version = 13000, DONE; }
ANSWER(nvmlSystemGetCudaDriverVersion, int *version) { return *version = 13000, DONE; }
ANSWER(nvmlDeviceGetEncoderUtilization, void *gpu, unsigned *percent, unsigned *period_us) {
    return (void)gpu, *percent = 0, *period_us = 167000, DONE;
}
ANSWER(nvmlDeviceGetDecoderUtilization, void *gpu, unsigned *percent, unsigned *period_us) {
    return (void)gpu, *percent = 0, *period_us = 167000, DONE;
}
ANSWER(nvmlDeviceGetClockInfo, void *gpu, int clock, unsigned *mhz) {
    return (void)gpu, *mhz = clock == 2 ? 2619 : 1980, DONE;
}
ANSWER(nvmlDeviceGetTemperature, void *gpu, int sensor, unsigned *celsius) {
    return (void)gpu, (void)sensor, *celsius = 61, DONE;
}
ANSWER(nvmlDeviceGetPcieThroughput, void *gpu, int counter, unsigned *kib_per_s) {
    return (void)gpu, *kib_per_s = 1000 + counter, DONE;
}
ANSWER(nvmlDeviceGetPowerManagementLimit, void *gpu, unsigned *milliwatts) {
    return (void)gpu, *milliwatts = 700000, DONE;
}
ANSWER(nvmlDeviceGetFanSpeed, void *gpu, unsigned *percent) { return (void)gpu, (void)percent, NO_FAN; }
ANSWER(nvmlDeviceGetProcessUtilization, void *gpu, void *samples, unsigned *count, unsigned long long since_us) {
    return (void)gpu, (void)samples, (void)since_us, *count = 0, NO_SAMPLES;
}
