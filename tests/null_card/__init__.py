"""A card without arithmetic, on which the real torch runs the real worker at full size where there is no GPU.

`native/` is the card: CUDA's runtime, driver, cuBLAS and NVML as one library that is preloaded. `card` builds it and
starts processes on it; in such a process `child` answers, `arithmetic` tells torch what no kernel computes, and
`served` drives the worker. `sparse` writes the checkpoints. `python -m tests.null_card` prints the table of cards.
"""
