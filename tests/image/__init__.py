"""The Dockerfile really built and its image really run, without Docker: `make image-test`."""
