"""What each precision costs the demo model's pictures, next to what diffusers loses at the same dtype."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from demo_model.settings import CHECKPOINT
from precision_table import COMPONENTS, WHOLE, ours, table, theirs

from telecine.bundle import Bundle
from telecine_export.precision.policy import PRECISIONS
from telecine_export.source import open_source
from telecine_export.verify import as_text, verify_bundle

# dB of the whole run, as the project's contract has them: by themselves, or this close to diffusers.
FLOORS = {"fp16": 40.0, "fp8": 28.0}
NEAR = 1.0


@pytest.fixture(scope="module")
def losses(demo_bundles: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """PSNR next to float32, on telecine's side and on diffusers'."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores torch's threads wait for each other
    rows = ours({precision: Bundle.open(demo_bundles / precision) for precision in PRECISIONS})
    reference = theirs()
    torch.set_num_threads(threads)
    return rows, reference


def test_the_losses_are_bounded(
    losses: tuple[dict[str, Any], dict[str, Any]], record_property: Callable[[str, object], None]
) -> None:
    rows, reference = losses
    record_property("measured", "next to float32, same seed:\n" + table(rows, reference))
    for precision, floor in FLOORS.items():
        assert rows[precision][WHOLE] >= floor
    for precision, lost in reference.items():
        assert rows[precision][WHOLE] >= lost[WHOLE] - NEAR
    # No precision is free: a run that went through float32 would be equal, and its PSNR infinite.
    for row in rows.values():
        assert all(10 < value < 200 for value in row.values()), row
        assert set(row) == {*COMPONENTS, WHOLE}


def test_verify_holds_a_whole_run_to_the_precisions_it_comes_through(demo_bundles: Path) -> None:
    stages = ["text_encoder", "vae_decoder", "noise", "latents", "decode_input"]
    report = verify_bundle(demo_bundles / "fp8", open_source(str(CHECKPOINT)), stages=stages)
    assert report.passed, report
    found = {stage.name: stage for stage in report.stages}
    floors = {name: stage.psnr_floor for name, stage in found.items()}
    assert floors == {"text_encoder": 20, "vae_decoder": 50, "noise": None, "latents": 20, "decode_input": 20}
    assert (found["noise"].tolerance, found["latents"].tolerance) == (0, None)
    assert found["latents"].psnr is not None
    assert found["latents"].psnr < 80  # it is fp8 that was verified
    assert ">= 20 dB" in as_text(report)


@pytest.mark.parametrize(("precision", "floor"), [("fp16", 50), ("bf16", 30)])
def test_verify_takes_halves_and_refuses_what_is_worse(
    precision: str, floor: float, demo_bundles: Path, tmp_path: Path
) -> None:
    """bf16, which the CPU provider cannot run, is emulated."""
    bundle, source = demo_bundles / precision, open_source(str(CHECKPOINT))
    (stage,) = verify_bundle(bundle, source, stages=["text_encoder"]).stages
    assert (stage.passed, stage.psnr_floor) == (True, floor)
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    path = changed / "text_encoder" / "weights.bin"
    weights = np.fromfile(path, np.uint16)
    weights[len(weights) // 4 : len(weights) // 2] = 0
    weights.tofile(path)
    (stage,) = verify_bundle(changed, source, stages=["text_encoder"]).stages
    assert not stage.passed
    assert stage.detail is not None
    assert f"dB is below {floor}" in stage.detail
