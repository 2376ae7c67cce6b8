"""Refitted plans on a double of TensorRT's Refitter. No plan here was executed."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from doubles import refitter as double
from lora_files import factors, write_lora

from telecine.bundle import Bundle
from telecine.cli import main
from telecine.engine import Sidecar, plan_path, sidecar_path
from telecine.errors import EngineError
from telecine.initializers import read_initializers
from telecine.lora import Lora
from telecine.refit import refitted_bundle
from telecine_engines import refit as module
from telecine_engines.refit import refit_engines

KINDS = {"float32": "FLOAT", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
Write = Callable[..., Path]


def contents(graph: Path) -> dict[str, tuple[str, bytes]]:
    """Every initializer of a graph, as a plan has it."""
    return {name: (KINDS[each.dtype], each.read().tobytes()) for name, each in read_initializers(graph).items()}


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The double, and a GPU."""
    api = double.make_module()
    gpu = SimpleNamespace(cudaGetDeviceCount=lambda: (0, 1))
    monkeypatch.setitem(sys.modules, "tensorrt", api)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", gpu)
    return api


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def write(tiny_bundle: Path, engines: Path) -> Write:
    """`write("transformer", refit=True)`: a plan of the bundle's, and its sidecar."""
    bundle = Bundle.open(tiny_bundle)

    def make(component: str = "transformer", *, content: bytes | None = None, **fields: Any) -> Path:
        part, graph = bundle.component(component), bundle.graph(component)
        refit = fields.get("refit", True)
        plan = content or double.make_plan(
            contents(bundle.path(graph.file)), refit=refit, host_code=fields.get("version_compatible", False)
        )
        sidecar = Sidecar(
            format=1, component=component, role="main", precision="fp32", target="trt-sm90", library="tensorrt",
            library_version=double.VERSION, platform="linux-x86_64", compute_capabilities=("9.0",),
            version_compatible=False, hardware_compatibility="NONE", key="0123456789abcdef", plan_size=len(plan),
            plan_sha256=hashlib.sha256(plan).hexdigest(), graph_sha256=graph.file.sha256,
            weights_sha256=part.weights.sha256, inputs=graph.inputs, outputs=graph.outputs, profiles=({},),
            workloads=("64x96x9@b1",), options={}, refit=True, stripped=False, weight_streaming=False, precisions={},
            layers=3, fused_attention=None, build_seconds=1.0, build_peak_bytes=1,
        )  # fmt: skip
        sidecar = dataclasses.replace(sidecar, **fields)
        path = plan_path(
            engines, target=sidecar.target, library_version=sidecar.library_version, key=sidecar.key,
            component=component, role="main",
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(plan)
        sidecar_path(path).write_text(sidecar.dump())
        return path

    return make


@pytest.fixture
def refitted(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    file = write_lora(tmp_path / "style.safetensors", factors(tiny_bundle))
    with refitted_bundle(Bundle.open(tiny_bundle), tmp_path / "out", loras=[Lora(file=file)], weights={}):
        pass
    return Bundle.open(tmp_path / "out")


def plans(bundle: Bundle) -> dict[str, tuple[Path, Sidecar]]:
    found = sorted((bundle.root / "engines").rglob("*.plan"))
    return {plan.name: (plan, Sidecar.read(sidecar_path(plan))) for plan in found}


def test_names_are_the_bindings() -> None:
    """Those of TensorRT for RTX, whose bindings load without a driver: both packages have one API."""
    real = pytest.importorskip("tensorrt_rtx")
    for name in ("Runtime", "Refitter", "ILogger", "Weights"):
        members = {member for member in vars(getattr(double, name)) if not member.startswith("_")}
        assert members - {"pointer", "Severity"} <= set(dir(getattr(real, name))), name
    for name in ("create_serialization_config", "serialize_with_config"):
        assert hasattr(real.ICudaEngine, name)
    assert hasattr(real.ISerializationConfig, "set_flag")
    for kind in (double.DataType, double.SerializationFlag):
        assert {member.name for member in kind} <= set(dir(getattr(real, kind.__name__)))
    assert set(module.DATA_TYPES.values()) == set(double.SIZES)


@pytest.mark.parametrize("version_compatible", [False, True])
def test_every_weight_is_the_refitted_bundle_s(
    version_compatible: bool, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: ModuleType
) -> None:
    old = write(version_compatible=version_compatible)
    before = old.read_bytes()
    done = refit_engines(Bundle.open(tiny_bundle), refitted, engines)
    assert list(done.values()) == ["refitted"]
    plan, sidecar = plans(refitted)["transformer.main.plan"]
    weights = json.loads(plan.read_bytes())["weights"]
    assert not json.loads(plan.read_bytes())["host_code"]
    expected = contents(refitted.path(refitted.graph("transformer").file))
    assert {name: (kind, bytes.fromhex(values)) for name, (kind, values) in weights.items()} == expected
    assert expected != contents(tiny_bundle / "transformer" / "main.onnx")
    assert sidecar.weights_sha256 == refitted.component("transformer").weights.sha256
    assert (sidecar.plan_size, sidecar.plan_sha256) == (
        plan.stat().st_size,
        hashlib.sha256(plan.read_bytes()).hexdigest(),
    )
    original = Sidecar.read(sidecar_path(old))
    changed = {"key", "plan_size", "plan_sha256", "weights_sha256"}
    for field in dataclasses.fields(Sidecar):
        assert (getattr(sidecar, field.name) != getattr(original, field.name)) <= (field.name in changed)
    assert plan.parent.name == sidecar.key != original.key
    assert old.read_bytes() == before


def test_a_refitted_plan_can_be_refitted_again(
    tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: ModuleType, tmp_path: Path
) -> None:
    """A, then B, then A: A's plan again."""
    write()
    refit_engines(Bundle.open(tiny_bundle), refitted, engines)
    first, _ = plans(refitted)["transformer.main.plan"]
    file = write_lora(tmp_path / "other.safetensors", factors(tiny_bundle, seed=4))
    made = [(refitted, tmp_path / "b", file), (None, tmp_path / "a", tmp_path / "style.safetensors")]
    engines_of = refitted
    for _, out, lora in made:
        with refitted_bundle(Bundle.open(tiny_bundle), out, loras=[Lora(file=lora)], weights={}) as bundle:
            assert list(refit_engines(engines_of, bundle, engines_of.root / "engines").values()) == ["refitted"]
        engines_of = Bundle.open(out)
    again, _ = plans(engines_of)["transformer.main.plan"]
    assert again.read_bytes() == first.read_bytes()
    between, _ = plans(Bundle.open(tmp_path / "b"))["transformer.main.plan"]
    assert between.read_bytes() != first.read_bytes()


def test_before_10_14_a_refitted_plan_is_final(
    tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tensorrt, "SerializationFlag", enum.Enum("SerializationFlag", ["EXCLUDE_WEIGHTS"]))
    write()
    refit_engines(Bundle.open(tiny_bundle), refitted, engines)
    plan, sidecar = plans(refitted)["transformer.main.plan"]
    assert (sidecar.refit, json.loads(plan.read_bytes())["refit"]) == (False, False)


def test_what_needs_no_gpu(
    tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    stripped = write(stripped=True, key="aaaaaaaaaaaaaaaa")
    fixed = write(refit=False, key="bbbbbbbbbbbbbbbb")
    kept = write("vae_decoder", refit=False)
    foreign = write(weights_sha256="0" * 64, key="cccccccccccccccc")
    done = refit_engines(Bundle.open(tiny_bundle), refitted, engines)
    assert {engines / name: what for name, what in done.items()} == {
        stripped: "copied: stripped",
        fixed: "left out: built without --refit",
        kept: "copied",
        foreign: "left out: of another bundle",
    }
    made = plans(refitted)
    assert set(made) == {"transformer.main.plan", "vae_decoder.main.plan"}
    plan, sidecar = made["transformer.main.plan"]
    assert plan.read_bytes() == stripped.read_bytes()
    assert sidecar.weights_sha256 == refitted.component("transformer").weights.sha256
    assert sidecar.stripped
    plan, sidecar = made["vae_decoder.main.plan"]
    assert plan.read_bytes() == kept.read_bytes()
    assert sidecar == Sidecar.read(sidecar_path(kept))


class TestRefused:
    def refused(self, problem: str, tiny_bundle: Path, refitted: Bundle, engines: Path) -> None:
        with pytest.raises(EngineError, match=problem):
            refit_engines(Bundle.open(tiny_bundle), refitted, engines)
        assert plans(refitted) == {}

    def test_a_changed_plan(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: ModuleType
    ) -> None:
        plan = write()
        plan.write_bytes(plan.read_bytes() + b" ")
        self.refused("has changed: its SHA-256 is another", tiny_bundle, refitted, engines)

    def test_another_version(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: ModuleType
    ) -> None:
        write(library_version="10.8.0.43")
        self.refused(r"tensorrt 11\.4.*expected 10\.8\.0\.43", tiny_bundle, refitted, engines)

    @pytest.mark.parametrize(
        ("runtime", "problem"),
        [(None, "cuda-bindings is not installed"), (SimpleNamespace(cudaGetDeviceCount=lambda: (35, 0)), "answers 35")],
    )
    def test_no_gpu(
        self, runtime: Any, problem: str, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write,
        tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
        write()
        self.refused(f"no GPU to refit plans on: .*{problem}", tiny_bundle, refitted, engines)

    def test_no_package(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        write()
        self.refused(r'tensorrt cannot be imported.*pip install "telecine\[tensorrt\]"', tiny_bundle, refitted, engines)

    @pytest.mark.parametrize(
        ("weights", "problem"),
        [
            ({"proj_in.weight": ("HALF", b"\0" * 2048)}, "refuses proj_in.weight: .*FLOAT of 4096 bytes, not HALF"),
            ({"fused.weight": ("FLOAT", b"\0" * 4)}, "has weights called fused.weight"),
        ],
    )
    def test_weights_that_do_not_fit(
        self, weights: dict[str, tuple[str, bytes]], problem: str, tiny_bundle: Path, refitted: Bundle, engines: Path,
        write: Write, tensorrt: ModuleType,
    ) -> None:  # fmt: skip
        write(content=double.make_plan(weights))
        self.refused(problem, tiny_bundle, refitted, engines)

    def test_a_plan_that_does_not_open(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: ModuleType
    ) -> None:
        write(content=double.make_plan({}, host_code=True))
        self.refused("tensorrt does not open the plan: the plan contains host code", tiny_bundle, refitted, engines)


def test_the_command_leaves_no_bundle_where_plans_fail(
    tiny_bundle: Path, engines: Path, write: Write, tensorrt: ModuleType, tmp_path: Path
) -> None:
    file = write_lora(tmp_path / "style.safetensors", factors(tiny_bundle))
    arguments = ["refit", str(tiny_bundle), str(tmp_path / "out"), "--lora", str(file), "--engines", str(engines)]
    write(library_version="1.0")
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, (tmp_path / "out").exists()) == (1, False)
    write()
    for left in engines.rglob("*trt1.0*"):
        left.rename(tmp_path / "elsewhere")
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    assert list(json.loads(done.stdout)["plans"].values()) == ["refitted"]
    assert len(plans(Bundle.open(tmp_path / "out"))) == 1
