"""Export networks of all families at their real sizes, check the graphs, and run what fits into memory.

    python scripts/check_real_sizes.py [NAME]... [--out DIR] [--json]

Names are those of `real_sizes.NETWORKS` ("transformer 2B", "vae_decoder 0.9.1", ...); none is all. Weights are random
and made as they are written: no checkpoint is read. Each network is exported, passed by ONNX's checker and run (one
step on ONNX Runtime's CPU provider, against torch's own module with the same weights) in processes of its own, so that
peaks of memory are its alone; then its files are removed. What is done is kept in DIR/real_sizes.json, and not done
again. The largest needs 38 GB of disk. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real_sizes import NETWORKS, available_memory, export, memory_to_run, run

from telecine.atomic import atomic_file

RESULTS = "real_sizes.json"
# Of torch, in its deviations: float32 sums of up to 16,384 products, in another order, through up to 48 blocks.
TOLERANCE = 1e-3
COLUMNS = (
    "network", "precision", "parameters", "weights", "export", "peak memory", "step on", "step", "from torch",
)  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    if arguments.folder:  # how this script calls itself
        print(json.dumps(measure(arguments.names[0], arguments.folder)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / RESULTS
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    names = arguments.names or list(NETWORKS)
    for name in names:
        if name in results:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = in_fresh_process(name, arguments.out / name.replace(" ", "-"))
        with atomic_file(file) as new:
            new.write_text(json.dumps(results, indent=2) + "\n")
    wanted = {name: results[name] for name in names}
    print(json.dumps(wanted, indent=2) if arguments.json else table(wanted))
    if any(report.get("difference", 0) > TOLERANCE for report in wanted.values()):
        sys.exit(f"a step is further than {TOLERANCE} deviations from torch's")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Export and run networks at their real sizes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Some of: {', '.join(NETWORKS)}.")
    parser.add_argument("--out", type=Path, default=Path("out/real_sizes"), help="Where files and results go.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NETWORKS)
    if unknown:
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    return arguments


def in_fresh_process(name: str, folder: Path) -> dict[str, Any]:
    """Export and step of one network; its files are gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    command = [sys.executable, __file__, name, "--folder", str(folder)]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    finally:
        shutil.rmtree(folder)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(name: str, folder: Path) -> dict[str, Any]:
    """What the export took, and the step; or why there is none."""
    network = NETWORKS[name]
    written, report = export(network, folder)
    if network.precision != "fp32":
        return report | {"not_run": f"{report['parameters'] * 4 / 1e9:.0f} GB of weights in float32"}
    needed, free = memory_to_run(report), available_memory()
    if needed > free:
        return report | {"not_run": f"needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"}
    return report | run(network, folder, written)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name, report in results.items():
        cells = [
            name,
            report["precision"],
            f"{report['parameters']:,}",
            f"{report['weights_size'] / 1e9:.2f} GB",
            f"{report['export_seconds']:.0f} s",
            f"{report['export_peak'] / 1e6:.0f} MB",
        ]
        if "not_run" in report:
            cells += [f"not run: {report['not_run']}", "", ""]
        else:
            cells += [report["run_on"], f"{report['run_seconds']:.1f} s", f"{report['difference']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
