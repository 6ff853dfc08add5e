"""RunPod's side: its REST API v2, the job queue of an endpoint, the rollout of new workers.

Knows nothing of what a deployment wants.
"""
