"""What each precision costs the demo model's pictures, next to what diffusers loses at the same dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from precision_table import COMPONENTS, WHOLE, ours, table, theirs

from telecine.bundle import Bundle
from telecine_export.precision.policy import PRECISIONS
from telecine_export.source import open_source
from telecine_export.verify import verify_bundle

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


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
def test_verify_holds_lower_precisions_to_a_psnr(precision: str, demo_bundles: Path) -> None:
    from demo_model.settings import CHECKPOINT

    stages = ["text_encoder", "transformer", "vae_decoder", "prompt_embeds", "noise", "latents", "decode_input"]
    report = verify_bundle(demo_bundles / precision, open_source(str(CHECKPOINT)), stages=stages)
    assert report.passed, report
    found = {stage.name: stage for stage in report.stages}
    assert found["transformer"].psnr_floor == {"fp16": 50, "bf16": 30, "fp8": 20}[precision]
    assert found["transformer"].tolerance is None
    assert found["vae_decoder"].psnr_floor == {"fp16": 50, "bf16": 30, "fp8": 50}[precision]
    assert (found["noise"].tolerance, found["noise"].psnr_floor) == (0, None)
    assert all(stage.psnr > stage.psnr_floor for name, stage in found.items() if stage.psnr_floor and stage.psnr)
