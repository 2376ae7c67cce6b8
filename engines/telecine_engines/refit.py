"""Plans for a refitted bundle, from the plans of the bundle that it was made of: other weights, and no build."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from telecine.backends.cuda.device import Device
from telecine.backends.tensorrt.library import Library, library_for
from telecine.backends.tensorrt.opening import Plan, check_machine, checked_content
from telecine.backends.tensorrt.refit import BundleWeights, prepare
from telecine.bundle import Bundle
from telecine.engine import Sidecar, plan_path, sidecar_path
from telecine.errors import BackendError, EngineError
from telecine.refit import copy
from telecine_engines.key import plan_key
from telecine_engines.options import BuildOptions


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
    """The plan and its sidecar for a bundle's weights, where `telecine build` looks for them."""
    graph, weights = bundle.graph(sidecar.component, sidecar.role).file, bundle.component(sidecar.component).weights
    made = dataclasses.replace(sidecar, graph_sha256=graph.sha256, weights_sha256=weights.sha256)
    content = None
    if not sidecar.stripped:
        content, again = _refitted(plan, sidecar, BundleWeights(bundle.path(graph)))
        made = dataclasses.replace(
            made,
            plan_size=len(content),
            plan_sha256=hashlib.sha256(content).hexdigest(),
            refit=again,
            options=sidecar.options | {"refit": again},
        )
    made = dataclasses.replace(made, key=_key(made))
    path = plan_path(
        bundle.root / "engines",
        target=made.target,
        library_version=made.library_version,
        key=made.key,
        component=made.component,
        role=made.role,
    )
    if content is None:
        copy(plan, path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sidecar_path(path).write_text(made.dump(), encoding="utf-8")


def _key(sidecar: Sidecar) -> str:
    """The one that a build from the same weights, sizes and options has."""
    return plan_key(
        component=sidecar.component,
        role=sidecar.role,
        graph_sha256=sidecar.graph_sha256,
        weights_sha256=sidecar.weights_sha256,
        target=sidecar.target,
        library=sidecar.library,
        library_version=sidecar.library_version,
        platform=sidecar.platform,
        profiles=sidecar.profiles,
        options={name: value for name, value in sidecar.options.items() if name in BuildOptions().recorded()},
    )


def _refitted(path: Path, sidecar: Sidecar, weights: BundleWeights) -> tuple[bytes, bool]:
    """A plan with every weight as a bundle has it, and whether it can be refitted again.

    Raises:
        EngineError: no GPU or TensorRT for the plan, or TensorRT refuses it or a weight.
    """
    try:
        device = Device.open("auto")
        check_machine(path, sidecar, device)
        # The lean runtime and newer versions may open it, and write no plan that this version opens.
        library = library_for(dataclasses.replace(sidecar, version_compatible=False))
        device.use()
        runtime = library.module.Runtime(library.log)  # it must live as long as the engine
        with checked_content(Plan(path=path, sidecar=sidecar, library=library)) as content:
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise _refused(f"{sidecar.library} does not open {path}: {library.errors()}", "a plan that it opens")
        prepare(library, engine, {}, weights, everything=True).apply()
    except BackendError as error:
        raise _refused(error.got, error.expected) from error
    return _serialised(library, engine, sidecar), _keeps_refit(library)


def _serialised(library: Library, engine: Any, sidecar: Sidecar) -> bytes:
    flags, config = library.module.SerializationFlag, engine.create_serialization_config()
    if _keeps_refit(library):
        config.set_flag(flags.INCLUDE_REFIT)
    if sidecar.version_compatible:  # as telecine build does: the lean runtime is a package of its own
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    serialised = engine.serialize_with_config(config)
    if serialised is None:
        raise _refused(f"TensorRT cannot write the refitted plan: {library.errors()}", "memory for one more plan")
    return bytes(memoryview(serialised))


def _keeps_refit(library: Library) -> bool:
    """Whether what is written after a refit can be refitted again: from TensorRT 10.14 on."""
    return hasattr(library.module.SerializationFlag, "INCLUDE_REFIT")


def _refused(got: str, expected: str) -> EngineError:
    fix = "Refit where the plans run; or leave --engines out, and run telecine build on the refitted bundle."
    return EngineError(got, expected=expected, fix=fix)
