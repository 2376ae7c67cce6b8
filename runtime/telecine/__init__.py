"""Run exported video diffusion models with NumPy and ONNX Runtime: no PyTorch."""
