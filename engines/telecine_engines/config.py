"""The builder's configuration: options as flags, profiles as TensorRT's, a progress monitor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from telecine.atomic import atomic_file
from telecine.backends.tensorrt.library import Library
from telecine.errors import EngineError
from telecine_engines.options import BuildOptions
from telecine_engines.profiles import Profile
from telecine_engines.targets import Target

MIB = 1 << 20

# (name of a phase, steps done, steps in all): a phase starts with 0 steps done.
Report = Callable[[str, int, int], None]


def make_config(library: Library, builder: Any, target: Target, options: BuildOptions) -> Any:
    """An IBuilderConfig for a target, without profiles."""
    api = library.module
    config = builder.create_builder_config()
    if library.is_rtx:
        _set_capabilities(api, config, target)
    for flag in _flags(options):
        config.set_flag(getattr(api.BuilderFlag, flag))
    if not options.tf32:
        config.clear_flag(api.BuilderFlag.TF32)  # on by default
    level = api.HardwareCompatibilityLevel.__members__[options.hardware_compatibility_level]
    config.hardware_compatibility_level = level
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace * MIB)
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache)
    return config


def _flags(options: BuildOptions) -> list[str]:
    wanted = {
        "REFIT": options.refit,
        "STRIP_PLAN": options.strip_plan,
        # Refitting with the same weights costs no speed; it is all that a stripped plan needs.
        "REFIT_IDENTICAL": options.strip_plan and not options.refit,
        "WEIGHT_STREAMING": options.weight_streaming,
        "VERSION_COMPATIBLE": options.version_compatible,
        # tensorrt_lean opens such plans: a copy of it in each would be code that runs when a plan is opened.
        # TensorRT for RTX knows no other kind.
        "EXCLUDE_LEAN_RUNTIME": options.version_compatible,
    }
    return [flag for flag, on in wanted.items() if on]


def _set_capabilities(api: Any, config: Any, target: Target) -> None:
    config.num_compute_capabilities = len(target.capabilities)
    for index, capability in enumerate(target.capabilities):
        member = api.ComputeCapability.__members__.get(f"SM{capability}")
        if member is None or not config.set_compute_capability(member, index):
            raise EngineError(
                f"this TensorRT for RTX ({api.__version__}) does not build for sm{capability}",
                expected=f"one of {', '.join(api.ComputeCapability.__members__)}",
                fix='Run: pip install --upgrade "telecine[tensorrt-rtx]"',
            )


def add_profiles(builder: Any, config: Any, profiles: tuple[Profile, ...]) -> None:
    """
    Raises:
        EngineError: TensorRT holds another profile than was set, or refuses it. `set_shape` itself raises nothing.
    """
    for number, profile in enumerate(profiles):
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            made.set_shape(name, shapes.min, shapes.opt, shapes.max)
            held = tuple(tuple(shape) for shape in made.get_shape(name))
            if held != (shapes.min, shapes.opt, shapes.max):
                raise _refused(number, f"{name} became {held}")
        index = config.add_optimization_profile(made)
        if index != number:
            raise _refused(number, f"its index is {index}")


def _refused(number: int, problem: str) -> EngineError:
    return EngineError(
        f"TensorRT does not take profile {number}: {problem}",
        expected="min <= opt <= max in every axis",
        fix="Run with -v for what TensorRT says, and ask for other workloads.",
    )


def _load_timing_cache(config: Any, path: Path) -> None:
    """A cache of another GPU or version is refused by TensorRT, not mixed in."""
    content = path.read_bytes() if path.exists() else b""
    if not config.set_timing_cache(config.create_timing_cache(content), False):
        raise EngineError(
            f"{path} is a timing cache of another GPU or another TensorRT",
            expected="one that this machine wrote, or a new file",
            fix="Name another file, or remove this one.",
        )


def save_timing_cache(config: Any, path: Path) -> None:
    with atomic_file(path) as partial:
        partial.write_bytes(memoryview(config.get_timing_cache().serialize()).cast("B"))


def watch(library: Library, config: Any, report: Report) -> Any:
    """Attach a progress monitor; `.interrupted` says that Ctrl-C was pressed, which ends the build."""
    base: Any = library.module.IProgressMonitor

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, phase: str, done: int) -> None:
            try:
                report(phase, done, self._steps.get(phase, done))
            except KeyboardInterrupt:  # raised here it would go through TensorRT's own frames
                self.interrupted = True

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor
