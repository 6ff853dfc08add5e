"""Which of torch's attention kernels is asked first: cuDNN's on cards where it is the fastest.

`scaled_dot_product_attention` takes the first kernel of an order that can do the call; on Hopper and data-centre
Blackwell torch's own FlashAttention 2 comes before cuDNN's, which uses those cards' asynchronous tensor cores, as does
FlashAttention 3. The order is changed, and nothing excluded: a mask or a shape that cuDNN does not take goes to the
next. diffusers' own switch (`set_attention_backend("_native_cudnn")`) allows cuDNN alone, and fails there; its other
backends need packages (flash-attn, kernels, sageattention) that the image does not have.

Equal up to the order of sums. Imports torch inside functions.
"""

from contextlib import AbstractContextManager


def cudnn_first() -> AbstractContextManager[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    )
    return sdpa_kernel(list(order), set_priority=True)
