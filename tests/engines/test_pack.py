"""Bundles of plans: opened like any other, refused where weights are needed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import telecine
from telecine.bundle import Bundle
from telecine.engine import Sidecar, sidecar_path
from telecine.errors import BundleError, EngineError, RequestError
from telecine.inspection import as_text
from telecine_engines.build import BuildRequest, build_engines
from telecine_engines.options import BuildOptions
from telecine_engines.pack import pack
from telecine_export.verify.checks import open_session

TARGET = "trt-sm90"


@pytest.fixture
def built(tiny_bundle: Path, tmp_path: Path, tensorrt_double: Callable[[str], Any]) -> Bundle:
    """A copy of a bundle with the double's plans in it."""
    tensorrt_double("11.4.0")
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    bundle = Bundle.open(root)
    build(bundle)
    return bundle


def build(bundle: Bundle, workload: str = "64x96x9", **options: Any) -> dict[Path, Sidecar]:
    request = BuildRequest(bundle=bundle, targets=(TARGET,), workloads=(workload,), options=BuildOptions(**options))
    return build_engines(request).sidecars


def test_a_packed_bundle_has_plans_and_no_weights(built: Bundle, tmp_path: Path) -> None:
    packed = pack(built, tmp_path / "box", targets=[TARGET])
    names = {path.name for path in packed.root.rglob("*") if path.is_file()}
    assert "weights.bin" not in names
    assert names >= {
        "telecine.json",
        "tokenizer.json",
        "main.onnx",
        *(f"{name}.main.plan" for name in components(built)),
    }
    for plan in packed.root.rglob("*.plan"):
        original = built.root / plan.relative_to(packed.root)
        assert plan.read_bytes() == original.read_bytes()
        assert Sidecar.read(sidecar_path(plan)) == Sidecar.read(sidecar_path(original))
    opened = Bundle.open(packed.root)
    opened.check_weights()
    for name, component in opened.manifest.components.items():
        assert component.packed
        assert dataclasses.replace(component, packed=False) == built.component(name)
    assert opened.manifest.host == built.manifest.host


def components(bundle: Bundle) -> list[str]:
    return list(bundle.manifest.components)


def test_what_needs_weights_refuses_it(built: Bundle, tmp_path: Path) -> None:
    packed = pack(built, tmp_path / "box", targets=[TARGET])
    with (
        telecine.load(packed.root, backend="onnxruntime") as pipe,
        pytest.raises(BundleError, match="holds text_encoder as engines only.*backend='tensorrt'"),
    ):
        pipe.generate(prompt="a red ball", height=64, width=64, num_frames=9, num_inference_steps=2, seed=0)
    with pytest.raises(BundleError, match="holds text_encoder as engines only"):
        build(packed, "64x96x17")
    with pytest.raises(BundleError, match="holds transformer as engines only"):
        open_session(packed, "transformer")


def test_the_newest_plans_of_each_target_are_taken(built: Bundle, tmp_path: Path) -> None:
    newer = build(built, "64x96x17")
    packed = pack(built, tmp_path / "box", targets=[TARGET])
    plans = {path.relative_to(packed.root) for path in packed.root.rglob("*.plan")}
    assert {path.relative_to(built.root) for path in newer} == plans


def test_plans_from_another_folder(built: Bundle, tmp_path: Path) -> None:
    shutil.move(built.root / "engines", tmp_path / "elsewhere")
    packed = pack(built, tmp_path / "box", targets=[TARGET], engines=tmp_path / "elsewhere")
    assert len(list((packed.root / "engines").rglob("*.plan"))) == len(components(built))


def test_a_missing_plan_is_told(built: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no plan of .*text_encoder.main.* for rtx-sm89.*plans for trt-sm90"):
        pack(built, tmp_path / "box", targets=["rtx-sm89"])
    next(built.root.rglob("transformer.main.plan")).unlink()
    with pytest.raises(EngineError, match="no plan of transformer.main for trt-sm90.*telecine build"):
        pack(built, tmp_path / "box", targets=[TARGET])
    assert not (tmp_path / "box").exists()


def test_plans_of_other_weights_do_not_count(built: Bundle, tmp_path: Path, edited_bundle: Callable[..., Path]) -> None:
    part = built.component("transformer")
    weights = dataclasses.replace(part.weights, sha256="0" * 64)
    changed = edited_bundle(
        built.root,
        components=dict(built.manifest.components) | {"transformer": dataclasses.replace(part, weights=weights)},
    )
    with pytest.raises(EngineError, match="no plan of transformer.main"):
        pack(Bundle.open(changed), tmp_path / "box", targets=[TARGET])


def test_a_changed_plan_is_refused_and_nothing_is_left(built: Bundle, tmp_path: Path) -> None:
    plan = next(built.root.rglob("transformer.main.plan"))
    content = plan.read_bytes()
    plan.write_bytes(content[:-1] + b"?")
    with pytest.raises(EngineError, match="transformer.main.plan has changed"):
        pack(built, tmp_path / "box", targets=[TARGET])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_stripped_plans_are_refused(built: Bundle, tmp_path: Path) -> None:
    build(built, strip_plan=True)
    with pytest.raises(EngineError, match="for trt-sm90 are stripped"):
        pack(built, tmp_path / "box", targets=[TARGET])


def test_a_bundle_is_replaced_only_on_request(built: Bundle, tmp_path: Path) -> None:
    pack(built, tmp_path / "box", targets=[TARGET])
    with pytest.raises(RequestError, match="exists and is not empty"):
        pack(built, tmp_path / "box", targets=[TARGET])
    pack(built, tmp_path / "box", targets=[TARGET], overwrite=True)


def test_inspect_lists_the_engines(built: Bundle, tmp_path: Path) -> None:
    text = as_text(built, weights_checked=False)
    assert "engine transformer.main for trt-sm90: tensorrt 11.4.0, fp32, " in text
    assert "64x96x9@b1" in text
    assert "profile 0: hidden_states [1, 12, 16]..[3, 36, 16], " in text
    packed = pack(built, tmp_path / "box", targets=[TARGET])
    text = as_text(packed, weights_checked=False)
    assert "parameters, 0 B of weights" in text
    assert "parameters, engines only" in text
    assert "engine vae_decoder.main for trt-sm90" in text


def test_a_damaged_sidecar_is_no_engine(built: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    sidecar_path(next(built.root.rglob("transformer.main.plan"))).write_text("{}")
    text = as_text(built, weights_checked=False)
    assert "engine transformer" not in text
    assert "transformer.main.plan is no engine" in caplog.text
