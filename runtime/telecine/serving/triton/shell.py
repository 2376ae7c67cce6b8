"""The Triton model, as Triton's Python backend wants it: what it does is in the installed package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from telecine.serving.triton.model import PipelineModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._model = PipelineModel(pb_utils, Path(__file__).parent / "bundle", args)

    def execute(self, requests: Sequence[Any]) -> None:
        self._model.execute(requests)

    def finalize(self) -> None:
        self._model.close()
