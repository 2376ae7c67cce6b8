"""LTX-Video and its kin: pure NumPy schedulers."""
