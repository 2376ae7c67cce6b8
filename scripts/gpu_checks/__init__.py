"""What scripts/gpu_check.py does: which jobs, each in a process of its own, and what they tell."""
