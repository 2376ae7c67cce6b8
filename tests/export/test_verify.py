"""`telecine verify` passes on what export wrote, and names the stage where anything else was put in its place."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers.utils.logging as diffusers_logging
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from telecine.backends.base import Session
from telecine.bundle import Bundle, sha256
from telecine.cli import main
from telecine.errors import BackendError, RequestError, SourceError
from telecine.manifest import FILE_NAME, FileEntry
from telecine_export.family import family_of
from telecine_export.source import open_source
from telecine_export.verify import Report, as_text, checks, verify_bundle
from telecine_export.verify.bundle import CHECKS
from telecine_export.verify.comparison import TOLERANCES, Pair, stage_report

HOST_MATH = ["denoise_step", "decoder_latents", "uint8_frames"]
COMPONENTS = ["tokenizer", "text_encoder", "transformer", "vae_encoder", "vae_decoder", *HOST_MATH]
RUN = ["prompt_embeds", "noise", "schedule", "rope", "latents", "decode_input", "frames"]


def run_cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def verify(bundle: Path, source: Path, stages: Sequence[str] | None = None) -> Report:
    return verify_bundle(bundle, open_source(str(source)), stages=stages)


def failed(report: Report) -> list[str]:
    return [stage.name for stage in report.stages if not stage.passed]


def detail(report: Report, name: str) -> str:
    (text,) = [stage.detail for stage in report.stages if stage.name == name]
    assert text is not None
    return text


def assert_sizes_were_not_traced(source: Path, report: dict[str, Any]) -> None:
    """Every free axis of every graph is run at sizes that differ from the traced one; batches also at it."""
    checked = {stage["name"]: [case["shapes"] for case in stage["cases"]] for stage in report["stages"]}
    for spec in family_of(open_source(str(source))).graphs(open_source(str(source))):
        for name, axes in spec.axes.items():
            for axis, rule in axes.items():
                sizes = {shapes[name][axis] for shapes in checked[spec.component]}
                traced = spec.sample[name].shape[axis]
                assert len(sizes - {traced}) >= 2, (spec.component, name, axis)
                assert rule == "batch" or traced not in sizes, (spec.component, name, axis)
    forms = [(shapes["timestep"][1], shapes["hidden_states"][1]) for shapes in checked["transformer"]]
    assert {steps == 1 for steps, _ in forms} == {True, False}
    assert all(steps in (1, tokens) and tokens > 1 for steps, tokens in forms)


@pytest.fixture
def perturbed(tiny_bundle: Path, tmp_path: Path) -> Callable[[str, float], Path]:
    """`perturbed(component, change)`: `tiny_bundle` with 64 of a component's weights changed by so much."""

    def perturb(component: str, change: float) -> Path:
        copy = tmp_path / "perturbed"
        shutil.copytree(tiny_bundle, copy)
        weights = np.fromfile(copy / component / "weights.bin", np.float32)
        used = np.flatnonzero(weights)  # not the padding between tensors
        middle = len(used) // 2
        weights[used[middle : middle + 64]] += change  # one alone may hardly matter
        weights.tofile(copy / component / "weights.bin")
        return copy

    return perturb


@pytest.mark.parametrize("variant", ["tiny", "plain"])
def test_an_exported_bundle_passes_every_stage(variant: str, request: pytest.FixtureRequest) -> None:
    verbosity = diffusers_logging.get_verbosity()
    bundle, source = (request.getfixturevalue(f"{variant}_{kind}") for kind in ("bundle", "source"))
    result = run_cli(bundle, source, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)  # so nothing else is on stdout
    assert report["passed"] is True
    assert report["first_divergence"] is None
    assert [stage["name"] for stage in report["stages"]] == COMPONENTS + RUN
    assert CHECKS["ltx-video"].stages(Bundle.open(bundle)) == COMPONENTS + RUN
    assert set(TOLERANCES) == {name for each in CHECKS.values() for name in (*each.components, *each.run_stages)}
    for stage in report["stages"]:
        assert stage["passed"]
        assert stage["detail"] is None  # and so the frames are not grey
        assert stage["shapes"]
        assert stage["mean_abs"] <= stage["max_abs"] <= stage["tolerance"]
        assert stage["cosine"] > 0.999999
        assert stage["max_abs"] == 0 or stage["psnr"] > 110
    assert_sizes_were_not_traced(source, report)
    exact = {stage["name"] for stage in report["stages"] if stage["tolerance"] == 0}
    assert exact == {"tokenizer", "uint8_frames", "noise", "schedule"}
    assert diffusers_logging.get_verbosity() == verbosity


# diffusers' condition pipeline cannot shift by the number of tokens.
SCHEDULERS = {
    "LTXImageToVideoPipeline": {},
    "LTXConditionPipeline": {"use_dynamic_shifting": False, "shift_terminal": None},
}


def as_pipeline(kind: str, bundle: Path, source: Path, folder: Path) -> tuple[Path, Path]:
    """A bundle and its source, as if they had been published as another pipeline."""
    model = folder / "source"
    shutil.copytree(source, model)
    for file, changes in (
        ("model_index.json", {"_class_name": kind}),
        ("scheduler/scheduler_config.json", SCHEDULERS[kind]),
    ):
        (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | changes))
    copy = folder / "bundle"
    shutil.copytree(bundle, copy)
    manifest = Bundle.open(bundle).manifest
    host = dict(manifest.host) | {"scheduler": dict(manifest.host["scheduler"]) | SCHEDULERS[kind]}
    (copy / FILE_NAME).write_text(dataclasses.replace(manifest, pipeline=kind, host=host).dump())
    return copy, model


@pytest.mark.parametrize("kind", SCHEDULERS)
# VAEs of 0.9.5, of 0.9.0's kind, and of 0.9.1's: the last differs in its decoder, whose parity has tests of its own.
@pytest.mark.parametrize("variant", ["tiny", "plain", pytest.param("noisy", marks=pytest.mark.slow)])
def test_pipelines_of_conditioned_video_pass_every_stage(
    variant: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle, source = (request.getfixturevalue(f"{variant}_{part}") for part in ("bundle", "source"))
    report = verify(*as_pipeline(kind, bundle, source, tmp_path), ["vae_encoder", "vae_decoder", *RUN])
    assert failed(report) == []
    assert [stage.detail for stage in report.stages] == [None] * len(report.stages)
    (latents,) = [stage for stage in report.stages if stage.name == "latents"]
    assert latents.cases[0].case == "conditions"


def test_a_condition_that_is_encoded_otherwise_is_told_from_noise(
    perturbed: Callable[[str, float], Path], tiny_source: Path, tmp_path: Path
) -> None:
    bundle, source = as_pipeline("LTXImageToVideoPipeline", perturbed("vae_encoder", 0.1), tiny_source, tmp_path)
    report = verify(bundle, source, RUN)
    assert report.first_divergence == "latents"
    assert detail(report, "latents").startswith("conditions: max abs")


def test_a_changed_transformer_weight_is_named_by_the_cli(
    perturbed: Callable[[str, float], Path], tiny_source: Path
) -> None:
    result = run_cli(perturbed("transformer", 0.1), tiny_source)
    assert result.exit_code == 1
    *table, last = result.stdout.splitlines()
    assert last == "diverges first at transformer"
    states = {line.split()[0]: line.split()[1] for line in table if len(line.split()) > 1}
    assert [states[name] for name in ("tokenizer", "text_encoder", "vae_decoder", "rope")] == ["ok"] * 4
    assert [states[name] for name in ("transformer", "latents")] == ["FAILED"] * 2
    assert any(line.startswith("latents: after step 1: max abs") for line in table)


@pytest.mark.parametrize("change", [0.1, math.nan])
def test_a_changed_decoder_weight_is_caught_and_stays_json(
    change: float, perturbed: Callable[[str, float], Path], tiny_source: Path
) -> None:
    report = verify(perturbed("vae_decoder", change), tiny_source, ["vae_encoder", "vae_decoder"])
    assert report.first_divergence == "vae_decoder"
    assert failed(report) == ["vae_decoder"]
    assert ("NaN" in detail(report, "vae_decoder")) == math.isnan(change)
    json.dumps(dataclasses.asdict(report), allow_nan=False)
    assert as_text(report).endswith("diverges first at vae_decoder")


def test_a_source_with_other_weights_is_caught_at_its_component(
    tiny_bundle: Path, tiny_source: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    path = source / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.final_layer_norm.weight"][3] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    report = verify(tiny_bundle, source, ["tokenizer", "text_encoder", "vae_encoder"])
    assert failed(report) == ["text_encoder"]


def test_another_tokenizer_is_caught_with_the_prompt(
    tiny_bundle: Path, tiny_source: Path, edited_bundle: Callable[..., Path]
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    path = edited_bundle(tiny_bundle) / manifest.tokenizer.path
    content = json.loads(path.read_text())
    content["model"]["vocab"][10], content["model"]["vocab"][11] = content["model"]["vocab"][11:9:-1]
    path.unlink()  # a hard link to the shared bundle's
    path.write_text(json.dumps(content))
    entry = FileEntry(path=manifest.tokenizer.path, size=path.stat().st_size, sha256=sha256(path))
    manifest = dataclasses.replace(manifest, tokenizer=entry)
    (path.parents[1] / "telecine.json").write_text(manifest.dump())
    report = verify(path.parents[1], tiny_source, ["tokenizer"])
    assert failed(report) == ["tokenizer"]
    assert "tokens: max abs" in detail(report, "tokenizer")


@pytest.mark.parametrize(
    ("field", "change", "stage"),
    [
        ("scheduler", lambda scheduler: scheduler | {"max_shift": 2.06}, "schedule"),
        ("rope_frequencies", lambda values: [*values[:-1], values[-1] * (1 + 2e-7)], "rope"),
        ("temporal_ratio", lambda ratio: 4, "noise"),
        ("latents_mean", lambda means: [means[0] + 1e-3, *means[1:]], "decode_input"),
    ],
)
def test_other_host_math_is_caught_at_its_stage_of_the_run(
    field: str,
    change: Callable[[Any], Any],
    stage: str,
    tiny_bundle: Path,
    tiny_source: Path,
    edited_bundle: Callable[..., Path],
) -> None:
    value = Bundle.open(tiny_bundle).manifest.host[field]
    report = verify(edited_bundle(tiny_bundle, host={field: change(value)}), tiny_source, RUN)
    assert report.first_divergence == stage
    assert RUN.index(stage) == next(i for i, name in enumerate(RUN) if name in failed(report))


def test_only_the_named_stages_run_and_load(
    tiny_bundle: Path, tiny_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_session = checks.open_session

    def spy(bundle: Bundle, component: str, role: str = "main") -> Session:
        opened.append(component)
        return open_session(bundle, component, role)

    monkeypatch.setattr(checks, "open_session", spy)
    result = run_cli(tiny_bundle, tiny_source, "--stage", "vae_encoder", "--stage", "tokenizer")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("verified: tokenizer, vae_encoder (")
    assert opened == ["vae_encoder"]


def test_an_unknown_stage_lists_the_known_ones(tiny_bundle: Path, tiny_source: Path) -> None:
    with pytest.raises(RequestError, match=r"stage decoder; expected some of tokenizer, .*vae_decoder, .*frames"):
        verify(tiny_bundle, tiny_source, ["transformer", "decoder"])
    result = run_cli(tiny_bundle, tiny_source, "--stage", "decoder")
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_graph_that_fails_fails_its_stage_and_not_the_later_ones(
    tiny_bundle: Path, tiny_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_session = checks.open_session

    def broken(bundle: Bundle, component: str, role: str = "main") -> Session:
        if component == "transformer":
            raise BackendError("no such operator", expected="another graph", fix="Export again.")
        return open_session(bundle, component, role)

    monkeypatch.setattr(checks, "open_session", broken)
    report = verify(tiny_bundle, tiny_source, ["transformer", "vae_encoder", "latents"])
    assert failed(report) == ["transformer", "latents"]
    assert detail(report, "transformer").startswith("no such operator")
    assert detail(report, "latents").startswith("not reached: no such operator")


def test_a_run_that_stops_halfway_is_compared_as_far_as_it_came(
    tiny_bundle: Path, tiny_source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = checks.RecordingSession.enqueue

    def broken(session: checks.RecordingSession, stream: int = 0) -> None:
        if "latents" in session.inputs:
            raise BackendError("out of memory", expected="less", fix="Ask for less.")
        enqueue(session, stream)

    monkeypatch.setattr(checks.RecordingSession, "enqueue", broken)
    report = verify(tiny_bundle, tiny_source, RUN)
    assert failed(report) == ["decode_input", "frames"]
    assert detail(report, "frames").startswith("not reached: out of memory")


@pytest.mark.parametrize(
    ("fields", "message"), [({"family": "cogvideox"}, "cogvideox"), ({"pipeline": "LTXConditionPipeline"}, "LTXPipel")]
)
def test_a_bundle_of_another_kind_is_refused(
    fields: dict[str, str], message: str, tiny_bundle: Path, tiny_source: Path, edited_bundle: Callable[..., Path]
) -> None:
    with pytest.raises(SourceError, match=message):
        verify(edited_bundle(tiny_bundle, **fields), tiny_source)


def test_a_bundle_with_other_tensors_is_refused(plain_bundle: Path, tiny_source: Path) -> None:
    with pytest.raises(SourceError, match=r"timestep of .*vae_decoder is missing; expected \(batch\)"):
        verify(plain_bundle, tiny_source)


def test_a_source_with_wider_layers_is_refused(tiny_bundle: Path, tiny_source: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    path = source / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[name] = tensors[name].repeat(1, 2)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(SourceError, match=rf"{name} of .*text_encoder is \(64, 32\); expected \(32, 128\)"):
        verify(tiny_bundle, source, ["tokenizer"])


def pair(got: Any, expected: Any) -> Pair:
    arrays = [np.asarray(values, np.float32) for values in (got, expected)]
    return Pair(case="case", shapes={"x": arrays[1].shape}, got=arrays[0], expected=arrays[1])


def test_figures_are_those_of_a_naive_loop() -> None:
    random = np.random.default_rng(0)
    expected = random.standard_normal(1000) * 7
    got = expected + random.standard_normal(1000) * 1e-5
    values = pair(got, expected)
    report = stage_report("vae_decoder", [values], seconds=1.0)
    ours, theirs = values.got.astype(float).tolist(), values.expected.astype(float).tolist()
    errors = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    assert report.max_abs == max(errors)
    assert report.mean_abs == pytest.approx(sum(errors) / 1000)
    mse = sum(error * error for error in errors) / 1000
    assert report.psnr == pytest.approx(10 * math.log10((max(theirs) - min(theirs)) ** 2 / mse))
    dot = sum(a * b for a, b in zip(ours, theirs, strict=True))
    assert report.cosine == pytest.approx(dot / math.hypot(*ours) / math.hypot(*theirs), abs=1e-12)
    assert report.tolerance == pytest.approx(3e-5 * math.sqrt(sum(b * b for b in theirs) / 1000))
    assert report.passed


def test_limits_are_kept_on_either_side() -> None:
    frames = np.linspace(0, 1, 1000)
    largest, mean = TOLERANCES["frames"].largest, TOLERANCES["frames"].mean
    assert mean is not None
    spike = np.zeros(1000)
    for size, passed in ((0.9 * largest, True), (1.1 * largest, False)):
        spike[7] = size
        assert stage_report("frames", [pair(frames + spike, frames)], seconds=None).passed is passed
    for size, passed in ((0.9 * mean, True), (1.2 * mean, False)):
        assert stage_report("frames", [pair(frames + size, frames)], seconds=None).passed is passed
    assert not stage_report("noise", [pair(frames + 1e-6, frames)], seconds=None).passed


def test_a_grey_clip_and_another_shape_are_told() -> None:
    grey = np.full((2, 8), 0.5)
    flat = stage_report("frames", [pair(grey, grey)], seconds=None)
    assert flat.passed
    assert flat.detail is not None
    assert "proves little" in flat.detail
    short = stage_report("frames", [pair(grey[:1], grey)], seconds=None)
    assert not short.passed
    assert short.detail == "case: shape (1, 8), torch's is (2, 8)"


def test_the_first_case_that_fails_is_named_and_the_worst_one_measured() -> None:
    ones = np.ones(4)
    report = stage_report("latents", [pair(ones * (1 + error), ones) for error in (0, 1e-3, 0.5)], seconds=None)
    assert report.max_abs == pytest.approx(0.5)
    assert report.detail is not None
    assert "max abs 0.001 " in report.detail
    assert [case.passed for case in report.cases] == [True, False, False]


def test_older_bundles_have_no_host_math_to_verify(
    tiny_bundle: Path, tiny_source: Path, edited_bundle: Callable[..., Path]
) -> None:
    parts = Bundle.open(tiny_bundle).manifest.components
    older = edited_bundle(tiny_bundle, components={name: part for name, part in parts.items() if name not in HOST_MATH})
    assert (
        CHECKS["ltx-video"].stages(Bundle.open(older)) == [name for name in COMPONENTS if name not in HOST_MATH] + RUN
    )
    assert verify(older, tiny_source, ["tokenizer"]).passed
    with pytest.raises(RequestError, match="stage denoise_step"):
        verify(older, tiny_source, ["denoise_step"])
