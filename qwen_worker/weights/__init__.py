"""Bytes on the disk to tensors in their place, and back."""
