"""diffusers as a competitor: its stages, its operations, its process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from telecine.bench.competitor import run
from telecine.bench.fresh import measure_fresh
from telecine.bench.settings import Settings
from telecine.cli import main
from telecine.shapes import LatentShape
from telecine_export.bench.competitor import Diffusers, open_pipeline
from telecine_export.bench.flops import step_flops

SETTINGS = Settings(height=64, width=96, num_frames=9, num_inference_steps=3, threads=1)


def test_a_run_has_the_stages_that_ours_has(tiny_source: Path) -> None:
    diffusers = Diffusers(open_pipeline(str(tiny_source)), threads=1)
    first, second = run(diffusers, SETTINGS), run(diffusers, SETTINGS)
    for done in (first, second):
        assert set(done.stages) == {"text", "denoise", "network", "decode"}
        assert 0 < done.stages["network"] < done.stages["denoise"] < done.total[0]
        assert done.stages["text"] + done.stages["denoise"] + done.stages["decode"] <= done.total[0]
        assert len(done.steps) == 2
    assert diffusers.name == "diffusers"
    assert set(diffusers.versions()) == {"diffusers", "torch", "transformers"}


def test_its_own_process(tiny_source: Path) -> None:
    told = measure_fresh("telecine_export.bench.fresh", str(tiny_source), SETTINGS)
    assert 0 < told["step"] < told["first_step"] < told["total"]
    assert told["peak_memory"] > 2e8  # torch


def test_operations_grow_as_the_formula_says(tiny_source: Path) -> None:
    """2 blocks of width 64: products of (T, 64), attention of T x T and T x L, and what does not depend on T."""
    sizes = {frames: LatentShape(frames=frames, height=2, width=3) for frames in (1, 2, 3)}
    counted = {size.tokens: step_flops(str(tiny_source), size, batch=2, text_length=5) for size in sizes.values()}
    tokens = np.array(list(counted), float)
    squares, linear, _ = np.polyfit(tokens, np.array(list(counted.values()), float), 2)
    width, blocks, batch, channels, text = 64, 2, 2, 16, 5
    assert squares == pytest.approx(batch * blocks * 4 * width, rel=1e-6)
    products = 4 * width**2 + 2 * width**2 + 8 * width**2  # attention, that over text without K and V, feed-forward
    assert linear == pytest.approx(
        batch * (blocks * (2 * products + 4 * text * width) + 2 * 2 * channels * width), rel=1e-6
    )


def test_cogvideox_beside_diffusers(cogvideox: Callable[..., tuple[Path, Path]]) -> None:
    source, bundle = cogvideox("2b")
    command = ["bench", str(bundle), "--against", str(source), "--threads", "1"]
    size = ["--width", "48", "--height", "32", "--num-frames", "9", "--num-inference-steps", "2"]
    done = CliRunner().invoke(main, [*command, *size, "--repeats", "1", "--warmups", "0", "--json"])
    assert done.exit_code == 0, done.stderr
    assert set(json.loads(done.stdout)["stages"]) == {"telecine", "diffusers"}
    done = CliRunner().invoke(main, [*command, "--roofline"])
    assert (done.exit_code, "--roofline for a cogvideox model" in done.stderr) == (1, True)
