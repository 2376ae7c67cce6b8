"""Turn bundles into TensorRT engines on the box that runs them: no torch, no onnx."""
