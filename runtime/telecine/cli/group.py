"""The group of commands, and what they share: errors to exit codes, JSON, logging."""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from telecine.errors import BackendError, TelecineError

F = TypeVar("F", bound=Callable[..., Any])

# The extra that brings a package which is missing on a machine.
EXTRAS = {"av": "video", "onnxruntime": "onnxruntime"} | dict.fromkeys(
    (
        "torch", "diffusers", "transformers", "gguf", "onnx", "onnx_ir", "onnxscript", "huggingface_hub",
        "sentencepiece", "tqdm",
    ),
    "export",
)  # fmt: skip


class _Group(click.Group):
    """Maps errors to exit codes: the one place that does. Click itself maps Ctrl-C to 1 and usage errors to 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TelecineError as error:
            problem = error
        except ImportError as error:
            problem = _missing(error, EXTRAS.get((error.name or "").partition(".")[0]))
        except MemoryError as error:
            problem = BackendError(
                f"out of memory{f': {error}' if str(error) else ''}",
                expected="a task that fits this machine's memory",
                fix="Ask for less, or free memory.",
            )
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly when whoever reads stdout has gone
            problem = TelecineError(
                f"the system refused: {error}",
                expected="files that can be read and written",
                fix="Check disk and paths.",
            )
        click.echo(f"telecine: {problem}", err=True)
        ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="telecine")
@click.option("-v", "--verbose", is_flag=True, help="Log more to stderr.")
def main(verbose: bool) -> None:
    """Video diffusion models on ONNX Runtime, without PyTorch at run time."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="telecine: %(message)s")


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


def print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2))


def _missing(error: ImportError, extra: str | None) -> BackendError:
    """What to install; a package that is there but broken is not called missing."""
    return BackendError(
        f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else f"an import failed: {error}",
        expected=f"the packages of telecine's extra {extra}" if extra else "a complete installation",
        fix=f'Run: pip install "telecine[{extra}]"' if extra else "Run: telecine doctor",
    )
