"""Noise schedules and the steps along them, in NumPy: one file a scheduler."""
