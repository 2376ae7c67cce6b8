"""Real-size networks build with TensorRT for RTX; minutes and gigabytes, so only on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")

PRECISION, TARGET = "fp16", "rtx-sm89"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "parameters"), [("vae_decoder", 5e8), ("text_encoder", 8e8), ("transformer", 1.9e9)]
)
def test_real_sizes_build(
    network: str, parameters: float, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    import build_real_size

    bundle = build_real_size.make_bundle([network], tmp_path / "bundle", precision=PRECISION)
    built = build_real_size.build(bundle, network, target=TARGET, workload=build_real_size.WORKLOAD)
    record_property("measured", build_real_size.as_text(built, PRECISION, TARGET))
    assert built.parameters > parameters
    # Weights once, at two bytes each but for what stays in fp32, and kernels.
    assert 1.9 < built.size / built.parameters < 2.6
    assert built.precisions["HALF"] > 100
