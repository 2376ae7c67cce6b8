"""Graphs on ONNX Runtime, bound through its IO binding: on the CPU, or in place on a GPU."""

from telecine.backends.onnxruntime.options import OnnxRuntimeOptions as OnnxRuntimeOptions
from telecine.backends.onnxruntime.session import OnnxRuntimeSession as OnnxRuntimeSession
