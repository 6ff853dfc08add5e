#!/bin/sh
# A step of the Dockerfile: step plan MODEL..., step fetch LAYER, step link.
cd "$(dirname "$0")" && exec venv/bin/python -m qwen_bake "$@"
