/* A management library of two GPUs that are not there, for machines without one.
 *
 * Every call may be told to fail: NVML_FAIL="nvmlDeviceGetPowerUsage=3,nvmlInitWithFlags=9", and
 * NVML_HANG names a call that never returns. Throttle reasons come from NVML_REASONS.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *UUIDS[] = {"GPU-11111111-aaaa-4000-8000-000000000000",
                              "GPU-22222222-bbbb-4000-8000-000000000000"};

static int told(const char *name) {
  const char *hang = getenv("NVML_HANG"), *fail = getenv("NVML_FAIL");
  while (hang && strcmp(hang, name) == 0) pause();
  const char *found = fail ? strstr(fail, name) : NULL;
  return found ? atoi(found + strlen(name) + 1) : 0;
}

/* A handle is the GPU's number plus one, so that none is null. */
static unsigned number(void *device) { return (unsigned)((char *)device - (char *)0) - 1; }

int nvmlInitWithFlags(unsigned flags) { return (void)flags, told(__func__); }

int nvmlDeviceGetCount_v2(unsigned *count) { return *count = 2, told(__func__); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = (char *)0 + index + 1;
  return index < 2 ? told(__func__) : 2;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
  snprintf(uuid, length, "%s", UUIDS[number(device)]);
  return told(__func__);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  for (unsigned index = 0; index < 2; index++)
    if (strcmp(uuid, UUIDS[index]) == 0) return *device = (char *)0 + index + 1, told(__func__);
  return 6; /* not found */
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned rates[2]) {
  rates[0] = 80 + number(device);
  rates[1] = 35;
  return told(__func__);
}

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long total_free_used[3]) {
  total_free_used[0] = 80ull << 30;
  total_free_used[1] = 60ull << 30;
  total_free_used[2] = 20ull << 30;
  return (void)device, told(__func__);
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
  return (void)device, *celsius = sensor == 0 ? 64 : 0, told(__func__);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
  return (void)device, *milliwatts = 412500, told(__func__);
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
  return (void)device, *milliwatts = 700000, told(__func__);
}

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) {
  return (void)device, *mhz = clock == 1 ? 1500 : 1, told(__func__);
}

int nvmlDeviceGetMaxClockInfo(void *device, int clock, unsigned *mhz) {
  return (void)device, *mhz = clock == 1 ? 1980 : 1, told(__func__);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
  const char *set = getenv("NVML_REASONS");
  return (void)device, *reasons = set ? strtoull(set, NULL, 0) : 0, told(__func__);
}
#endif
