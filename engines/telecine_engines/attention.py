"""How many attentions of a plan TensorRT fused into one kernel: only an inspector of the opened plan knows."""

from __future__ import annotations

import json
import re
from typing import Any

from telecine.backends.tensorrt.library import Library
from telecine_engines.gpu import gpu_capability, has_gpu
from telecine_engines.targets import Target

# Layers of fused multi-head attention are called so: `_gemm_mha_v2_...`, `_fmha_...`.
# Source: NVIDIA's answers in github.com/NVIDIA/TensorRT, issues 3243 and 4410.
FUSED = re.compile(r"mha", re.IGNORECASE)


def count_fused_attention(library: Library, target: Target, plan: Any) -> int | None:
    """Layers of fused attention in a serialised plan; None where it cannot be opened: no GPU here, or another one."""
    if not has_gpu() or gpu_capability() not in target.capabilities:
        return None
    runtime = library.module.Runtime(library.log)  # it must live as long as the engine
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(library.module.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):  # a version that tells it in another form
        return None
    # With the default verbosity a layer is its name alone.
    names = (layer["Name"] if isinstance(layer, dict) else layer for layer in layers)
    return sum(bool(FUSED.search(name)) for name in names)
