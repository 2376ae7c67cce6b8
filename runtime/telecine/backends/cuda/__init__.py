"""CUDA through cuda-bindings alone: devices, streams, events, and memory that context managers own."""
