"""Progress of an export for a person: a bar of bytes a component, then a line with its time and peak memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from tqdm import tqdm

from telecine_export.export import ComponentReport, Progress


@contextmanager
def progress_bars(finished: Callable[[ComponentReport], None]) -> Iterator[Progress]:
    """Callbacks that draw on stderr, where it is a terminal, and hand each component's report on."""
    bar: tqdm | None = None

    def close() -> None:
        nonlocal bar
        if bar is not None:
            bar.close()
            bar = None

    def start(component: str) -> None:
        nonlocal bar
        bar = tqdm(
            desc=f"{component}: tracing, then weights", unit="B", unit_scale=True, leave=False,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip

    def wrote(size: int) -> None:
        assert bar is not None
        bar.update(size)

    def finish(report: ComponentReport) -> None:
        close()
        click.echo(
            f"{report.name}: {report.parameters:,} parameters, {report.size / 1e6:.1f} MB, {report.seconds:.1f} s, "
            f"peak anonymous memory {report.peak_memory / 1e6:.0f} MB",
            err=True,
        )
        finished(report)

    try:
        yield Progress(started=start, wrote=wrote, finished=finish)
    finally:
        close()
