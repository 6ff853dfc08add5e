"""A sum by which damage to a stored tensor shows, cheap enough to be taken at every start and where the tensor lies.

Of its 64-bit words, each block weighted by its place, modulo 2^64: a flipped bit always changes it; blocks that were
zeroed or changed places do, but for chance. No protection against intent. Imports torch: import it inside functions.
"""

import torch

BLOCK = 4096  # bytes


def checksum_of(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's bytes as a tensor (), on its device, not waited for."""
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    whole = flat.numel() // BLOCK * BLOCK
    rest = flat.new_zeros(BLOCK)
    rest[: flat.numel() - whole] = flat[whole:]
    blocks = flat[:whole].view(torch.int64).view(-1, BLOCK // 8)
    sums = torch.cat([blocks.sum(dim=1), rest.view(torch.int64).sum(dim=0, keepdim=True)])
    # Odd weights: an even one would lose a word's highest bit.
    return (sums * torch.arange(1, 2 * len(sums), 2, device=sums.device)).sum()
