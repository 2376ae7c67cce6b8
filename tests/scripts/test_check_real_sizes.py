"""The script that exports and runs networks at their real sizes: on small ones; on real ones where that is asked."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import check_real_sizes
import pytest
import torch
from check_real_sizes import TOLERANCE, table
from real_sizes import NETWORKS, RandomCheckpoint, export, feeds, run

SMALL = dataclasses.replace(
    NETWORKS["latent_upsampler temporal"],
    settings={**NETWORKS["latent_upsampler temporal"].settings, "in_channels": 8, "mid_channels": 32},
)


def test_weights_are_the_same_whenever_they_are_drawn() -> None:
    checkpoint, again = RandomCheckpoint(SMALL), RandomCheckpoint(SMALL)
    names = list(checkpoint.names())
    drawn = {name: checkpoint.load(name) for name in names}
    assert all(torch.equal(again.load(name), drawn[name]) for name in reversed(names))
    assert all(tuple(values.shape) == checkpoint.shape(name) for name, values in drawn.items())


def test_a_network_is_exported_and_run_as_torch_runs_it(tmp_path: Path) -> None:
    written, report = export(SMALL, tmp_path)
    ran = run(SMALL, tmp_path, written)
    assert 0 < ran["difference"] < TOLERANCE
    (row,) = table({"small": report | ran}).splitlines()[2:]
    assert row.startswith(f"| small | fp32 | {report['parameters']:,} |")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_the_inputs_of_its_graph(name: str) -> None:
    network = NETWORKS[name]
    # The first of several graphs is that of a chunk alone, which has no caches.
    spec, inputs = network.graphs(network.config())[0], feeds(network)
    assert set(inputs) == set(spec.sample)
    assert all(array.ndim == spec.sample[key].ndim for key, array in inputs.items())


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {"precision": "fp16", "parameters": 13, "weights_size": 26, "export_seconds": 1.0, "export_peak": 5}
    measured: list[Any] = []

    def measure(name: str, folder: Path) -> dict[str, Any]:
        measured.append(name)
        return report | {"not_run": "too large"}

    monkeypatch.setattr(check_real_sizes, "in_fresh_process", measure)
    monkeypatch.setattr(sys, "argv", ["check_real_sizes.py", "transformer 13B", "--out", str(tmp_path)])
    check_real_sizes.main()
    check_real_sizes.main()
    assert measured == ["transformer 13B"]
    assert capsys.readouterr().out.count("| not run: too large |") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_real_networks(name: str, tmp_path: Path) -> None:
    """Half an hour and up to 38 GB of disk; what does not fit into memory is exported and not run."""
    command = [sys.executable, check_real_sizes.__file__, name, "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
