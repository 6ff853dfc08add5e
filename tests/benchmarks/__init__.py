"""What the benchmarks are made of, tried on a CPU with the tiny checkpoint."""
