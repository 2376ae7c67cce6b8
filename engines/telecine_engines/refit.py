"""Plans for a refitted bundle, from the plans of the bundle that it was made of: other weights, and no build."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from telecine.bundle import Bundle
from telecine.engine import Sidecar, plan_path, sidecar_path
from telecine.errors import EngineError
from telecine.initializers import Initializer, read_initializers
from telecine.refit import copy

logger = logging.getLogger(__name__)

# TensorRT's DataType by ONNX's names of types.
DATA_TYPES = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "float8e4m3fn": "FP8",
    "int8": "INT8", "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "bool": "BOOL",
}  # fmt: skip


def refit_engines(before: Bundle, after: Bundle, engines: Path) -> dict[str, str]:
    """Put plans for `after` into its own folder, from those of `before` in `engines`; what was done, by plan.

    Plans of components that did not change are copied. Stripped plans are too, under a new sidecar: a session fills
    them with its bundle's weights. The others are refitted, which needs a GPU that they run on.

    Raises:
        EngineError: a plan or its sidecar is damaged, its TensorRT or its GPU is not here, or TensorRT refuses.
    """
    done: dict[str, str] = {}
    for plan in sorted(engines.rglob("*.plan")):
        sidecar = Sidecar.read(sidecar_path(plan))
        name = str(plan.relative_to(engines))
        if not _is_of(sidecar, before):
            done[name] = "left out: of another bundle"
        elif _is_of(sidecar, after):
            copy(plan, after.root / "engines" / name)
            copy(sidecar_path(plan), sidecar_path(after.root / "engines" / name))
            done[name] = "copied"
        elif not sidecar.refit:
            done[name] = "left out: built without --refit"
        else:
            _write_refitted(plan, sidecar, after)
            done[name] = "copied: stripped" if sidecar.stripped else "refitted"
    return done


def _is_of(sidecar: Sidecar, bundle: Bundle) -> bool:
    component = bundle.manifest.components.get(sidecar.component)
    graph = component.graphs.get(sidecar.role) if component else None
    return (
        component is not None
        and graph is not None
        and (sidecar.graph_sha256, sidecar.weights_sha256) == (graph.file.sha256, component.weights.sha256)
    )


def _write_refitted(plan: Path, sidecar: Sidecar, bundle: Bundle) -> None:
    """The plan and its sidecar for a bundle's weights, where the bundle's plans lie."""
    weights_sha256 = bundle.component(sidecar.component).weights.sha256
    key = _key(sidecar, weights_sha256)
    path = plan_path(
        bundle.root / "engines",
        target=sidecar.target,
        library_version=sidecar.library_version,
        key=key,
        component=sidecar.component,
        role=sidecar.role,
    )
    made = dataclasses.replace(sidecar, key=key, weights_sha256=weights_sha256)
    if sidecar.stripped:
        copy(plan, path)
    else:
        graph = bundle.path(bundle.graph(sidecar.component, sidecar.role).file)
        api = _library(sidecar)
        content = refit_plan(api, _content(plan, sidecar), sidecar, read_initializers(graph))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        made = dataclasses.replace(
            made,
            plan_size=len(content),
            plan_sha256=hashlib.sha256(content).hexdigest(),
            refit=_keeps_refit(api),
        )
    sidecar_path(path).write_text(made.dump(), encoding="utf-8")


def _key(sidecar: Sidecar, weights_sha256: str) -> str:
    """The folder's name: of the plan that it was made of, and the weights that are in it now."""
    return hashlib.sha256(f"{sidecar.key} {weights_sha256}".encode()).hexdigest()[: len(sidecar.key)]


def _content(plan: Path, sidecar: Sidecar) -> bytes:
    try:
        content = plan.read_bytes()
    except OSError as error:
        raise _refused(
            f"{plan} cannot be read ({error.strerror or error})", "the plan that telecine build wrote"
        ) from error
    if hashlib.sha256(content).hexdigest() != sidecar.plan_sha256:
        raise _refused(f"{plan} has changed: its SHA-256 is another", sidecar.plan_sha256)
    return content


def refit_plan(api: Any, content: bytes, sidecar: Sidecar, initializers: Mapping[str, Initializer]) -> bytes:
    """A plan with every weight that can be replaced as these initializers have it. `api` is TensorRT's module.

    Raises:
        EngineError: no GPU for the plan, or TensorRT refuses it or a weight.
    """
    log = _log(api)
    runtime = api.Runtime(log)  # it must live as long as the engine
    runtime.engine_host_code_allowed = sidecar.version_compatible
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise _refused(f"{sidecar.library} does not open the plan: {log.errors()}", "a GPU that the plan was built for")
    refitter = api.Refitter(engine, log)
    kept = []  # it has addresses only, until the refit is done
    for name in refitter.get_all_weights():
        entry = initializers.get(name)
        if entry is None:
            raise _refused(f"the plan has weights called {name}", "names of the bundle's graph")
        values = np.require(entry.read(), None, "C")
        kept.append(values)
        weights = api.Weights(getattr(api.DataType, DATA_TYPES[entry.dtype]), values.ctypes.data, values.size)
        if not refitter.set_named_weights(name, weights):
            raise _refused(f"TensorRT refuses {name}: {log.errors()}", "weights of the plan's own types and shapes")
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        raise _refused(f"TensorRT refuses the weights: {', '.join(missing) or log.errors()}", "a plan that takes them")
    return _serialised(api, log, engine, sidecar)


def _serialised(api: Any, log: Any, engine: Any, sidecar: Sidecar) -> bytes:
    config = engine.create_serialization_config()
    if _keeps_refit(api):
        config.set_flag(api.SerializationFlag.INCLUDE_REFIT)
    if sidecar.version_compatible:  # as telecine build does: the lean runtime is a package of its own
        config.set_flag(api.SerializationFlag.EXCLUDE_LEAN_RUNTIME)
    serialised = engine.serialize_with_config(config)
    if serialised is None:
        raise _refused(f"TensorRT cannot write the refitted plan: {log.errors()}", "memory for one more plan")
    return bytes(memoryview(serialised))


def _keeps_refit(api: Any) -> bool:
    """Whether what is written after a refit can be refitted again: from TensorRT 10.14 on."""
    return hasattr(api.SerializationFlag, "INCLUDE_REFIT")


def _library(sidecar: Sidecar) -> Any:
    """The package that built the plan, where there is a GPU: without a driver some packages crash."""
    extra = sidecar.library.replace("_", "-")
    _check_gpu()
    try:
        api = importlib.import_module(sidecar.library)
    except ImportError as error:
        raise EngineError(
            f"{sidecar.library} cannot be imported: {error}",
            expected=f"version {sidecar.library_version}, which the plan was built with",
            fix=f'Run: pip install "telecine[{extra}]" "{extra}=={sidecar.library_version}"',
        ) from error
    if str(api.__version__) != sidecar.library_version:
        raise EngineError(
            f"{sidecar.library} {api.__version__}",
            expected=f"{sidecar.library_version}, which the plan was built with",
            fix=f'Run: pip install "{extra}=={sidecar.library_version}", or telecine build the refitted bundle.',
        )
    return api


def _check_gpu() -> None:
    problem = "cuda-bindings is not installed"
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
        error, count = runtime.cudaGetDeviceCount()
        if int(error) == 0 and count > 0:
            return
        problem = f"CUDA answers {error!r}"
    except ImportError:
        pass
    raise EngineError(
        f"there is no GPU to refit plans on: {problem}",
        expected="a GPU that the plans were built for",
        fix="Refit there; or leave --engines out, and run telecine build on the refitted bundle.",
    )


def _log(api: Any) -> Any:
    """An ILogger that passes on to `logging`, and keeps errors for the exception that tells them."""

    class Log(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.kept: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (api.ILogger.ERROR, api.ILogger.INTERNAL_ERROR):
                self.kept.append(" ".join(msg.split()))
            logger.debug("%s", msg)

        def errors(self) -> str:
            return "; ".join(self.kept[-3:]) or "it gives no reason"

    return Log()


def _refused(got: str, expected: str) -> EngineError:
    return EngineError(got, expected=expected, fix="Run: telecine build on the refitted bundle.")
