"""Two processes that draw one picture: what they tell each other, and the tensors that pass between them.

Rank 0 is the worker itself, on the first card. Rank 1 is its child, on the second, and computes what it is told to.
"""
