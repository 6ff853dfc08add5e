/* In place of nvcc's header of this name, which CUDA's runtime wheel leaves out: a C compiler needs nothing of it. */
