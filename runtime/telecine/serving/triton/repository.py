"""`telecine triton`: write a model repository, whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from telecine.atomic import atomic_folder
from telecine.backends.choice import BACKENDS
from telecine.bundle import Bundle
from telecine.engine import sidecar_path
from telecine.engines_folder import list_engines
from telecine.errors import EngineError, RequestError
from telecine.manifest import FILE_NAME
from telecine.serving.triton.config import MARK, Placement, as_text, pipeline_config
from telecine.serving.triton.graphs import graph_models

CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODEL_FOLDER = "$$TRITON_MODEL_DIRECTORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryOptions:
    """What `telecine triton` is asked for.

    `name`: of the model, and what the names of graphs' models begin with. `version`: of all of them. `concurrency`:
    requests that an instance runs at a time over the same weights; every instance is a process with its own.
    `backend`, `threads`: of `telecine.load`, on the server. `engines`: the folder of plans, where it is not the
    bundle's own. `environment`: the server's path of a virtual or conda-pack environment that has telecine; without
    one the server's own Python has it. `graphs`: for which of Triton's backends there is a model of every graph.
    """

    name: str = "telecine"
    version: int = 1
    placement: Placement = field(default_factory=Placement)
    concurrency: int = 1
    backend: str = "auto"
    threads: int | None = None
    engines: Path | None = None
    environment: str | None = None
    graphs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RequestError(
                f"the name {self.name!r}", expected="letters, digits, _ - and .", fix="Use --name telecine."
            )
        for option, value in (("--model-version", self.version), ("--concurrency", self.concurrency)):
            if value < 1:
                raise RequestError(f"{option} {value}", expected="1 or more", fix="Leave it out for 1.")
        if self.backend not in BACKENDS:
            raise RequestError(
                f"backend {self.backend!r}", expected=f"one of {', '.join(BACKENDS)}", fix="Leave it out: auto chooses."
            )
        if self.backend == "tensorrt" and self.placement.devices == ("cpu",):
            raise RequestError("backend 'tensorrt' on the CPU", expected="a GPU", fix="Use --device cuda.")
        if self.backend == "tensorrt" and self.threads is not None:
            raise RequestError(
                f"--threads {self.threads} with backend 'tensorrt'",
                expected="a backend that may be ONNX Runtime, whose option it is",
                fix="Leave --threads out.",
            )
        environment = self.environment
        if environment is not None and not (environment.startswith(("/", f"{_MODEL_FOLDER}/"))):
            raise RequestError(
                f"environment {environment}",
                expected=f"an absolute path on the server, or one that begins with {_MODEL_FOLDER}/",
                fix="Name the folder that has bin/activate, or the archive of conda-pack.",
            )

    def parameters(self) -> dict[str, str]:
        """What `config.pbtxt` hands to the Python backend and to `PipelineModel`."""
        values = {
            "backend": self.backend,
            "concurrency": str(self.concurrency),
            "threads": None if self.threads is None else str(self.threads),
            "EXECUTION_ENV_PATH": self.environment,
        }
        return {name: value for name, value in values.items() if value is not None}


def write_repository(
    bundle: Bundle, repository: str | Path, options: RepositoryOptions, *, overwrite: bool = False
) -> list[str]:
    """The models of a repository, written; their names. It needs nothing outside itself but telecine.

    The bundle's files are copied into it: onnx refuses weights that have a second name.

    Raises:
        RequestError: the folder cannot be written or replaced, or an option contradicts another.
        BundleError, EngineError: graphs need weights or plans that the bundle lacks.
    """
    engines = bundle.root / "engines" if options.engines is None else options.engines
    if (options.backend == "tensorrt" or options.engines is not None) and not list_engines(engines):
        raise EngineError(
            f"{engines} holds no engines", expected="plans of telecine build", fix="Run: telecine build BUNDLE"
        )
    graphs = [
        model
        for backend in dict.fromkeys(options.graphs)
        for model in graph_models(bundle, backend, name=options.name, engines=engines, placement=options.placement)
    ]
    with_engines = options.backend != "onnxruntime" and options.placement.devices != ("cpu",)
    with atomic_folder(repository, overwrite=overwrite, is_ours=is_repository) as folder:
        version = _begin(folder, options, pipeline_config(options.name, options.placement, options.parameters()))
        shutil.copyfile(Path(__file__).with_name("shell.py"), version / "model.py")
        for path, source in _bundle_files(bundle, engines if with_engines else None):
            _copy(source, version / "bundle" / path)
        for model in graphs:
            version = _begin(folder, options, model.config)
            for path, source in model.files.items():
                _copy(source, version / path)
    return [options.name, *(model.name for model in graphs)]


def is_repository(path: Path) -> bool:
    """Whether a folder is one that `telecine triton` wrote, and nothing was added to it."""
    models = list(path.iterdir())
    return bool(models) and all((model / CONFIG).is_file() and _is_marked(model / CONFIG) for model in models)


def _is_marked(config: Path) -> bool:
    with config.open("rb") as file:
        return file.read(len(MARK)) == MARK.encode()


def _begin(folder: Path, options: RepositoryOptions, config: Mapping[str, object]) -> Path:
    """A model's folder with its configuration; its empty version folder."""
    model = folder / str(config["name"])
    version = model / str(options.version)
    version.mkdir(parents=True)
    (model / CONFIG).write_text(as_text(config), encoding="utf-8")
    return version


def _bundle_files(bundle: Bundle, engines: Path | None) -> Iterator[tuple[Path, Path]]:
    """What makes a bundle: where it lies in it → what it is."""
    yield Path(FILE_NAME), bundle.root / FILE_NAME
    for entry in [*bundle.hashed_files(), *(part.weights for part in bundle.with_weights())]:
        yield Path(entry.path), bundle.path(entry)
    if engines is not None:
        for engine in list_engines(engines):
            for source in (engine.plan, sidecar_path(engine.plan)):
                yield Path("engines") / source.relative_to(engines), source


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
