"""Refitted plans on a double of TensorRT's Refitter. No plan here was executed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from doubles.cuda_runtime import CudaDouble
from doubles.plans import write_plan
from doubles.tensorrt_builder import read_plan
from doubles.tensorrt_network import Network
from doubles.tensorrt_types import DataType
from lora_files import factors, write_lora

from telecine.bundle import Bundle
from telecine.cli import main
from telecine.engine import Sidecar, sidecar_path
from telecine.errors import EngineError
from telecine.initializers import read_initializers
from telecine.lora import Lora
from telecine.refit import refitted_bundle
from telecine_engines.build import BuildRequest, build_engines, plan_engines
from telecine_engines.options import BuildOptions
from telecine_engines.refit import refit_engines

Write = Callable[..., Path]


def contents(graph: Path) -> dict[str, bytes]:
    """Every initializer of a graph."""
    return {name: each.read().tobytes() for name, each in read_initializers(graph).items()}


def weights(plan: Path) -> dict[str, bytes]:
    """What refitting put into a plan of the double."""
    return {name: bytes.fromhex(values) for name, values in read_plan(plan)["weights"].items()}


@pytest.fixture
def tensorrt_installed(tensorrt: Callable[..., Any]) -> Any:
    """The double of TensorRT 11, and a GPU."""
    return tensorrt()


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def write(tiny_bundle: Path, engines: Path) -> Write:
    """`write("transformer", refit=True)`: a plan of the bundle's, and its sidecar."""

    def make(component: str = "transformer", **fields: Any) -> Path:
        return write_plan(Bundle.open(tiny_bundle), component, engines=engines, **{"refit": True} | fields)

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


@pytest.mark.parametrize("version_compatible", [False, True])
def test_every_weight_is_the_refitted_bundle_s(
    version_compatible: bool, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt_installed: Any
) -> None:
    old = write(version_compatible=version_compatible)
    before = old.read_bytes()
    done = refit_engines(Bundle.open(tiny_bundle), refitted, engines)
    assert list(done.values()) == ["refitted"]
    plan, sidecar = plans(refitted)["transformer.main.plan"]
    assert not read_plan(plan)["host_code"]
    expected = contents(refitted.path(refitted.graph("transformer").file))
    assert weights(plan) == expected
    assert expected != contents(tiny_bundle / "transformer" / "main.onnx")
    assert sidecar.weights_sha256 == refitted.component("transformer").weights.sha256
    assert (sidecar.plan_size, sidecar.plan_sha256) == (
        plan.stat().st_size,
        hashlib.sha256(plan.read_bytes()).hexdigest(),
    )
    original = Sidecar.read(sidecar_path(old))
    changed = {"key", "plan_size", "plan_sha256", "weights_sha256", "options"}
    for field in dataclasses.fields(Sidecar):
        assert (getattr(sidecar, field.name) != getattr(original, field.name)) <= (field.name in changed)
    assert plan.parent.name == sidecar.key != original.key
    assert old.read_bytes() == before


def test_a_refitted_plan_can_be_refitted_again(
    tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt_installed: Any, tmp_path: Path
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
    tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: Callable[..., Any]
) -> None:
    tensorrt("tensorrt", "10.9.0.34")
    write(version="10.9.0.34")
    refit_engines(Bundle.open(tiny_bundle), refitted, engines)
    plan, sidecar = plans(refitted)["transformer.main.plan"]
    assert (sidecar.refit, read_plan(plan)["refit"]) == (False, False)


def test_a_build_finds_refitted_plans(
    tiny_bundle: Path, refitted: Bundle, engines: Path, tensorrt_installed: Any
) -> None:
    """Their keys are those that the build would give them, with the same options and workloads."""
    request = BuildRequest(
        bundle=Bundle.open(tiny_bundle),
        targets=("trt-sm89",),
        workloads=("64x96x9",),
        options=BuildOptions(refit=True),
        engines=engines,
    )
    build_engines(request)
    refit_engines(request.bundle, refitted, engines)
    planned = plan_engines(dataclasses.replace(request, bundle=refitted, engines=None)).plans
    assert {plan.component: plan.done is not None for plan in planned} == dict.fromkeys(
        refitted.manifest.components, True
    )
    without = dataclasses.replace(request, bundle=refitted, engines=None, options=BuildOptions())
    assert [plan.component for plan in plan_engines(without).plans if plan.done] == []


def test_what_needs_no_gpu(
    tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
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
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt_installed: Any
    ) -> None:
        plan = write()
        plan.write_bytes(plan.read_bytes()[:-1] + b" ")
        self.refused("has changed: its SHA-256 is another", tiny_bundle, refitted, engines)

    def test_another_version(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt_installed: Any
    ) -> None:
        write(version="10.8.0.43")
        self.refused(r"tensorrt is version 11\.4.*expected tensorrt 10\.8\.0\.43", tiny_bundle, refitted, engines)

    def test_a_newer_version_that_opens_it(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: Callable[..., Any]
    ) -> None:
        """The lean runtime runs the plan; only the version that built it writes it again."""
        tensorrt("tensorrt_lean")
        tensorrt("tensorrt")
        write(version="11.2.0.1", version_compatible=True)
        self.refused(r"tensorrt is version 11\.4.*expected tensorrt 11\.2\.0\.1", tiny_bundle, refitted, engines)

    def test_no_gpu(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, gpu: CudaDouble,
        tensorrt_installed: Any,
    ) -> None:  # fmt: skip
        gpu.driver = 0
        write()
        self.refused("no NVIDIA driver.*leave --engines out", tiny_bundle, refitted, engines)

    def test_another_gpu(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt_installed: Any
    ) -> None:
        write(capabilities=("9.0",))
        self.refused("is for compute capability 9.0; expected 8.9", tiny_bundle, refitted, engines)

    def test_no_package(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: Callable[..., Any]
    ) -> None:
        tensorrt("tensorrt_rtx")
        write()
        self.refused(r"tensorrt cannot be imported.*telecine\[tensorrt\]", tiny_bundle, refitted, engines)

    @pytest.mark.parametrize(
        ("held", "problem"),
        [
            ({"proj_in.weight": (DataType.HALF, 2048)}, "refuses proj_in.weight: .*of another type or size"),
            ({"fused.weight": (DataType.FLOAT, 4)}, "has weights called fused.weight"),
        ],
    )
    def test_weights_that_do_not_fit(
        self, held: dict[str, tuple[DataType, int]], problem: str, tiny_bundle: Path, refitted: Bundle, engines: Path,
        write: Write, tensorrt_installed: Any, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        write()
        monkeypatch.setattr(Network, "weights", lambda self: held)
        self.refused(problem, tiny_bundle, refitted, engines)

    def test_a_plan_that_does_not_open(
        self, tiny_bundle: Path, refitted: Bundle, engines: Path, write: Write, tensorrt: Callable[..., Any]
    ) -> None:
        real = tensorrt().Runtime
        real.deserialize_cuda_engine = lambda self, plan: self._refuse("it is damaged")
        write()
        self.refused("tensorrt does not open .*: it is damaged", tiny_bundle, refitted, engines)


def test_the_command_leaves_no_bundle_where_plans_fail(
    tiny_bundle: Path, engines: Path, write: Write, tensorrt_installed: Any, tmp_path: Path
) -> None:
    file = write_lora(tmp_path / "style.safetensors", factors(tiny_bundle))
    arguments = ["refit", str(tiny_bundle), str(tmp_path / "out"), "--lora", str(file), "--engines", str(engines)]
    write(version="1.0")
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, (tmp_path / "out").exists()) == (1, False)
    write()
    for left in engines.rglob("*trt1.0*"):
        left.rename(tmp_path / "elsewhere")
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    assert list(json.loads(done.stdout)["plans"].values()) == ["refitted"]
    assert len(plans(Bundle.open(tmp_path / "out"))) == 1
