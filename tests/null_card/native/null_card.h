/* A CUDA card that has memory and no arithmetic, as one library: CUDA's runtime and driver, cuBLAS and NVML.

It is preloaded, so that what torch calls of libcudart and libcublas is found here first, and lies under the names of
libcuda and libnvidia-ml, so that whoever opens those by name gets this very library with the same state.

What is true: memory is address space, of the card and pinned; every byte is counted, against the card's size, what other
processes hold of it, and a limit of pinned memory. Pointers know whether they are the card's. Copies and fills of up to
`copied` bytes are done. Streams, events and waits can be made, waited for and counted.

What is not: kernels and matrix products do nothing and take no time; larger copies leave their target as it was; all work
is over as soon as it is asked for. Memory reads as zeros, or as what it was last used for. There is one card. A
function of CUDA that is not here is the real library's, which finds no card below it and says so. cuDNN has no card
either: what torch asks of it is answered in Python, by `void_kernels.py`.

What can be made to fail: see the fields that begin with `launch_` or `driver`, and `pinned_limit`, `others`, `unseen`. */
#pragma once
#include <stdatomic.h>
#include <stddef.h>

/* Name, value at the start, what it is. Sizes are in bytes. A value can be set by the environment (NULL_CARD_MEMORY for
   `memory`) and while the process runs, by null_card_set. */
#define NULL_CARD_FIELDS(FIELD)                                                                                       \
    FIELD(memory, 80000000000, "the card's, as CUDA tells it")                                                        \
    FIELD(context, 629145600, "what the CUDA context takes of it at its first use")                                   \
    FIELD(others, 0, "what other processes hold of it")                                                               \
    FIELD(unseen, 0, "what NVML calls free beside, and CUDA does not have")                                           \
    FIELD(pinned_limit, 1000000000000000, "the most that can be pinned at once")                                      \
    FIELD(copied, 1048576, "the largest copy or fill that is done")                                                   \
    FIELD(capability, 90, "ten times the compute capability: 90 is 9.0")                                              \
    FIELD(driver, 13000, "the newest CUDA that the driver runs: 12040 is 12.4")                                       \
    FIELD(launch_error, 0, "the error of launches, a cudaError_t; 0 for none")                                        \
    FIELD(launch_error_after, 0, "so many launches of the process go well before")                                    \
    FIELD(used, 0, "counted: the card's memory that is allocated here, without the context")                          \
    FIELD(used_peak, 0, "counted: the most of it so far")                                                             \
    FIELD(pinned, 0, "counted: pinned memory that is allocated here")                                                 \
    FIELD(pinned_peak, 0, "counted: the most of it so far")                                                           \
    FIELD(launches, 0, "counted: kernels and matrix products")                                                        \
    FIELD(waits, 0, "counted: calls that hold the host up until the card is done")                                    \
    FIELD(streams, 0, "counted: streams that are there")                                                              \
    FIELD(events, 0, "counted: events that are there")                                                                \
    FIELD(spoiled, 0, "the error that has spoiled the context, and every later call gives back; 0 for none")

struct null_card {
#define FIELD(name, start, what) atomic_llong name;
    NULL_CARD_FIELDS(FIELD)
#undef FIELD
};

extern struct null_card null_card;

/* Whether the context is up: from then on it takes its share of the card. */
extern atomic_int null_card_context_is_up;

/* The value of the field of this name; NaN where there is none. */
double null_card_get(const char *name);

/* Sets the field of this name; 0, or -1 where there is none. */
int null_card_set(const char *name, double value);

/* The card's name, from NULL_CARD_NAME. */
const char *null_card_name(void);

/* The card's memory that is free: beside what is allocated here, what others hold, and the context. */
long long null_card_free(void);

/* What a call of the runtime gives back: `error`, or what has spoiled the context. Remembers it as the thread's last. */
int null_card_answer(int error);

/* The error of a launch, which is counted; 0 where it goes well. */
int null_card_launch(void);

/* Whether launches fail at present. */
int null_card_launches_fail(void);

/* A handle that was never given out before. */
void *null_card_handle(void);
