"""How every stage is trained: the loop, the quick forward pass, the extra targets."""
