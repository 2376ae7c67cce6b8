"""Software doubles of CUDA and TensorRT: graphs run by ONNX Runtime on host memory, under the real ones' rules."""
