"""A graph loaded in ONNX Runtime, which a session and its clones share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from telecine.backends.base import Buffer
from telecine.backends.onnxruntime.library import load_onnxruntime, translated
from telecine.backends.onnxruntime.options import OnnxRuntimeOptions
from telecine.backends.onnxruntime.providers import CPU
from telecine.dtypes import STORAGE
from telecine.errors import BackendError
from telecine.initializers import check_weights, read_initializers

# TensorProto's numbers of the types that NumPy lacks, by how their bits are held.
ONNX_TYPES = {STORAGE["bfloat16"]: 16, STORAGE["float8e4m3fn"]: 17}


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A session of ONNX Runtime, and the arrays in place of the bundle's weights: it has their addresses only."""

    session: Any
    weights: Mapping[str, Buffer]


class Network:
    """The graph of a file on some providers, each a name or a name with options, as InferenceSession takes them."""

    def __init__(
        self,
        path: Path,
        options: OnnxRuntimeOptions,
        precision: str,
        providers: Sequence[Any],
        *,
        prepack: bool = True,
    ) -> None:
        self.path, self._options, self._precision, self._providers = path, options, precision, list(providers)
        self._prepack = prepack
        names = [each if isinstance(each, str) else str(each[0]) for each in providers]
        self.on_cpu = names == [CPU]
        self._first = names[0]  # runs what it can
        self.loaded = self._load({})

    def replace(self, weights: Mapping[str, Buffer]) -> None:
        """Load the graph again, over these weights: what runs meanwhile still has the others.

        Raises:
            BackendError: an unknown name, another shape or type, or ONNX Runtime failed: nothing has changed.
        """
        check_weights(weights, read_initializers(self.path))
        self.loaded = self._load({name: np.require(array, None, "C") for name, array in weights.items()})

    def _load(self, weights: Mapping[str, Buffer]) -> Loaded:
        ort = load_onnxruntime()
        settings = _settings(ort, self._options, self._precision, self._prepack)
        if not self.on_cpu:
            settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        with translated(f"loading {self.path}"):
            if weights:
                # Not add_initializer: what ONNX Runtime folds at load it would fold from the file's values.
                values = [_ort_value(ort, array) for array in weights.values()]
                settings.add_external_initializers(list(weights), values)
            # Its fallback prints to stdout and retries on the CPU without saying so to the caller.
            session = ort.InferenceSession(str(self.path), settings, providers=self._providers, enable_fallback=0)
        if session.get_providers()[0] != self._first:
            # A provider whose library does not load is left out without an error.
            raise BackendError(
                f"ONNX Runtime runs {self.path.name} on {session.get_providers()[0]}",
                expected=f"{self._first}, as asked",
                fix="Run: telecine doctor (it checks the driver and both onnxruntime packages), or use device='cpu'.",
            )
        return Loaded(session, weights)


def _ort_value(ort: Any, array: Buffer) -> Any:
    """An initializer's value over the array's own memory."""
    if array.dtype in ONNX_TYPES:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPES[array.dtype])
    return ort.OrtValue.ortvalue_from_numpy(array)


def _settings(ort: Any, options: OnnxRuntimeOptions, precision: str, prepack: bool) -> Any:
    """ONNX Runtime's SessionOptions; one for each session, as they hold its weights."""
    settings = ort.SessionOptions()
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    settings.enable_cpu_mem_arena = options.memory_arena
    settings.enable_mem_pattern = options.memory_pattern
    settings.log_severity_level = 4  # fatal: its errors come as exceptions too, and need not be said twice
    if not prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if precision == "fp8":
        # Its rewriting of QuantizeLinear and DequantizeLinear knows 8-bit integers, and fails on float8.
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings
