"""The quality gate: what passes, what is named and promoted, and what that costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_model.settings import CHECKPOINT

from telecine.bundle import Bundle
from telecine.errors import BundleError, RequestError, SourceError
from telecine.inspection import as_text
from telecine.manifest import Manifest, Quality
from telecine.picture_quality import compare_clips
from telecine_export import export as module
from telecine_export.export import export_bundle
from telecine_export.precision import gate as gates
from telecine_export.precision import reference
from telecine_export.precision.gate import FLOORS, Gate, passes
from telecine_export.precision.typed import ComponentPlan
from telecine_export.source import open_source


class Judge:
    """Pictures that get better by a decibel a promoted module, without any being made."""

    reference = trial = None

    def __init__(self, start: float) -> None:
        self.start, self.written = start, list[Mapping[str, ComponentPlan]]()

    def compare(self, candidate: Any, components: Sequence[str]) -> Any:
        promoted = sum(len(plan.kept) for plan in self.written[-1].values())
        decibels = 60 if list(components) == ["vae_decoder"] else self.start + promoted
        error = 10 ** (-decibels / 20)
        reference = np.full((2, 8, 8, 3), 0.5, np.float32)
        return compare_clips(reference + np.float32(error), reference)


@pytest.fixture
def decide(demo_bundles: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`decide(start, gate)`: the gate's verdict on a transformer whose blocks 0 to 4 lose less and less."""
    bundle = Bundle.open(demo_bundles / "fp16")
    plans = {"transformer": ComponentPlan(precision="fp8"), "vae_decoder": ComponentPlan(precision="fp16")}

    def errors(judge: Any, component: str, specs: Any, traces: Any, plan: ComponentPlan) -> dict[str, float]:
        every = {f"blocks.{number}": 0.5 / (1 + number) for number in range(5)}
        return {name: error for name, error in every.items() if name not in plan.kept}

    monkeypatch.setattr(gates, "_errors", errors)

    def run(start: float, gate: Gate) -> tuple[Quality, list[Mapping[str, ComponentPlan]]]:
        judge = Judge(start)

        def write(plans: Mapping[str, ComponentPlan]) -> Bundle:
            judge.written.append(plans)
            return bundle

        quality = gates.pass_gate(judge, gate, [], None, plans, write)  # type: ignore[arg-type]
        return quality, judge.written

    return run


def test_what_reaches_the_floor_is_written_once(decide: Any) -> None:
    quality, written = decide(30.0, Gate())
    assert len(written) == 1
    assert (quality.measured, quality.floor, quality.promoted, quality.promoted_psnr) == (True, 28.0, (), None)
    assert quality.psnr == pytest.approx(30, abs=0.01)
    assert set(quality.components) == {"transformer", "vae_decoder"}


def test_below_the_floor_the_worst_layers_are_named(decide: Any) -> None:
    with pytest.raises(SourceError) as raised:
        decide(20.0, Gate())
    text = str(raised.value)
    assert "PSNR 20.0 dB" in text
    assert "at least 28 dB" in text
    assert "blocks.0 (0.5), blocks.1 (0.25), blocks.2 (0.17)" in text
    assert "--auto-promote" in text


def test_promotion_takes_the_worst_and_tells_the_cost(decide: Any) -> None:
    quality, written = decide(26.5, Gate(auto_promote=True))
    assert quality.promoted == ("transformer/blocks.0", "transformer/blocks.1")
    assert written[-1]["transformer"].kept == {"blocks.0", "blocks.1"}
    assert written[-1]["vae_decoder"].kept == frozenset()
    assert quality.promoted_psnr == pytest.approx(26.5, abs=0.01)
    assert quality.psnr == pytest.approx(28.5, abs=0.01)


def test_what_promotion_cannot_mend_is_refused(decide: Any) -> None:
    with pytest.raises(SourceError, match="with 10 modules promoted: transformer loses most"):
        decide(10.0, Gate(auto_promote=True))


def test_nan_and_black_frames_do_not_pass() -> None:
    reference = np.full((2, 8, 8, 3), 0.5, np.float32)
    assert passes(compare_clips(reference, reference), 40)
    for value in (np.nan, 0.0):
        broken = reference.copy()
        broken[0] = value
        assert not passes(compare_clips(broken, reference), 0.1)
    nan = dataclasses.replace(compare_clips(reference, reference), psnr=math.nan)
    assert not passes(nan, 0.1)


@pytest.mark.parametrize("floor", [0.0, -3.0, 200.0, math.nan])
def test_floors_out_of_range_are_refused(floor: float) -> None:
    with pytest.raises(RequestError, match="decibels above 0"):
        Gate(floor=floor)


def test_a_whole_number_is_a_floor_that_a_manifest_holds(decide: Any, demo_bundles: Path) -> None:
    quality, _ = decide(30.0, Gate(floor=5))
    manifest = dataclasses.replace(Bundle.open(demo_bundles / "fp16").manifest, quality=quality)
    assert Manifest.parse(manifest.dump(), where="telecine.json").quality.floor == 5.0


def test_the_floor_is_the_lowest_precision_s() -> None:
    plans = {name: ComponentPlan(precision=name) for name in ("fp32", "fp16", "fp8")}
    assert Gate().floor_of(plans) == FLOORS["fp8"]
    assert Gate(floor=33.0).floor_of(plans) == 33.0
    assert Gate().floor_of({"a": plans["fp32"], "b": plans["fp16"]}) == FLOORS["fp16"]


def test_the_demo_bundles_record_what_was_measured(demo_bundles: Path) -> None:
    for precision in ("fp16", "bf16", "fp8"):
        bundle = Bundle.open(demo_bundles / precision)
        quality = bundle.manifest.quality
        assert quality.measured
        assert quality.psnr is not None
        assert quality.floor == FLOORS[precision] <= quality.psnr
        assert quality.ssim is not None
        assert 0.95 < quality.ssim <= 1
        lowered = {name for name, part in bundle.manifest.components.items() if part.precision != "fp32"}
        assert set(quality.components) == lowered == {"text_encoder", "transformer", "vae_encoder", "vae_decoder"}
        text = as_text(bundle, weights_checked=False)
        assert f"quality next to fp32: PSNR {quality.psnr:.1f} dB (floor {quality.floor:g} dB)" in text
        assert "transformer alone:" in text
    exact = Bundle.open(demo_bundles / "fp32")
    assert exact.manifest.quality == Quality()
    assert "quality next to" not in as_text(exact, weights_checked=False)


def test_a_bundle_that_was_not_measured_says_so(demo_bundles: Path, edited_bundle: Any) -> None:
    bundle = Bundle.open(edited_bundle(demo_bundles / "fp16", quality=Quality()))
    assert "quality next to fp32: not measured" in as_text(bundle, weights_checked=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "fp32"}, "a reference for a bundle at fp32"),
        ({"precision": "fp16", "reference": "fp32", "gate": None}, "a reference for a bundle at fp16"),
        ({"precision": "fp16", "calibration": module.Calibration()}, "a calibration for a bundle at fp16"),
        ({"gate": Gate(floor=30.0)}, "a floor or promotion for a bundle at fp32"),
        ({"precision": "bf16", "components": {"vae_decoder": "fp8"}}, "fp8 for vae_decoder: 3D convolutions"),
    ],
)
def test_options_that_would_not_act_are_refused(
    options: dict[str, Any], message: str, demo_bundles: Path, tmp_path: Path
) -> None:
    if "reference" in options:
        options = {**options, "reference": demo_bundles / options["reference"]}
    with pytest.raises(SourceError, match=message):
        export_bundle(open_source(str(CHECKPOINT)), tmp_path / "bundle", **options)
    assert not list(tmp_path.iterdir())


def test_a_reference_of_another_precision_is_refused(demo_bundles: Path, tmp_path: Path) -> None:
    source = open_source(str(CHECKPOINT))
    with pytest.raises(BundleError, match="at fp16, fp32; expected .* at fp32"):
        export_bundle(source, tmp_path / "bundle", precision="fp16", reference=demo_bundles / "fp16")
    assert not list(tmp_path.iterdir())


def test_a_machine_too_small_for_float32_is_told_before_tracing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 99 kB\nMemAvailable: 12 kB\n")
    monkeypatch.setattr(reference, "MEMORY", memory)
    monkeypatch.setattr(module.Traces, "get", lambda *_: pytest.fail("traced for nothing"))
    with pytest.raises(RequestError, match=r"0\.0 GB of memory available; expected .*--no-gate"):
        export_bundle(open_source(str(CHECKPOINT)), tmp_path / "bundle", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["meminfo"]


def test_a_temporary_reference_is_gone_afterwards(demo_bundles: Path, tmp_path: Path) -> None:
    source = open_source(str(CHECKPOINT))
    made: list[Path] = []

    def export(path: Path) -> Bundle:
        made.append(path)
        path.mkdir()
        return Bundle.open(demo_bundles / "fp32")

    with reference.reference_bundle(None, source, [], tmp_path, export):
        assert made[0].is_dir()
        assert tmp_path in made[0].parents
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_lower_precision_exports_by_itself(tmp_path: Path) -> None:
    bundle = export_bundle(open_source(str(CHECKPOINT)), tmp_path / "bundle", precision="fp16")
    assert bundle.manifest.quality.measured
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == sorted(
        [*bundle.manifest.components, "telecine.json", "tokenizer"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
