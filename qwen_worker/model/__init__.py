"""Exact and stated changes to a model's modules: modulation table, VAE, residency, quantization."""
