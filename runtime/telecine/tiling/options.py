"""What a request says of tiles and memory, checked for what can be said before the bundle is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from telecine.errors import RequestError

MODES = ("auto", "off", "seamless", "diffusers")
UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}
MAX_SIZE = 2**20  # of a tile, in pixels or frames


@dataclass(frozen=True, slots=True, kw_only=True)
class TilingParameters:
    """What a request may say of tiles, as it was said."""

    tiling: str = "auto"
    tile_size: int | None = None
    tile_stride: int | None = None
    tile_frames: int | None = None
    tile_frame_stride: int | None = None
    memory_limit: int | str | None = None

    def tiling_options(self) -> TilingOptions:
        """How the VAE is to be run.

        Raises:
            RequestError: a value of the wrong kind, or options that contradict each other.
        """
        return TilingOptions.parse(
            tiling=self.tiling,
            tile_size=self.tile_size,
            tile_stride=self.tile_stride,
            tile_frames=self.tile_frames,
            tile_frame_stride=self.tile_frame_stride,
            memory_limit=self.memory_limit,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TilingOptions:
    """How the VAE is to be run; what is None is chosen.

    `mode`: "auto" tiles seamlessly where `memory_limit` or a size asks for it; "off"; "seamless"; "diffusers".
    `size` and `stride` are of tiles in pixels, `frames` and `frame_stride` in frames, context included.
    `memory_limit`: bytes that the whole run may take, of which `reserved` are taken beside the VAE's activations; the
    rest of the run takes `least`, however the VAE is run.
    """

    mode: str = "auto"
    size: int | None = None
    stride: int | None = None
    frames: int | None = None
    frame_stride: int | None = None
    memory_limit: int | None = None
    reserved: int = 0
    least: int = 0

    @property
    def room(self) -> int | None:
        """Bytes for running the VAE; None where there is no limit."""
        return None if self.memory_limit is None else self.memory_limit - self.reserved

    @classmethod
    def parse(
        cls,
        *,
        tiling: object,
        tile_size: object,
        tile_stride: object,
        tile_frames: object,
        tile_frame_stride: object,
        memory_limit: object,
    ) -> TilingOptions:
        """From the parameters of a request, by their names.

        Raises:
            RequestError: a value of the wrong kind, or options that contradict each other.
        """
        if tiling not in MODES:
            raise RequestError(
                f"tiling is {tiling!r}", expected=f"one of {', '.join(MODES)}", fix="Leave it out: 'auto' is right."
            )
        pairs = (
            ("tile_size", tile_size, "tile_stride", tile_stride),
            ("tile_frames", tile_frames, "tile_frame_stride", tile_frame_stride),
        )
        sizes: list[int | None] = []
        for name, size, stride_name, stride in pairs:
            sizes += [_whole(name, size), _whole(stride_name, stride)]
            if sizes[-1] is not None and sizes[-2] is None:
                raise RequestError(
                    f"{stride_name} without {name}", expected="both, or the size alone", fix=f"Give {name} too."
                )
            if sizes[-1] is not None and sizes[-2] is not None and sizes[-1] >= sizes[-2]:
                raise RequestError(
                    f"{stride_name} is {sizes[-1]}, {name} {sizes[-2]}",
                    expected="a stride below the size, so that tiles overlap",
                    fix=f"Leave {stride_name} out.",
                )
        if tiling == "off" and sizes != [None] * 4:
            raise RequestError(
                "sizes of tiles with tiling='off'", expected="one or the other", fix="Use tiling='seamless'."
            )
        limit = None if memory_limit is None else parse_size(memory_limit)
        return cls(
            mode=str(tiling), size=sizes[0], stride=sizes[1], frames=sizes[2], frame_stride=sizes[3], memory_limit=limit
        )


def parse_size(value: object, name: str = "memory_limit", *, least: int = 1) -> int:
    """Bytes of 8589934592, "8GiB" (powers of 1024), "8GB" (of 1000) or "1.5 GiB"; `name` is the parameter's.

    Raises:
        RequestError: another form, or less than `least` bytes.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)", value.strip()) if isinstance(value, str) else None
    units = {unit.lower(): scale for unit, scale in UNITS.items()}
    if match and match[2].lower() in units:
        size = int(float(match[1]) * units[match[2].lower()])
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        size = int(value)
    else:
        size = -1
    if size < least:
        raise RequestError(f"{name} is {value!r}", expected="bytes, or a size such as 8GiB or 500MB", fix="Use '8GiB'.")
    return size


def show_size(size: int) -> str:
    """Bytes as people read them, rounded up to what `parse_size` takes: "1.3GiB", "640MiB"."""
    unit, scale = ("GiB", 2**30) if size >= 2**30 else ("MiB", 2**20)
    return f"{-(-size * 10 // scale) / 10:g}{unit}"


def _whole(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 1 <= value <= MAX_SIZE:
        return int(value)
    raise RequestError(
        f"{name} is {value!r}", expected=f"a whole number from 1 to {MAX_SIZE}", fix=f"Leave {name} out."
    )
