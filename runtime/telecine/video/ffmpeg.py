"""FFmpeg through PyAV: the import, its filter graphs, and its failures in telecine's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

from telecine.errors import BackendError, RequestError

# rgb to 4:2:0 with the matrix that the tags below name, without the rounding shortcuts of swscale's defaults.
SCALE_FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
TO_BT709 = f"out_color_matrix=bt709:out_range=tv:{SCALE_FLAGS}"
BT709 = 1  # AVCOL_SPC_BT709, AVCOL_PRI_BT709 and AVCOL_TRC_BT709
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG


def require_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise BackendError(
            f"PyAV cannot be imported ({error})",
            expected="PyAV, which reads and writes video files",
            fix='Run: pip install "telecine[video]"',
        ) from error
    return av


def check_encoder(codec: str) -> None:
    av = require_av()
    try:
        av.Codec(codec, "w")
    except ValueError as error:  # UnknownCodecError, whose module moved between versions
        raise BackendError(
            f"the FFmpeg of PyAV {av.__version__} lacks the encoder {codec}",
            expected="a build with it, such as PyAV's own wheels",
            fix='Run: pip install --force-reinstall --only-binary av "telecine[video]", or write another format.',
        ) from error


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn a failure to write into a RequestError, and one of the encoder into a BackendError."""
    av = require_av()
    try:
        yield
    except OSError as error:  # FFmpeg's own errors of this kind are OSErrors too
        raise RequestError(
            f"{path} could not be written ({error.strerror or error})",
            expected="a disk with room",
            fix="Free space, or choose another path.",
        ) from error
    except av.FFmpegError as error:
        raise BackendError(
            f"FFmpeg failed to encode {path} ({error})",
            expected="frames that its encoder takes",
            fix="Write another format, or frames/%05d.png.",
        ) from error


def chain(source: tuple[int, int, str, Fraction], *filters: tuple[str, str]) -> Any:
    """A graph of one filter after the other, from frames of (height, width, pixel format, clock)."""
    graph = require_av().filter.Graph()
    height, width, pixels, clock = source
    last = graph.add_buffer(height=height, width=width, format=pixels, time_base=clock)
    for name, options in filters:
        node = graph.add(name, options)
        last.link_to(node)
        last = node
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
