"""What else is measured: rates, the host's step, packages; and a whole benchmark of a tiny bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from telecine.bench import installed as packages
from telecine.bench import rates
from telecine.bench.host import host_step
from telecine.bench.installed import installed
from telecine.cli import main
from telecine.errors import RequestError

SMALL = (
    "--width", "96", "--height", "64", "--num-frames", "9", "--num-inference-steps", "2", "--repeats", "2",
    "--warmups", "0", "--threads", "1",
)  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


class Package:
    """A distribution with files of so many bytes, and requirements."""

    def __init__(self, name: str, folder: Path, sizes: list[int], requires: list[str]) -> None:
        self.metadata, self.requires, self._folder = {"Name": name}, requires, folder / name
        self.files = [f"{index}.py" for index in range(len(sizes))]
        self._folder.mkdir()
        for file, size in zip(self.files, sizes, strict=True):
            (self._folder / file).write_bytes(b"x" * size)

    def locate_file(self, file: str) -> Path:
        return self._folder / file


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        package.metadata["Name"]: package
        for package in (
            Package("top", tmp_path, [10, 5], ["a_b>=1", "win; sys_platform == 'win32'", "slow ; extra == 'fast'"]),
            Package("a-b", tmp_path, [100], ["top"]),  # a circle
            Package("slow", tmp_path, [1000], []),
        )
    }

    def find(name: str) -> Any:
        if name not in known:
            raise packages.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(packages, "distribution", find)


@pytest.mark.usefixtures("index")
def test_packages_are_counted_once_with_the_extras_that_were_named() -> None:
    assert installed(["top"]) == {"bytes": 115, "packages": {"a-b": 100, "top": 15}}
    assert installed(["top[fast]", "A.b"])["bytes"] == 1115
    with pytest.raises(RequestError, match="win is not installed"):
        installed(["win"])


def test_the_runtimes_own_size_is_of_its_sources() -> None:
    assert 1e5 < installed(["telecine"])["packages"]["telecine"] < 5e6


def test_rates_are_the_work_over_the_quickest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_best", lambda work: work() is None or 0.5)
    monkeypatch.setattr(rates, "SIDE", 8)
    monkeypatch.setattr(rates, "COPIED", 64)
    assert rates.matmul_rate() == 2 * 8**3 / 0.5
    assert rates.copy_rate(2) == 2 * 64 / 0.5


def test_the_host_step_is_timed_with_and_without_rescaling() -> None:
    ticks = iter(range(10_000))
    told = host_step(repeats=3, clock=lambda: (float(next(ticks)), 0.0))
    assert told["shape"] == (1, 6144, 128)
    assert told["guidance"]["samples"] == told["guidance_and_rescale"]["samples"] == (1.0, 1.0, 1.0)


def test_a_bundle_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run(tiny_bundle, *SMALL, "--installed", "-o", tmp_path / "out.json", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads((tmp_path / "out.json").read_text())
    printed = json.loads(result.stdout)
    for name in ("settings", "model", "versions", "installed"):
        assert told[name] == printed[name]
    assert told["stages"]["telecine"]["total"]["median"] == pytest.approx(
        printed["stages"]["telecine"]["total"]["median"], rel=1e-4
    )
    assert set(told) == {
        "format", "date", "machine", "settings", "model", "versions", "stages", "times_as_fast_as", "installed",
    }  # fmt: skip
    assert told["settings"]["num_frames"] == 9
    assert told["model"]["components"]["transformer"]["precision"] == "fp32"
    stages = told["stages"]["telecine"]
    assert all(0 < stage["low"] <= stage["median"] <= stage["high"] for stage in stages.values())
    assert len(stages["total"]["samples"]) == 2
    assert told["times_as_fast_as"] == {}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--compile"], "--compile without --against"),
        (["--roofline"], "--roofline without --against"),
        (["--plot", "x.svg"], "--plot without --sweep"),
        (["--sweep", "512", "--plot", "x.png"], "a .svg file"),
        (["-o", "x.txt"], "a .json file"),
        (["--repeats", "0"], "repeats is 0"),
        (["--sweep", "100"], "512 tokens or more"),
    ],
)
def test_what_would_not_act_is_refused(tmp_path: Path, arguments: list[str], reason: str) -> None:
    result = run(tmp_path / "no bundle is opened", *arguments)
    assert result.exit_code == 1
    assert reason in result.stderr
