"""LTX-Video 0.9.0 to 0.9.8, and its latent upsampler."""
