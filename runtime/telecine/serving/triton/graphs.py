"""A model for each graph of a bundle, for those who compose themselves: Triton's onnxruntime and tensorrt backends.

Source: server `docs/user_guide/model_repository.md`; READMEs of onnxruntime_backend and tensorrt_backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from telecine.bundle import Bundle
from telecine.engines_folder import Engine, list_engines
from telecine.errors import EngineError, RequestError
from telecine.manifest import Graph
from telecine.serving.triton.config import Placement, graph_config

BACKENDS = ("onnxruntime", "tensorrt")
# "A directory composed of multiple files must be named model.onnx, and the main file in it model.onnx."
_ONNX_FOLDER = Path("model.onnx")


@dataclass(frozen=True, slots=True)
class GraphModel:
    """A model's configuration, and the files of its version folder: where they lie there → what they are."""

    config: dict[str, Any]
    files: Mapping[Path, Path]

    @property
    def name(self) -> str:
        name: str = self.config["name"]
        return name


def graph_models(bundle: Bundle, backend: str, *, name: str, engines: Path, placement: Placement) -> list[GraphModel]:
    """`NAME_COMPONENT_ROLE` for every graph, where the role `main` is left out; `..._tensorrt` for plans.

    Raises:
        BundleError: the weights were left out of the bundle, and ONNX Runtime needs them.
        EngineError: a graph has no plan that Triton's TensorRT opens.
        RequestError: an unknown backend, or TensorRT on a CPU.
    """
    if backend not in BACKENDS:
        raise RequestError(
            f"graphs for {backend!r}", expected=f"one of {', '.join(BACKENDS)}", fix="Use --graphs onnxruntime."
        )
    if backend == "tensorrt" and placement.devices == ("cpu",):
        raise RequestError("graphs for tensorrt on the CPU", expected="a GPU", fix="Use --graphs onnxruntime.")
    graphs = [
        (component, role, graph)
        for component, part in bundle.manifest.components.items()
        for role, graph in part.graphs.items()
    ]
    if backend == "onnxruntime":
        return [_onnx_model(bundle, component, graph, _name(name, component, role), placement)
                for component, role, graph in graphs]  # fmt: skip
    found = list_engines(engines)
    return [
        _plan_model(
            [engine for engine in found if _opens_in_triton(engine, bundle, component, role)],
            f"{_name(name, component, role)}_tensorrt",
            placement,
        )
        for component, role, _ in graphs
    ]


def _name(name: str, component: str, role: str) -> str:
    return f"{name}_{component}" + ("" if role == "main" else f"_{role}")


def _onnx_model(bundle: Bundle, component: str, graph: Graph, name: str, placement: Placement) -> GraphModel:
    """A graph finds its weights by their name, beside it."""
    bundle.require_weights(component)
    part = bundle.component(component)
    weights = bundle.path(part.weights)
    more: dict[str, Any] = {"backend": "onnxruntime", "default_model_filename": str(_ONNX_FOLDER)}
    if part.precision == "fp8":
        # Basic optimisations only: with the others ONNX Runtime fuses Q/DQ pairs that it has no float8 kernels for.
        more["optimization"] = {"graph": {"level": -1}}
    return GraphModel(
        graph_config(name, graph.inputs, graph.outputs, placement.group(), **more),
        {_ONNX_FOLDER / "model.onnx": bundle.path(graph.file), _ONNX_FOLDER / weights.name: weights},
    )


def _opens_in_triton(engine: Engine, bundle: Bundle, component: str, role: str) -> bool:
    """Whether it is this graph's. Triton has TensorRT, no runtime for RTX, and puts no weights into stripped plans."""
    sidecar, files = engine.sidecar, (bundle.graph(component, role).file, bundle.component(component).weights)
    return (
        (sidecar.component, sidecar.role) == (component, role)
        and (sidecar.graph_sha256, sidecar.weights_sha256) == tuple(file.sha256 for file in files)
        and sidecar.library == "tensorrt"
        and not sidecar.stripped
    )


def _plan_model(engines: list[Engine], name: str, placement: Placement) -> GraphModel:
    """The newest plan for each GPU; Triton takes the first optimisation profile alone unless it is told of the rest."""
    if not engines:
        raise EngineError(
            f"no plan for {name}",
            expected="one of this bundle's graph and weights, of TensorRT (not for RTX), that was not stripped",
            fix="Run telecine build BUNDLE on the GPU that will serve, or use --graphs onnxruntime.",
        )
    plans = {capability: each for each in engines for capability in each.sidecar.compute_capabilities}
    counts = {len(each.sidecar.profiles) for each in plans.values()}
    if len(counts) > 1:
        raise EngineError(
            f"plans for {name} with {' and '.join(map(str, sorted(counts)))} profiles",
            expected="the same number for every GPU: a model of Triton names them once",
            fix="Build them for the same workloads, or pass the folder of one GPU's with --engines.",
        )
    files = {each.plan: Path(f"model.sm{capability.replace('.', '')}.plan") for capability, each in plans.items()}
    newest = engines[-1]
    config = graph_config(
        name,
        newest.sidecar.inputs,
        newest.sidecar.outputs,
        placement.group(profile=[str(index) for index in range(counts.pop())]),
        backend="tensorrt",
        default_model_filename=str(files[newest.plan]),
        cc_model_filenames=[
            {"key": capability, "value": str(files[each.plan])} for capability, each in plans.items()
        ],
    )  # fmt: skip
    return GraphModel(config, {path: plan for plan, path in files.items()})
