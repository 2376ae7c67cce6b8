"""A bundle in NVIDIA's Triton Inference Server: the model repository, and what runs in its Python backend."""
