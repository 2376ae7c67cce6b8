"""TensorRT plans: chosen, checked before they are opened, and run. Works with tensorrt, tensorrt_lean, tensorrt_rtx."""
