"""The parts of the deploy helper: what talks to RunPod, what builds the image, what decides whether it serves.

The story they serve is told in `deploy_qwen.py`, which nothing here imports. Nothing here imports torch: this runs on
the operator's machine.
"""
