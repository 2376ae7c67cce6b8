"""LTX-2 on the host: a video and its sound, denoised together, in NumPy.

Axes: B videos, C channels, F H W latent frames, height, width, T = F·H·W video tokens, S latents of the sound along
time, M bands of the mel scale, L text length, D features.
"""
