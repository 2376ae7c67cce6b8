"""What `telecine inspect` prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from telecine.bundle import Bundle
from telecine.inspection import as_text, show_bytes


def test_every_graph_axis_preset_and_version_is_shown(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    text = as_text(bundle, weights_checked=False)
    assert text.splitlines()[0] == str(tiny_bundle)
    assert "ltx-video 0.9.5, LTXPipeline, format 1" in text
    assert "weights' sizes checked (--check hashes them)" in text
    for name, component in bundle.manifest.components.items():
        assert f"{name}: fp32, opset 23, {component.parameters:,} parameters" in text
        for graph in component.graphs.values():
            for spec in (*graph.inputs, *graph.outputs):
                assert f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})" in text
    assert 'preset recommended: {"negative_prompt": ' in text
    assert all(f"{name} {version}" in text for name, version in bundle.manifest.versions.items())


def test_a_full_check_is_said(tiny_bundle: Path) -> None:
    text = as_text(Bundle.open(tiny_bundle), weights_checked=True)
    assert "every hash checked" in text
    assert "--check" not in text


def test_no_preset_is_no_line(tiny_bundle: Path, edited_bundle: Callable[..., Path]) -> None:
    assert "\npreset" not in as_text(Bundle.open(edited_bundle(tiny_bundle, presets={})), weights_checked=False)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234, "1.23 kB"), (999_499, "999 kB"), (999_600, "1 MB"),
        (2_910_000, "2.91 MB"), (52e9, "52 GB"), (999.9e9, "1 TB"), (1.5e12, "1.5 TB"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits(size: float, text: str) -> None:
    assert show_bytes(size) == text
