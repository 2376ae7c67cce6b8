"""The `tensorrt` paths, 10 and 11, against a double of the builder: nothing here was run on a GPU."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.tensorrt_builder import IBuilderConfig, IOptimizationProfile, read_plan

from telecine.bundle import Bundle
from telecine.engine import Sidecar, sidecar_path
from telecine.engines_folder import list_engines
from telecine.errors import BundleError, EngineError
from telecine_engines.build import BuildReport, BuildRequest, build_engines, plan_engines
from telecine_engines.options import BuildOptions

VERSIONS = ("10.14.1", "11.4.0")
Install = Callable[[str], Any]


@pytest.fixture
def request_of(upscaler_bundle: Path, tmp_path: Path) -> Callable[..., BuildRequest]:
    """`request_of(refit=True)`: the transformer for an H100, with these options."""

    def make(**options: Any) -> BuildRequest:
        return BuildRequest(
            bundle=Bundle.open(upscaler_bundle),
            targets=("trt-sm90",),
            workloads=("64x96x9",),
            components=("transformer",),
            engines=tmp_path / "engines",
            options=BuildOptions(**options),
        )

    return make


def record(report: BuildReport) -> dict[str, Any]:
    """What the only plan of a build was built with."""
    (path,) = report.sidecars
    return read_plan(path)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_component_builds(
    version: str, tensorrt_double: Install, request_of: Callable[..., BuildRequest]
) -> None:
    tensorrt_double(version)
    request = dataclasses.replace(request_of(), components=())
    report = build_engines(request)
    assert [sidecar.component for sidecar in report.sidecars.values()] == list(request.bundle.manifest.components)
    for path, sidecar in report.sidecars.items():
        plan = read_plan(path)
        assert plan["strongly_typed"]
        assert all(plan["attention"])
        assert sidecar.fused_attention == len(plan["attention"])
        assert plan["flags"] == []  # TF32 is on by default, and fp32 would not be fp32
        assert len(plan["profiles"]) == len(sidecar.profiles)
        for made, profile in zip(plan["profiles"], sidecar.profiles, strict=True):
            spans = {name: dataclasses.asdict(each) for name, each in profile.items()}
            assert made == json.loads(json.dumps(spans))
        assert (sidecar.library, sidecar.library_version) == ("tensorrt", version)
        assert (sidecar.target, sidecar.compute_capabilities) == ("trt-sm90", ("9.0",))
        assert Sidecar.read(sidecar_path(path)) == sidecar
    assert build_engines(request).built == ()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"refit": True}, {"REFIT"}),
        ({"strip_plan": True}, {"STRIP_PLAN", "REFIT_IDENTICAL"}),
        ({"strip_plan": True, "refit": True}, {"STRIP_PLAN", "REFIT"}),
        ({"weight_streaming": True}, {"WEIGHT_STREAMING"}),
        ({"version_compatible": True}, {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}),
        ({"tf32": True}, {"TF32"}),
    ],
)
def test_flags(
    version: str,
    options: dict[str, bool],
    flags: set[str],
    tensorrt_double: Install,
    request_of: Callable[..., BuildRequest],
) -> None:
    tensorrt_double(version)
    report = build_engines(request_of(**options))
    assert set(record(report)["flags"]) == flags
    (sidecar,) = report.sidecars.values()
    assert sidecar.refit == options.get("refit", False)
    assert sidecar.stripped == options.get("strip_plan", False)
    assert sidecar.weight_streaming == options.get("weight_streaming", False)
    assert sidecar.version_compatible == options.get("version_compatible", False)


@pytest.mark.parametrize(("answer", "count"), [('{"Layers": [{"Name": "a_fMHA_b"}, {"Name": "c"}]}', 1), ("{", None)])
def test_fused_attention_in_the_forms_that_inspectors_answer(
    answer: str,
    count: int | None,
    tensorrt_double: Install,
    request_of: Callable[..., BuildRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = tensorrt_double("11.4.0")
    monkeypatch.setattr(module.EngineInspector, "get_engine_information", lambda self, format: answer)
    (sidecar,) = build_engines(request_of()).sidecars.values()
    assert sidecar.fused_attention == count


def test_a_plan_for_another_gpu_is_not_opened(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest]
) -> None:
    tensorrt_double("11.4.0")
    request = dataclasses.replace(request_of(hardware_compatibility_level="AMPERE_PLUS"), targets=("trt-sm89",))
    (sidecar,) = build_engines(request).sidecars.values()
    assert sidecar.fused_attention is None


def test_other_options(tensorrt_double: Install, request_of: Callable[..., BuildRequest]) -> None:
    tensorrt_double("11.4.0")
    report = build_engines(
        request_of(
            builder_optimization_level=5, workspace=512, max_aux_streams=2, hardware_compatibility_level="AMPERE_PLUS"
        )
    )
    plan = record(report)
    assert plan["builder_optimization_level"] == 5
    assert plan["pools"] == {"WORKSPACE": 512 << 20}
    assert plan["max_aux_streams"] == 2
    assert plan["hardware_compatibility_level"] == "AMPERE_PLUS"
    (sidecar,) = report.sidecars.values()
    assert sidecar.hardware_compatibility == "AMPERE_PLUS"


def test_a_timing_cache_is_read_written_and_no_part_of_the_key(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], tmp_path: Path
) -> None:
    tensorrt_double("11.4.0")
    cache = tmp_path / "timing.cache"
    first = build_engines(request_of(timing_cache=cache))
    assert cache.read_bytes() == b" measured"
    assert list(build_engines(request_of()).sidecars) == list(first.sidecars)
    build_engines(request_of(timing_cache=cache, refit=True))
    assert cache.read_bytes() == b" measured measured"


def test_a_timing_cache_of_another_gpu_is_refused(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], tmp_path: Path
) -> None:
    tensorrt_double("11.4.0")
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"another GPU")
    with pytest.raises(EngineError, match="timing cache of another GPU"):
        build_engines(request_of(timing_cache=cache))
    assert cache.read_bytes() == b"another GPU"


def test_what_a_plan_depends_on_is_its_key(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], edited_bundle: Callable[..., Path]
) -> None:
    tensorrt_double("11.4.0")
    base = request_of()
    parts = base.bundle.manifest.components
    weights = dataclasses.replace(parts["transformer"].weights, sha256="0" * 64)
    changed = edited_bundle(
        base.bundle.root, components=parts | {"transformer": dataclasses.replace(parts["transformer"], weights=weights)}
    )
    others = [
        request_of(refit=True),
        request_of(builder_optimization_level=1),
        dataclasses.replace(base, workloads=("64x96x17",)),
        dataclasses.replace(base, keyframes=1),
        dataclasses.replace(base, bundle=Bundle.open(changed)),
    ]
    keys = {plan_engines(request).plans[0].key for request in [base, *others]}
    tensorrt_double("11.5.0")
    keys.add(plan_engines(base).plans[0].key)
    assert len(keys) == len(others) + 2
    tensorrt_double("11.4.0")
    same = [base, dataclasses.replace(base, workloads=("64x96x9..64x96x9",)), request_of(timing_cache=Path("cache"))]
    assert len({plan_engines(request).plans[0].key for request in same}) == 1


def test_a_component_that_changes_is_the_only_one_built_again(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest]
) -> None:
    tensorrt_double("11.4.0")
    base = dataclasses.replace(request_of(), components=())
    build_engines(base)
    longer = build_engines(dataclasses.replace(base, keyframes=8))  # of tokens alone
    assert [path.name for path in longer.built] == ["transformer.main.plan", "denoise_step.main.plan"]


def test_what_was_asked_for_last_is_the_newest(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest]
) -> None:
    """Sessions and `telecine pack` take the newest plan that fits."""
    tensorrt_double("11.4.0")
    first = request_of()
    second = dataclasses.replace(first, workloads=("64x96x17",))
    for request in (first, second, first):
        (asked,) = build_engines(request).sidecars
        assert list_engines(first.folder)[-1].plan == asked
        assert max(first.folder.rglob("*.plan"), key=lambda path: path.stat().st_mtime_ns) == asked


def test_weights_that_changed_are_not_built(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], edited_bundle: Callable[..., Path]
) -> None:
    tensorrt_double("11.4.0")
    base = request_of()
    copy = edited_bundle(base.bundle.root)
    weights = copy / "transformer" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match="weights.bin has changed"):
        build_engines(dataclasses.replace(base, bundle=Bundle.open(copy)))
    assert list(base.folder.rglob("*.plan")) == []


def test_a_graph_that_is_not_the_manifests_is_refused(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], edited_bundle: Callable[..., Path]
) -> None:
    tensorrt_double("11.4.0")
    base = request_of()
    parts = base.bundle.manifest.components
    main = parts["transformer"].graphs["main"]
    first = dataclasses.replace(main.inputs[0], dtype="float16")
    graph = dataclasses.replace(main, inputs=(first, *main.inputs[1:]))
    copy = edited_bundle(
        base.bundle.root,
        components=parts | {"transformer": dataclasses.replace(parts["transformer"], graphs={"main": graph})},
    )
    with pytest.raises(EngineError, match="main.onnx has hidden_states .*float32.*expected what the manifest says"):
        build_engines(dataclasses.replace(base, bundle=Bundle.open(copy)))


def test_a_graph_that_does_not_parse_is_told(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tensorrt_double("11.4.0")

    def fail(self: Any, model: str) -> bool:
        self._errors = 1
        return False

    monkeypatch.setattr(module.OnnxParser, "parse_from_file", fail)
    with pytest.raises(EngineError, match="tensorrt 11.4.0 does not parse .*main.onnx: this is no ONNX graph"):
        plan_engines(request_of())


def test_a_build_that_fails_says_what_tensorrt_said(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tensorrt_double("11.4.0")

    def fail(self: Any, network: Any, config: Any) -> None:
        self._logger.log(module.ILogger.Severity.ERROR, "Out of\nmemory")

    monkeypatch.setattr(module.Builder, "build_serialized_network", fail)
    request = request_of()
    with pytest.raises(EngineError, match="does not build .*main.onnx for trt-sm90: Out of memory"):
        build_engines(request)
    assert [path.name for path in request.folder.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize("fault", ["changed", "refused"])
def test_a_profile_that_tensorrt_does_not_hold_is_refused(
    fault: str, tensorrt_double: Install, request_of: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`set_shape` raises nothing."""
    tensorrt_double("11.4.0")
    if fault == "changed":
        monkeypatch.setattr(IOptimizationProfile, "get_shape", lambda self, input: [(1,), (1,), (1,)])
    else:
        monkeypatch.setattr(IBuilderConfig, "add_optimization_profile", lambda self, profile: -1)
    with pytest.raises(EngineError, match="TensorRT does not take profile 0"):
        build_engines(request_of())


def test_a_full_disk_loses_the_plan_in_work_only(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt_double("11.4.0")
    request = dataclasses.replace(request_of(), components=("text_encoder", "transformer"))
    real_open = Path.open

    def full(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode == "wb" and "transformer.main" in self.name:
            raise OSError(28, "No space left on device")
        return real_open(self, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(EngineError, match=r"writing .*transformer.main.plan failed \(No space left on device\)"):
            build_engines(request)
    assert [path.name for path in request.folder.rglob("*.plan")] == ["text_encoder.main.plan"]
    assert [path.name for path in build_engines(request).built] == ["transformer.main.plan"]


def test_the_wrong_target_for_this_machine_writes_nothing(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest]
) -> None:
    tensorrt_double("11.4.0")
    request = dataclasses.replace(request_of(), targets=("trt-sm89",))
    with pytest.raises(EngineError, match="the target trt-sm89 on a GPU of sm90"):
        build_engines(request)
    assert not request.folder.exists()


def test_without_the_package_the_extra_is_named(
    machine_gpu: Callable[[int], None], request_of: Callable[..., BuildRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_gpu(90)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r'tensorrt cannot be imported.*pip install "telecine\[tensorrt\]"'):
        build_engines(request_of())


def test_a_family_that_this_telecine_does_not_know_is_refused(
    tensorrt_double: Install, request_of: Callable[..., BuildRequest], edited_bundle: Callable[..., Path]
) -> None:
    tensorrt_double("11.4.0")
    base = request_of()
    other = Bundle.open(edited_bundle(base.bundle.root, family="wan"))
    with pytest.raises(BundleError, match="holds a wan model"):
        build_engines(dataclasses.replace(base, bundle=other))


def test_a_precision_that_the_gpu_cannot_compute_is_refused(
    tensorrt_double: Install,
    machine_gpu: Callable[[int], None],
    request_of: Callable[..., BuildRequest],
    edited_bundle: Callable[..., Path],
) -> None:
    tensorrt_double("11.4.0")
    machine_gpu(86)
    base = request_of()
    parts = base.bundle.manifest.components
    fp8 = parts | {"transformer": dataclasses.replace(parts["transformer"], precision="fp8")}
    request = dataclasses.replace(
        base, bundle=Bundle.open(edited_bundle(base.bundle.root, components=fp8)), targets=("trt-sm86",)
    )
    with pytest.raises(EngineError, match="transformer is fp8, and the target trt-sm86 has sm86"):
        build_engines(request)
    assert not request.folder.exists()
