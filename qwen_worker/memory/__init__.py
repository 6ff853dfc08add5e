"""What fits where: the machine, the arithmetic of models, the plan, and what is asked of CUDA."""
