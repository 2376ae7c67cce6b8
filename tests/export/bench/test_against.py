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
from telecine_export.source import open_source

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
    counted = {
        size.tokens: step_flops(open_source(str(tiny_source)), size, batch=2, text_length=5) for size in sizes.values()
    }
    tokens = np.array(list(counted), float)
    squares, linear, _ = np.polyfit(tokens, np.array(list(counted.values()), float), 2)
    width, blocks, batch, channels, text = 64, 2, 2, 16, 5
    assert squares == pytest.approx(batch * blocks * 4 * width, rel=1e-6)
    products = 4 * width**2 + 2 * width**2 + 8 * width**2  # attention, that over text without K and V, feed-forward
    assert linear == pytest.approx(
        batch * (blocks * (2 * products + 4 * text * width) + 2 * 2 * channels * width), rel=1e-6
    )


@pytest.mark.parametrize(("style", "group"), [("2b", 1), ("1.5-5b", 2)])
def test_operations_of_joint_attention_are_what_the_formula_says(
    cogvideox: Callable[..., tuple[Path, Path]], style: str, group: int
) -> None:
    """2 blocks of width 32 over texts and videos in one sequence; what is left has no token: it is always the same."""
    source = open_source(str(cogvideox(style)[0]))
    batch, blocks, width, text, channels = 2, 2, 32, 226, 4
    left = set()
    for frames, height, width_ in ((1, 4, 6), (3, 8, 12)):
        latent = LatentShape(frames=frames * group, height=height, width=width_)
        tokens = frames * height * width_ // 4
        rows, patch = tokens + text, 4 * group * channels
        products = 2 * (blocks * rows * 12 * width**2 + tokens * 2 * patch * width + text * 32 * width)
        attention = blocks * 4 * rows**2 * width
        left.add(step_flops(source, latent, batch=batch, text_length=text) - batch * (products + attention))
    assert len(left) == 1
    assert 0 < left.pop() < 1e5  # timesteps, and the scales that norms make of them


def test_ltx2_beside_diffusers(ltx2: Callable[..., tuple[Path, Path, Path]]) -> None:
    """Its sound is a stage on either side. Operations are those of all rows: of a transformer, nothing else grows."""
    source, _, bundle = ltx2("2.3")
    command = ["bench", str(bundle), "--against", str(source), "--threads", "1"]
    size = ["--width", "96", "--height", "64", "--num-frames", "9", "--num-inference-steps", "2"]
    done = CliRunner().invoke(main, [*command, *size, "--repeats", "1", "--warmups", "0", "--json"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["stages"]) == {"telecine", "diffusers"}
    assert set(told["times_as_fast_as"]["diffusers"]) >= {"text", "step", "decode", "sound", "total"}
    latent = LatentShape(frames=2, height=2, width=3)
    one, two = (step_flops(open_source(str(source)), latent, batch=batch, text_length=9) for batch in (1, 2))
    assert two == 2 * one > 0


def test_cogvideox_beside_diffusers(cogvideox: Callable[..., tuple[Path, Path]]) -> None:
    source, bundle = cogvideox("2b")
    command = ["bench", str(bundle), "--against", str(source), "--threads", "1"]
    size = ["--width", "48", "--height", "32", "--num-frames", "9", "--num-inference-steps", "2"]
    options = ["--repeats", "1", "--warmups", "0", "--roofline", "--json"]
    done = CliRunner().invoke(main, [*command, *size, *options])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["stages"]) == {"telecine", "diffusers"}
    latent = LatentShape(frames=3, height=4, width=6)
    assert told["roofline"]["step_flops"] == step_flops(open_source(str(source)), latent, batch=2, text_length=226)
    assert set(told["roofline"]["reached"]) == {"telecine", "diffusers"}
