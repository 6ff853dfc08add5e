"""A job's pictures from a loaded pipeline."""
