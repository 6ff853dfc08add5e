/* cuBLAS and cuBLASLt: every matrix product goes well and computes nothing. What is not here is the real library's, whose
   first call would look for a card.

The arguments of a function that ignores them all are left out: a C caller does not mind. */
#include "null_card.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0           /* CUBLAS_STATUS_SUCCESS */
#define EXECUTION_FAILED 13 /* CUBLAS_STATUS_EXECUTION_FAILED */

/* As cublasLt.h has it; its own header asks for more of CUDA than a C compiler takes. */
struct heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

/* A product is counted as a launch and fails as one. */
#define PRODUCT(name) \
    int name(void) { return null_card_launch() ? EXECUTION_FAILED : SUCCESS; }
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasDotEx)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasLtMatmul)

/* A setting changes nothing. */
#define SETTING(name) \
    int name(void) { return SUCCESS; }
SETTING(cublasDestroy_v2)
SETTING(cublasSetStream_v2)
SETTING(cublasSetWorkspace_v2)
SETTING(cublasSetMathMode)
SETTING(cublasSetPointerMode_v2)
SETTING(cublasSetSmCountTarget)
SETTING(cublasLtMatmulDescSetAttribute)
SETTING(cublasLtMatmulPreferenceSetAttribute)
SETTING(cublasLtMatrixLayoutSetAttribute)
SETTING(cublasLtMatmulAlgoCheck)

/* A handle of the library. */
int cublasCreate_v2(void **handle) {
    *handle = null_card_handle();
    return SUCCESS;
}

/* Whether sums are rounded in some other way: not. */
int cublasGetMathMode(void *handle, int *mode) {
    *mode = 0;
    return SUCCESS;
}

/* Whether scalars lie on the host: they do. */
int cublasGetPointerMode_v2(void *handle, int *mode) {
    *mode = 0;
    return SUCCESS;
}

/* The version of cuBLASLt. */
size_t cublasLtGetVersion(void) { return 130000; }

/* What cuBLASLt keeps of a product: nobody reads it. */
#define DESCRIPTOR(name)                    \
    int name##Create(void **descriptor) {   \
        *descriptor = calloc(1, 256);       \
        return SUCCESS;                     \
    }                                       \
    int name##Destroy(void *descriptor) {   \
        free(descriptor);                   \
        return SUCCESS;                     \
    }
DESCRIPTOR(cublasLtMatmulDesc)
DESCRIPTOR(cublasLtMatmulPreference)
DESCRIPTOR(cublasLtMatrixLayout)

/* The ways to compute a product: one, without a workspace. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, struct heuristic found[], int *number) {
    memset(found, 0, sizeof *found);
    *number = 1;
    return SUCCESS;
}
