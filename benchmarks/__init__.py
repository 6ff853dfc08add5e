"""Commands that measure the worker beside the alternative, in one run: `python -m benchmarks --help`."""
