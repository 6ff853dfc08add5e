/* The card's state: its fields, by name and from the environment, and what every call of the runtime answers. */
#include "null_card.h"

#include <cuda_runtime_api.h>
#include <ctype.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIELD(name, start, what) .name = start,
struct null_card null_card = {NULL_CARD_FIELDS(FIELD)};
#undef FIELD

atomic_int null_card_context_is_up;

#define FIELD(name, start, what) {#name, &null_card.name},
static const struct {
    const char *name;
    atomic_llong *value;
} fields[] = {NULL_CARD_FIELDS(FIELD)};
#undef FIELD

static const int field_count = sizeof fields / sizeof *fields;

double null_card_get(const char *name) {
    for (int i = 0; i < field_count; i++)
        if (!strcmp(fields[i].name, name)) return (double)*fields[i].value;
    return NAN;
}

int null_card_set(const char *name, double value) {
    for (int i = 0; i < field_count; i++)
        if (!strcmp(fields[i].name, name)) {
            *fields[i].value = (long long)value;
            return 0;
        }
    return -1;
}

const char *null_card_name(void) {
    const char *name = getenv("NULL_CARD_NAME");
    return name ? name : "NVIDIA Null";
}

/* Takes every field that the environment names; runs when the library is loaded. */
__attribute__((constructor)) static void read_environment(void) {
    for (int i = 0; i < field_count; i++) {
        char variable[64];
        int end = snprintf(variable, sizeof variable, "NULL_CARD_%s", fields[i].name);
        for (int at = 0; at < end; at++) variable[at] = (char)toupper(variable[at]);
        const char *text = getenv(variable);
        if (text) *fields[i].value = (long long)strtod(text, NULL);
    }
}

static _Thread_local int last_error;

int null_card_answer(int error) {
    if (null_card.driver / 1000 < CUDART_VERSION / 1000)
        error = cudaErrorInsufficientDriver;
    else if (null_card.spoiled)
        error = (int)null_card.spoiled;
    if (error) last_error = error;
    return error;
}

/* The thread's last error, which is forgotten by it unless it has spoiled the context. */
cudaError_t cudaGetLastError(void) {
    int error = null_card.spoiled ? (int)null_card.spoiled : last_error;
    last_error = 0;
    return error;
}

/* The thread's last error. */
cudaError_t cudaPeekAtLastError(void) { return null_card.spoiled ? (int)null_card.spoiled : last_error; }

/* Whether an error of a kernel leaves a context in which nothing works any more, as CUDA's documentation says of it. */
static int spoils(int error) {
    switch (error) {
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchFailure:
        case cudaErrorECCUncorrectable: return 1;
        default: return 0;
    }
}

int null_card_launches_fail(void) {
    return null_card.launch_error && null_card.launches >= null_card.launch_error_after;
}

int null_card_launch(void) {
    int fails = null_card_launches_fail();
    null_card.launches++;
    if (fails && spoils((int)null_card.launch_error)) null_card.spoiled = (long long)null_card.launch_error;
    return fails ? (int)null_card.launch_error : (int)null_card.spoiled;
}

void *null_card_handle(void) {
    static atomic_uintptr_t last_handle = 0x1000;
    return (void *)(last_handle += 16);
}
