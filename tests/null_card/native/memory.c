/* Memory: of the card and pinned, as address space that nobody fills, counted and limited; and the copies between.

The card's comes in two ways, as torch asks for it: whole (cudaMalloc), or as a range of addresses that is reserved first
and given memory piece by piece (the driver's cuMem..., for expandable segments). */
#include "null_card.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((size_t)2 << 20) /* the card's: memory is handed out in whole ones */
#define GUARD ((size_t)4096)   /* address space between two regions, so that none goes on where another ends */

enum kind { OF_CARD, PINNED, REGISTERED, RESERVED };

/* A range of addresses. RESERVED: of the card too, but the memory behind it is counted by its own handles. */
struct region {
    char *start, *mapped;
    size_t size, mapped_size;
    enum kind kind;
};

static struct region *regions; /* by address, the lowest first */
static int region_count, region_room;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* How many regions begin at or below the address. */
static int regions_up_to(const void *address) {
    int low = 0, high = region_count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (regions[middle].start <= (const char *)address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The region that the address lies in, or NULL. */
static struct region *region_of(const void *address) {
    int before = regions_up_to(address);
    if (!before) return NULL;
    struct region *found = &regions[before - 1];
    return (const char *)address < found->start + (found->size ? found->size : 1) ? found : NULL;
}

/* Takes a region into the list. */
static void enter(struct region region) {
    if (region_count == region_room) {
        region_room = region_room ? 2 * region_room : 1024;
        regions = realloc(regions, region_room * sizeof *regions);
    }
    int place = regions_up_to(region.start);
    memmove(regions + place + 1, regions + place, (region_count - place) * sizeof *regions);
    regions[place] = region;
    region_count++;
}

/* A new region of so much address space, none of it backed by memory yet; NULL where there is none. */
static char *map(size_t size, enum kind kind) {
    size_t whole = size + PAGE + GUARD;
    char *mapped = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    madvise(mapped, whole, MADV_NOHUGEPAGE); /* a small copy must not bring in 2 MB of the host's memory */
    char *start = (char *)(((uintptr_t)mapped + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    enter((struct region){start, mapped, size, whole, kind});
    return start;
}

/* Ends the region that begins at the address; its size, 0 where none does. */
static size_t unmap(void *start) {
    struct region *found = region_of(start);
    if (!found || found->start != start) return 0;
    struct region gone = *found;
    int place = (int)(found - regions);
    region_count--;
    memmove(regions + place, regions + place + 1, (region_count - place) * sizeof *regions);
    if (gone.mapped) munmap(gone.mapped, gone.mapped_size);
    return gone.size;
}

/* Counts so many bytes more, and the most so far. */
static void count(atomic_llong *now, atomic_llong *peak, long long bytes) {
    *now += bytes;
    if (*now > *peak) *peak = (long long)*now;
}

long long null_card_free(void) {
    long long left = null_card.memory - null_card.used - null_card.others;
    if (null_card_context_is_up) left -= null_card.context;
    return left < 0 ? 0 : left;
}

/* CUDA's free and whole memory of the card. Opens the context, as every call that touches memory does. */
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    null_card_context_is_up = 1;
    *free = (size_t)null_card_free();
    *total = (size_t)null_card.memory;
    return null_card_answer(cudaSuccess);
}

/* Memory of the card, in whole pages of it. */
cudaError_t cudaMalloc(void **address, size_t size) {
    int error = null_card_answer(cudaSuccess);
    size_t whole = (size + PAGE - 1) / PAGE * PAGE;
    *address = NULL;
    null_card_context_is_up = 1;
    pthread_mutex_lock(&lock);
    if (!error && (long long)whole <= null_card_free()) *address = map(whole, OF_CARD);
    if (*address) count(&null_card.used, &null_card.used_peak, (long long)whole);
    pthread_mutex_unlock(&lock);
    return null_card_answer(error ? error : *address ? cudaSuccess : cudaErrorMemoryAllocation);
}

/* Gives memory of the card back. */
cudaError_t cudaFree(void *address) {
    pthread_mutex_lock(&lock);
    if (address) null_card.used -= (long long)unmap(address);
    pthread_mutex_unlock(&lock);
    return null_card_answer(cudaSuccess);
}

/* Pinned host memory, up to the limit of it. Past that the error is not one that spoils: the context goes on. */
cudaError_t cudaHostAlloc(void **address, size_t size, unsigned int flags) {
    int error = null_card_answer(cudaSuccess);
    *address = NULL;
    pthread_mutex_lock(&lock);
    if (!error && null_card.pinned + (long long)size <= null_card.pinned_limit) *address = map(size, PINNED);
    if (*address) count(&null_card.pinned, &null_card.pinned_peak, (long long)size);
    pthread_mutex_unlock(&lock);
    return null_card_answer(error ? error : *address ? cudaSuccess : cudaErrorMemoryAllocation);
}

/* Gives pinned memory back. */
cudaError_t cudaFreeHost(void *address) {
    pthread_mutex_lock(&lock);
    if (address) null_card.pinned -= (long long)unmap(address);
    pthread_mutex_unlock(&lock);
    return null_card_answer(cudaSuccess);
}

/* Pins host memory of somebody else's. */
cudaError_t cudaHostRegister(void *address, size_t size, unsigned int flags) {
    int error = null_card_answer(cudaSuccess);
    pthread_mutex_lock(&lock);
    if (!error && null_card.pinned + (long long)size > null_card.pinned_limit) error = cudaErrorMemoryAllocation;
    if (!error) {
        enter((struct region){address, NULL, size, 0, REGISTERED});
        count(&null_card.pinned, &null_card.pinned_peak, (long long)size);
    }
    pthread_mutex_unlock(&lock);
    return null_card_answer(error);
}

/* Undoes cudaHostRegister. */
cudaError_t cudaHostUnregister(void *address) {
    pthread_mutex_lock(&lock);
    null_card.pinned -= (long long)unmap(address);
    pthread_mutex_unlock(&lock);
    return null_card_answer(cudaSuccess);
}

/* Whose memory an address is of: the card's, pinned, or none that CUDA knows of. */
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
    memset(found, 0, sizeof *found);
    pthread_mutex_lock(&lock);
    struct region *region = region_of(address);
    int of_card = region && (region->kind == OF_CARD || region->kind == RESERVED);
    found->type = of_card ? cudaMemoryTypeDevice : region ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    found->device = region ? 0 : cudaInvalidDeviceId;
    found->devicePointer = region ? (void *)address : NULL;
    found->hostPointer = region && !of_card ? (void *)address : NULL;
    pthread_mutex_unlock(&lock);
    return null_card_answer(cudaSuccess);
}

/* Copies, if it is not too much. */
static cudaError_t copy(void *to, const void *from, size_t size) {
    int error = null_card_answer(cudaSuccess);
    if (!error && size <= (size_t)null_card.copied) memmove(to, from, size);
    return error;
}

/* A copy that the host waits for. */
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    null_card.waits++;
    return copy(to, from, size);
}

/* A copy on a stream: over at once. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, size);
}

/* A copy between two cards, which are one. */
cudaError_t cudaMemcpyPeerAsync(void *to, int card, const void *from, int other, size_t size, cudaStream_t stream) {
    return copy(to, from, size);
}

/* A copy of rows. */
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              enum cudaMemcpyKind kind, cudaStream_t stream) {
    int error = null_card_answer(cudaSuccess);
    if (error || width * height > (size_t)null_card.copied) return error;
    for (size_t row = 0; row < height; row++)
        memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return cudaSuccess;
}

/* A copy into a kernel's own variable, which nobody reads. */
cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t size, size_t offset,
                               enum cudaMemcpyKind kind) {
    return null_card_answer(cudaSuccess);
}

/* Fills memory, if it is not too much. */
cudaError_t cudaMemsetAsync(void *address, int value, size_t size, cudaStream_t stream) {
    int error = null_card_answer(cudaSuccess);
    if (!error && size <= (size_t)null_card.copied) memset(address, value, size);
    return error;
}

/* The same, waited for. */
cudaError_t cudaMemset(void *address, int value, size_t size) {
    null_card.waits++;
    return cudaMemsetAsync(address, value, size, NULL);
}

/* Expandable segments: addresses are reserved, memory is made apart, mapped to them, unmapped and given back. A handle
   of memory is its size, with a mark that no address has. */
#define MARK ((CUmemGenericAllocationHandle)0x7 << 60)

/* The size that memory for expandable segments comes in multiples of. */
CUresult cuMemGetAllocationGranularity(size_t *size, const CUmemAllocationProp *properties,
                                       CUmemAllocationGranularity_flags option) {
    *size = PAGE;
    return CUDA_SUCCESS;
}

/* Addresses without memory. */
CUresult cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t alignment, CUdeviceptr wanted,
                             unsigned long long flags) {
    pthread_mutex_lock(&lock);
    *address = (CUdeviceptr)map(size, RESERVED);
    pthread_mutex_unlock(&lock);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Gives addresses back. */
CUresult cuMemAddressFree(CUdeviceptr address, size_t size) {
    pthread_mutex_lock(&lock);
    unmap((void *)address);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

/* Memory of the card without addresses. */
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *properties,
                     unsigned long long flags) {
    if (null_card.spoiled) return (CUresult)null_card.spoiled;
    null_card_context_is_up = 1;
    pthread_mutex_lock(&lock);
    int fits = (long long)size <= null_card_free();
    if (fits) count(&null_card.used, &null_card.used_peak, (long long)size);
    pthread_mutex_unlock(&lock);
    *handle = MARK | size;
    return fits ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Gives memory back. */
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    null_card.used -= (long long)(handle & ~MARK);
    return CUDA_SUCCESS;
}

/* Puts memory behind addresses: they are there already. */
CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    return CUDA_SUCCESS;
}

/* Takes memory away from behind addresses. */
CUresult cuMemUnmap(CUdeviceptr address, size_t size) { return CUDA_SUCCESS; }

/* Who may use what is behind addresses: everybody may. */
CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc *access, size_t number) {
    return CUDA_SUCCESS;
}
