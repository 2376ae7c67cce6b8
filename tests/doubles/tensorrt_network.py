"""What the TensorRT double runs: an ONNX graph on ONNX Runtime, with other weights where a refit gave them."""

from __future__ import annotations

from typing import Any

import numpy as np

from doubles.tensorrt_types import ONNX_TYPES, DataType


class Network:
    def __init__(self, graph: str, given: dict[str, bytes]) -> None:
        self._graph = graph
        self._session: Any = None
        self._model: Any = None
        self.given = dict(given)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._session is None:
            self._session = self._load()
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def weights(self) -> dict[str, tuple[DataType, int]]:
        """Type and bytes of every initializer, by name."""
        return {
            each.name: (ONNX_TYPES[each.data_type], len(each.raw_data)) for each in self._loaded().graph.initializer
        }

    def give(self, weights: dict[str, bytes]) -> None:
        self.given |= weights
        self._session = None

    def _loaded(self) -> Any:
        if self._model is None:
            import onnx

            self._model = onnx.load(self._graph)
        return self._model

    def _load(self) -> Any:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        model: Any = self._graph
        if self.given:
            for each in self._loaded().graph.initializer:
                each.raw_data = self.given.get(each.name, each.raw_data)
            model = self._loaded().SerializeToString()
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
