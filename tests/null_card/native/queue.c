/* Streams, events and launches: whatever is queued is over at once. */
#include "null_card.h"

#include <cuda_runtime_api.h>
#include <string.h>

/* Streams. */

static cudaError_t make_stream(cudaStream_t *stream) {
    int error = null_card_answer(cudaSuccess);
    *stream = null_card_handle();
    if (!error) null_card.streams++;
    return error;
}

/* A stream. */
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return make_stream(stream); }

/* The same, with flags. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) { return make_stream(stream); }

/* The same, with a priority that changes nothing. */
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int priority) {
    return make_stream(stream);
}

/* Ends a stream. */
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    null_card.streams--;
    return null_card_answer(cudaSuccess);
}

/* The priority that all streams have. */
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = 0;
    return null_card_answer(cudaSuccess);
}

/* The priorities that can be asked for. */
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return null_card_answer(cudaSuccess);
}

/* Whether the stream is done: always. */
cudaError_t cudaStreamQuery(cudaStream_t stream) { return null_card_answer(cudaSuccess); }

/* Waits for a stream. */
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    null_card.waits++;
    return null_card_answer(cudaSuccess);
}

/* Has a stream wait for an event, which is over. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags) {
    return null_card_answer(cudaSuccess);
}

/* Waits for the card. */
cudaError_t cudaDeviceSynchronize(void) {
    null_card.waits++;
    return null_card_answer(cudaSuccess);
}

/* Whether a stream is being recorded as a graph: never. */
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return null_card_answer(cudaSuccess);
}

/* The same, with more that would be told of the graph. */
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *number) {
    *status = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    return null_card_answer(cudaSuccess);
}

/* What a graph's recording forbids meanwhile. */
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    return null_card_answer(cudaSuccess);
}

/* Events. */

/* An event. */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    int error = null_card_answer(cudaSuccess);
    *event = null_card_handle();
    if (!error) null_card.events++;
    return error;
}

/* The same, without flags. */
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

/* Ends an event. */
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    null_card.events--;
    return null_card_answer(cudaSuccess);
}

/* Marks a place in a stream: it is reached. */
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return null_card_answer(cudaSuccess); }

/* The same, with flags. */
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned int flags) {
    return null_card_answer(cudaSuccess);
}

/* Whether an event's place is reached: always. */
cudaError_t cudaEventQuery(cudaEvent_t event) { return null_card_answer(cudaSuccess); }

/* Waits for an event. */
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    null_card.waits++;
    return null_card_answer(cudaSuccess);
}

/* The milliseconds between two events: always one. */
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1;
    return null_card_answer(cudaSuccess);
}

/* Launches. */

/* A kernel, as code compiled for CUDA before 13 calls it. */
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    return null_card_answer(null_card_launch());
}

/* A kernel, as code compiled for CUDA 13 calls it. */
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return null_card_answer(null_card_launch());
}

/* A kernel with attributes, such as clusters. */
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *configuration, const void *function, void **arguments) {
    return null_card_answer(null_card_launch());
}

/* The kernel of a function: whatever is no null pointer will do. */
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return null_card_answer(cudaSuccess);
}

/* The newest architecture that torch brings kernels for and the card runs, as torch's own libraries look for one. */
static int architecture(void) {
    static const int built[] = {120, 100, 90, 86, 80};
    for (size_t i = 0; i < sizeof built / sizeof *built; i++)
        if (built[i] <= null_card.capability) return built[i];
    return 75;
}

/* What a kernel takes of the card. Where launches fail because the card has no code, there is none to be asked of. */
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->ptxVersion = found->binaryVersion = architecture();
    found->maxDynamicSharedSizeBytes = 232448;
    int none = null_card_launches_fail() && null_card.launch_error == cudaErrorNoKernelImageForDevice;
    return null_card_answer(none ? cudaErrorNoKernelImageForDevice : cudaSuccess);
}

/* How a kernel is to be run. */
cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
    return null_card_answer(cudaSuccess);
}

/* The same, as CUDA 13 calls it. */
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value, int card) {
    return null_card_answer(cudaSuccess);
}

/* How many blocks of a kernel a multiprocessor has room for. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int size,
                                                                   size_t shared, unsigned int flags) {
    *blocks = 2;
    return null_card_answer(cudaSuccess);
}

/* Where a kernel's own variable lies. */
cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char variable[1 << 16];
    *address = variable;
    return null_card_answer(cudaSuccess);
}
