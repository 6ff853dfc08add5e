"""A RunPod endpoint at home: the platform's API on this machine, in front of the real worker process."""
