"""CogVideoX 2b and 5b, 1.5, and their image-to-video models."""
