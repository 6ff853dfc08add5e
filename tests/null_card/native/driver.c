/* libcuda: what Triton, bitsandbytes and torch call of the driver itself. Memory for expandable segments is in memory.c. */
#include "null_card.h"

#include <cuda.h>
#include <stdio.h>
#include <string.h>

int null_card_attribute(int attribute);

/* A launch of the driver fails as one of the runtime does: the two share their numbers. */
CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z, unsigned int block_x,
                        unsigned int block_y, unsigned int block_z, unsigned int shared, CUstream stream,
                        void **arguments, void **more) {
    return (CUresult)null_card_launch();
}

/* The same with attributes, such as clusters. */
CUresult cuLaunchKernelEx(const CUlaunchConfig *configuration, CUfunction function, void **arguments, void **more) {
    return (CUresult)null_card_launch();
}

/* The same, for kernels whose blocks wait for one another. */
CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z,
                                   unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                   unsigned int shared, CUstream stream, void **arguments) {
    return (CUresult)null_card_launch();
}

/* Starts the driver. */
CUresult cuInit(unsigned int flags) { return CUDA_SUCCESS; }

/* The CUDA that the driver runs. */
CUresult cuDriverGetVersion(int *version) {
    *version = (int)null_card.driver;
    return CUDA_SUCCESS;
}

/* How many cards there are. */
CUresult cuDeviceGetCount(int *cards) {
    *cards = 1;
    return CUDA_SUCCESS;
}

/* A card by its number. */
CUresult cuDeviceGet(CUdevice *card, int number) {
    *card = number;
    return CUDA_SUCCESS;
}

/* The card's name. */
CUresult cuDeviceGetName(char *name, int size, CUdevice card) {
    snprintf(name, (size_t)size, "%s", null_card_name());
    return CUDA_SUCCESS;
}

/* An attribute of the card. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice card) {
    *value = null_card_attribute((int)attribute);
    return CUDA_SUCCESS;
}

/* Contexts: there is one, it is everybody's. */

static CUcontext the_context(void) { return (CUcontext)&null_card; }

/* Whether the card's context is open. */
CUresult cuDevicePrimaryCtxGetState(CUdevice card, unsigned int *flags, int *open) {
    *flags = 0;
    *open = null_card_context_is_up;
    return CUDA_SUCCESS;
}

/* Opens the card's context. */
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice card) {
    null_card_context_is_up = 1;
    *context = the_context();
    return CUDA_SUCCESS;
}

/* The thread's context. */
CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = the_context();
    return CUDA_SUCCESS;
}

/* Chooses the thread's context. */
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

/* The card of the thread's context. */
CUresult cuCtxGetDevice(CUdevice *card) {
    *card = 0;
    return CUDA_SUCCESS;
}

/* A limit of the context, as of its stack. */
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 0;
    return CUDA_SUCCESS;
}

/* Sets a limit of the context. */
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

/* An attribute of an address: a kernel's argument lies where it lies. */
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    if (value && attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)value = address;
    return CUDA_SUCCESS;
}

/* Modules and their functions, which nobody runs. */

static CUresult some_module(CUmodule *module) {
    *module = null_card_handle();
    return CUDA_SUCCESS;
}

/* A module from its code. Code for another card is found out when it is loaded. */
CUresult cuModuleLoadData(CUmodule *module, const void *code) {
    if (null_card_launches_fail() && null_card.launch_error == CUDA_ERROR_NO_BINARY_FOR_GPU)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    return some_module(module);
}

/* The same with options. */
CUresult cuModuleLoadDataEx(CUmodule *module, const void *code, unsigned int number, CUjit_option *options,
                            void **values) {
    return cuModuleLoadData(module, code);
}

/* A module from a file. */
CUresult cuModuleLoad(CUmodule *module, const char *file) { return cuModuleLoadData(module, file); }

/* Ends a module. */
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

/* A function of a module. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = null_card_handle();
    return CUDA_SUCCESS;
}

/* A variable of a module: it has none. */
CUresult cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *size, CUmodule module, const char *name) {
    if (address) *address = 0;
    if (size) *size = 0;
    return CUDA_SUCCESS;
}

/* What a function takes of the card. */
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
             : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 64
                                                                  : 0;
    return CUDA_SUCCESS;
}

/* How a function is to be run. */
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }

/* How a function shares its memory with the cache. */
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache configuration) { return CUDA_SUCCESS; }

/* How many blocks of a function a multiprocessor has room for. */
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int size, size_t shared) {
    *blocks = 2;
    return CUDA_SUCCESS;
}

/* The same, of clusters. */
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *configuration) {
    *clusters = 2;
    return CUDA_SUCCESS;
}

/* A descriptor by which a kernel fetches tiles: nobody fetches any. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    memset(map, 0, sizeof *map);
    return CUDA_SUCCESS;
}

/* An error's name. */
CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR of the null card";
    return CUDA_SUCCESS;
}

/* An error in words. */
CUresult cuGetErrorString(CUresult error, const char **words) {
    *words = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error of the null card";
    return CUDA_SUCCESS;
}
