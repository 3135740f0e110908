/* Enough of libcuda for kernels to be loaded and launched: it writes down what it is told, a line a call.

   It refuses what a driver refuses (work without a current context, more shared memory than was asked for, an empty
   grid), and whatever fake_refuse names. A launch's parameters are copied as a driver copies them: so many, each of so
   many bytes, as the code itself says, which is what fake_parameters is told. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

static char log_[1 << 16];
static size_t used;
static int gpus = 1, capability = 90, sizes[64], count, refused, allowed;
static char refuse[64], symbol[256];
static _Thread_local int depth;

static int said(const char *call, const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    used += (size_t)snprintf(log_ + used, sizeof log_ - used, "%s", call);
    used += (size_t)vsnprintf(log_ + used, sizeof log_ - used, format, rest);
    used += (size_t)snprintf(log_ + used, sizeof log_ - used, "\n");
    va_end(rest);
    return strcmp(call, refuse) ? SUCCESS : refused;
}

const char *fake_log(void) { return log_; }
int fake_depth(void) { return depth; }
void fake_reset(int gpus_, int capability_) {
    gpus = gpus_, capability = capability_, used = 0, count = 0, refused = 0, allowed = 48 << 10;
    log_[0] = refuse[0] = symbol[0] = 0;
}
void fake_refuse(const char *call, int code) { snprintf(refuse, sizeof refuse, "%s", call), refused = code; }
void fake_symbol(const char *name) { snprintf(symbol, sizeof symbol, "%s", name); }
void fake_parameters(int count_, const int *sizes_) { count = count_, memcpy(sizes, sizes_, sizeof(int) * (size_t)count_); }

int cuInit(unsigned flags) { return said("cuInit", " %u", flags); }
int cuDeviceGetCount(int *found) { return *found = gpus, SUCCESS; }
int cuDeviceGet(int *device, int number) { return *device = 100 + number, said("cuDeviceGet", " %d", number); }
int cuDeviceGetAttribute(int *found, int which, int device) {
    *found = which == 75 ? capability / 10 : which == 76 ? capability % 10 : -1;
    return said("cuDeviceGetAttribute", " %d of %d", which, device);
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(intptr_t)(1000 + device);
    return said("cuDevicePrimaryCtxRetain", " %d", device);
}
int cuCtxPushCurrent_v2(void *context) {
    depth += context != 0;
    return context ? SUCCESS : INVALID_CONTEXT;
}
int cuCtxPopCurrent_v2(void **context) {
    *context = 0;
    return depth-- > 0 ? SUCCESS : INVALID_CONTEXT;
}
int cuModuleLoadData(void **module, const char *code) {
    if (depth != 1) return INVALID_CONTEXT;
    if (memcmp(code, "\177ELF", 4)) return INVALID_IMAGE;
    *module = (void *)(intptr_t)0x700;
    return said("cuModuleLoadData", "");
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    if (depth != 1) return INVALID_CONTEXT;
    if (symbol[0] && strcmp(symbol, name)) return NOT_FOUND;
    *function = (void *)(intptr_t)0x800;
    return said("cuModuleGetFunction", " %s of %d", name, (int)(intptr_t)module);
}
int cuFuncSetAttribute(void *function, int which, int value) {
    if (depth != 1 || function != (void *)(intptr_t)0x800) return INVALID_CONTEXT;
    if (which == 8) allowed = value;
    return said("cuFuncSetAttribute", " %d = %d", which, value);
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    if (depth != 1 || function != (void *)(intptr_t)0x800) return INVALID_CONTEXT;
    if (!(gx && gy && gz) || (int)shared > allowed || extra) return INVALID_VALUE;
    char bytes[2048];
    size_t at = 0;
    bytes[0] = 0;
    for (int i = 0; i < count; i++) {
        for (int j = 0; j < sizes[i]; j++)
            at += (size_t)snprintf(bytes + at, sizeof bytes - at, "%02x", ((unsigned char *)parameters[i])[j]);
        at += (size_t)snprintf(bytes + at, sizeof bytes - at, i + 1 < count ? "," : "");
    }
    return said("cuLaunchKernel", " %u,%u,%u %u,%u,%u %u %ld %s", gx, gy, gz, bx, by, bz, shared, (long)(intptr_t)stream,
                bytes);
}
int cuGetErrorName(int code, const char **name) {
    *name = code == INVALID_VALUE     ? "CUDA_ERROR_INVALID_VALUE"
            : code == INVALID_IMAGE   ? "CUDA_ERROR_INVALID_IMAGE"
            : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
            : code == 209             ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
            : code == NOT_FOUND       ? "CUDA_ERROR_NOT_FOUND"
                                      : 0;
    return *name ? SUCCESS : INVALID_VALUE;
}
