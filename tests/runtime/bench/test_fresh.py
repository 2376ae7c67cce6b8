"""A generation in a process of its own, and sweeps over sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest

from telecine.bench import sweep as sweeping
from telecine.bench.fresh import OURS, measure_fresh, peak_memory
from telecine.bench.plot import as_svg
from telecine.bench.settings import Settings
from telecine.bench.sweep import sweep
from telecine.errors import BackendError
from telecine.shapes import Grid

SETTINGS = Settings(height=64, width=96, num_frames=9, num_inference_steps=2, threads=1)
GRID = Grid(spatial=32, temporal=8)


def test_a_fresh_process_tells_when_and_how_much(tiny_bundle: Path) -> None:
    told = measure_fresh(OURS, str(tiny_bundle), SETTINGS)
    assert 0 < told["start_up"] < told["first_step"] < told["total"]
    assert 0 < told["step"] < told["first_step"]
    assert 2e7 < told["peak_memory"] < 1e9  # its own: more than Python and NumPy, less than what pytest may have


def test_it_compiles_modules_as_an_installation_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environment = SETTINGS.environment()
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["OMP_NUM_THREADS"] == "1"


def test_its_error_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"fresh of .*nowhere ended with 1: .*does not exist"):
        measure_fresh(OURS, str(tmp_path / "nowhere"), SETTINGS)


def test_the_peak_does_not_fall() -> None:
    before = peak_memory()
    array = bytearray(b"x" * 50_000_000)
    grown = peak_memory()
    del array
    assert peak_memory() >= grown >= before + 30_000_000 or before > 50_000_000


class Sizes:
    """Stands in for fresh processes: a step takes (tokens / 1000)² s; "theirs" fails above 1,024 tokens."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Settings]] = []

    def __call__(self, module: str, path: str, settings: Settings) -> dict[str, float]:
        self.asked.append((module, settings))
        tokens = settings.height // 32 * settings.width // 32 * ((settings.num_frames - 1) // 8 + 1)
        if module == "theirs" and tokens > 1024:
            raise BackendError("killed", expected="a generation", fix="Ask for less.")
        return {"step": (tokens / 1000) ** 2, "peak_memory": 1e6 * tokens, "first_step": 1.0, "total": 2.0}


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    fake = Sizes()
    monkeypatch.setattr(sweeping, "measure_fresh", fake)
    return fake


def test_a_sweep_doubles_tokens_and_fits_their_growth(sizes: Sizes) -> None:
    grown = sweep({"ours": ("ours", "a"), "theirs": ("theirs", "b")}, SETTINGS, GRID, most_tokens=8192)
    assert [point["tokens"] for point in grown["ours"]["points"]] == [256, 512, 1024, 2048, 4096, 8192]
    assert grown["ours"]["exponents"] == {"step": pytest.approx(2), "peak_memory": pytest.approx(1)}
    assert [point["tokens"] for point in grown["theirs"]["points"]] == [256, 512, 1024]
    assert grown["theirs"]["exponents"] == {"step": None, "peak_memory": None}
    assert [module for module, _ in sizes.asked].count("theirs") == 4  # not asked again after it failed
    asked = sizes.asked[0][1]
    assert (asked.guidance_scale, asked.output_type) == (1.0, "latent")
    assert dataclasses.replace(asked, height=64, width=96, num_frames=9, guidance_scale=3.0, output_type="np") == (
        dataclasses.replace(SETTINGS, num_inference_steps=2)
    )


def test_tokens_of_several_latents_and_of_a_vae_in_chunks(sizes: Sizes) -> None:
    """CogVideoX 1.5's: a token is of two frames' 2 x 2 latents, and an even number of latents has no single frame."""
    grid = Grid(spatial=8, temporal=4, patch=2, patch_t=2, chunked=True)
    grown = sweep({"ours": ("ours", "a")}, SETTINGS, grid, most_tokens=512)
    assert [point["tokens"] for point in grown["ours"]["points"]] == [256, 512]
    assert [(each.num_frames, each.height, each.width) for _, each in sizes.asked] == [(32, 128, 128), (64, 128, 128)]


def test_the_plot_has_a_line_a_competitor_in_both_charts(sizes: Sizes) -> None:
    grown = sweep({"ours": ("ours", "a"), "theirs & co": ("theirs", "b")}, SETTINGS, GRID, most_tokens=4096)
    picture = ElementTree.fromstring(as_svg(grown))
    lines = picture.findall(".//{*}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [5, 3, 5, 3]
    for line in lines:
        ys = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
        assert ys == sorted(ys, reverse=True)  # more tokens, more seconds: upwards
    words = [text.text for text in picture.findall(".//{*}text")]
    assert "ours: tokens^2.00" in words
    assert "theirs & co" in words
