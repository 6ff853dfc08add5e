/* The card itself, as the runtime tells of it: one, with an H100's figures but for its memory and its capability. */
#define _GNU_SOURCE /* for dladdr */
#include "null_card.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#undef cudaGetDeviceProperties /* a macro in CUDA 12, for the name that follows here */

/* The attributes that libraries ask for, by the numbers that runtime and driver share; 0 for any other. */
int null_card_attribute(int attribute) {
    int capability = (int)null_card.capability;
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: return capability / 10;
        case cudaDevAttrComputeCapabilityMinor: return capability % 10;
        case cudaDevAttrMaxThreadsPerBlock: return 1024;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
        case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            return capability == 80 ? 166912 : capability / 10 == 9 || capability / 10 == 10 ? 232448 : 101376;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 233472;
        case cudaDevAttrMaxRegistersPerBlock: return 65536;
        case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
        case cudaDevAttrMaxGridDimX: return 2147483647;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: return 65535;
        case cudaDevAttrMultiProcessorCount: return 132;
        case cudaDevAttrWarpSize: return 32;
        case cudaDevAttrL2CacheSize: return 50 << 20;
        case cudaDevAttrClockRate: return 1500000;
        case cudaDevAttrMemoryClockRate: return 2000000;
        case cudaDevAttrGlobalMemoryBusWidth: return 5120;
        default: return 0;
    }
}

/* How many cards there are; with a driver that is too old an error, and none. */
cudaError_t cudaGetDeviceCount(int *cards) {
    int error = null_card_answer(cudaSuccess);
    *cards = !error;
    return error;
}

/* The card in use. */
cudaError_t cudaGetDevice(int *card) {
    *card = 0;
    return null_card_answer(cudaSuccess);
}

/* Chooses a card, and opens its context. */
cudaError_t cudaSetDevice(int card) {
    null_card_context_is_up = 1;
    return null_card_answer(card ? cudaErrorInvalidDevice : cudaSuccess);
}

/* An attribute of the card. */
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int card) {
    *value = null_card_attribute(attribute);
    return null_card_answer(cudaSuccess);
}

/* Everything about the card. */
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int card) {
    memset(found, 0, sizeof *found);
    snprintf(found->name, sizeof found->name, "%s", null_card_name());
    found->totalGlobalMem = (size_t)null_card.memory;
    found->major = null_card_attribute(cudaDevAttrComputeCapabilityMajor);
    found->minor = null_card_attribute(cudaDevAttrComputeCapabilityMinor);
    found->multiProcessorCount = null_card_attribute(cudaDevAttrMultiProcessorCount);
    found->warpSize = null_card_attribute(cudaDevAttrWarpSize);
    found->maxThreadsPerBlock = null_card_attribute(cudaDevAttrMaxThreadsPerBlock);
    found->maxThreadsPerMultiProcessor = null_card_attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    found->maxBlocksPerMultiProcessor = null_card_attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
    found->sharedMemPerBlock = (size_t)null_card_attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    found->sharedMemPerBlockOptin = (size_t)null_card_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    found->sharedMemPerMultiprocessor = (size_t)null_card_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    found->regsPerBlock = found->regsPerMultiprocessor = null_card_attribute(cudaDevAttrMaxRegistersPerBlock);
    found->maxGridSize[0] = null_card_attribute(cudaDevAttrMaxGridDimX);
    found->maxGridSize[1] = found->maxGridSize[2] = null_card_attribute(cudaDevAttrMaxGridDimY);
    found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->l2CacheSize = null_card_attribute(cudaDevAttrL2CacheSize);
    found->memoryBusWidth = null_card_attribute(cudaDevAttrGlobalMemoryBusWidth);
    found->textureAlignment = 512;
    found->unifiedAddressing = found->concurrentKernels = 1;
    found->asyncEngineCount = 3;
    return null_card_answer(cudaSuccess);
}

/* The card's address on the bus, by which NVML is asked for it. */
cudaError_t cudaDeviceGetPCIBusId(char *address, int size, int card) {
    snprintf(address, (size_t)size, "0000:00:00.0");
    return null_card_answer(cudaSuccess);
}

/* Whether two cards reach each other's memory. */
cudaError_t cudaDeviceCanAccessPeer(int *can, int card, int other) {
    *can = 0;
    return null_card_answer(cudaSuccess);
}

/* The CUDA that the driver runs; answered by a driver that is too old as well. */
cudaError_t cudaDriverGetVersion(int *version) {
    *version = (int)null_card.driver;
    return cudaSuccess;
}

/* The CUDA that this library was built by the headers of. */
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* In place of a function of the driver that is not here. */
static CUresult not_supported(void) { return CUDA_ERROR_NOT_SUPPORTED; }

/* A function of the driver, by its name. Those that are not here are found and fail when they are called: torch looks a
   number of them up that it never calls. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned int version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    Dl_info here;
    dladdr((void *)&null_card, &here);
    void *library = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = library ? dlsym(library, name) : NULL;
    if (library) dlclose(library);
    if (!*function) *function = (void *)not_supported;
    if (result) *result = cudaDriverEntryPointSuccess;
    return null_card_answer(cudaSuccess);
}
