/* NVML: what the worker (through pynvml) and torch ask of the card without opening a context on it. */
#include "null_card.h"

#include <stdio.h>
#include <string.h>

#define SUCCESS 0       /* NVML_SUCCESS */
#define NOT_SUPPORTED 3 /* NVML_ERROR_NOT_SUPPORTED */

int null_card_attribute(int attribute);

/* As nvml.h has it, which no wheel brings. */
struct memory {
    unsigned long long total, free, used;
};

/* Starts NVML. */
int nvmlInit_v2(void) { return SUCCESS; }

/* The same, as torch's Python calls it. */
int nvmlInit(void) { return SUCCESS; }

/* The same, with flags. */
int nvmlInitWithFlags(unsigned int flags) { return SUCCESS; }

/* Ends NVML. */
int nvmlShutdown(void) { return SUCCESS; }

/* An error in words. */
const char *nvmlErrorString(int error) { return error ? "Not Supported" : "Success"; }

/* How many cards there are. */
int nvmlDeviceGetCount_v2(unsigned int *cards) {
    *cards = 1;
    return SUCCESS;
}

/* The same, as torch's Python calls it. */
int nvmlDeviceGetCount(unsigned int *cards) { return nvmlDeviceGetCount_v2(cards); }

static int the_card(void **card) {
    *card = &null_card;
    return SUCCESS;
}

/* The card by its number. */
int nvmlDeviceGetHandleByIndex_v2(unsigned int number, void **card) { return the_card(card); }

/* The card by its address on the bus. */
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **card) { return the_card(card); }

/* The card by its own identity. */
int nvmlDeviceGetHandleByUUID(const char *identity, void **card) { return the_card(card); }

/* The card's identity. */
int nvmlDeviceGetUUID(void *card, char *identity, unsigned int size) {
    snprintf(identity, size, "GPU-00000000-0000-0000-0000-000000000000");
    return SUCCESS;
}

/* The card's memory. It may count as free what CUDA does not have. */
int nvmlDeviceGetMemoryInfo(void *card, struct memory *found) {
    found->total = (unsigned long long)(null_card.memory + null_card.unseen);
    found->free = (unsigned long long)(null_card_free() + null_card.unseen);
    found->used = found->total - found->free;
    return SUCCESS;
}

/* The card's name. */
int nvmlDeviceGetName(void *card, char *name, unsigned int size) {
    snprintf(name, size, "%s", null_card_name());
    return SUCCESS;
}

/* The card's compute capability. */
int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor) {
    *major = (int)null_card.capability / 10;
    *minor = (int)null_card.capability % 10;
    return SUCCESS;
}

/* The driver's own version. */
int nvmlSystemGetDriverVersion(char *version, unsigned int size) {
    snprintf(version, size, "580.0 (null card)");
    return SUCCESS;
}

/* The CUDA that the driver runs. */
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = (int)null_card.driver;
    return SUCCESS;
}

/* The processes on the card: none that it knows of. torch asks for its words about memory that is short. */
int nvmlDeviceGetComputeRunningProcesses(void *card, unsigned int *number, void *found) {
    *number = 0;
    return SUCCESS;
}

/* Parts of a card, and links between cards, of which there is one whole: not told. */
#define UNTOLD(name) \
    int name(void) { return NOT_SUPPORTED; }
UNTOLD(nvmlDeviceGetMigMode)
UNTOLD(nvmlDeviceGetNvLinkRemoteDeviceType)
UNTOLD(nvmlDeviceGetNvLinkRemotePciInfo_v2)
UNTOLD(nvmlDeviceGetGpuFabricInfo)
UNTOLD(nvmlDeviceGetGpuFabricInfoV)
