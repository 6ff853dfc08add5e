"""What keeps a worker among the platform's: its job loop, progress, streams, health and fitness."""
