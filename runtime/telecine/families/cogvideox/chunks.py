"""The VAE in chunks along time, as diffusers cuts them: what a convolution saw last goes from one to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.families.uint8_frames import Helpers, decode_to_uint8, uint8_session
from telecine.pixels import to_uint8, to_unit_range

Array = npt.NDArray[np.float32]

NEW = "new_"  # before a cache's name, where a graph gives it out


class Sessions(Helpers, Protocol):
    """Graphs by component and role, as `telecine.families.base.Models` has them."""

    def session(self, component: str, role: str = "main") -> Session: ...


class Chunk(NamedTuple):
    """Frames, or latents, start..stop-1, and the graph that runs on them."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """The VAE's encoder or decoder: the graph's component, input and output, and what `size` a chunk has."""

    component: str
    data: str
    output: str
    size: int

    def chunks(self, length: int) -> list[Chunk]:
        """Chunks of so many frames or latents; the first one takes what is left over.

        Source: diffusers `AutoencoderKLCogVideoX._encode`, `_decode`.
        """
        first = length % self.size + (self.size if length >= self.size else 0)
        role = "image" if length == 1 else "first" if first % 2 else "first_even"
        later = range(first, length, self.size)
        return [Chunk(role, 0, first), *(Chunk("next", start, start + self.size) for start in later)]

    def roles(self, length: int) -> tuple[str, ...]:
        """The graphs that the chunks of so many frames or latents run, the first one first."""
        return tuple(dict.fromkeys(chunk.role for chunk in self.chunks(length)))

    def run(self, models: Sessions, source: Array, *, uint8: bool = False) -> Iterator[npt.NDArray[Any]]:
        """(B, C, F, H, W) input → what each chunk makes, in order: (B, C', n, H', W').

        With `uint8` a decoder makes (B, n, height, width, 3) frames.
        """
        caches: Mapping[str, Array] = {}
        for role, start, stop in self.chunks(source.shape[2]):
            session, feeds = models.session(self.component, role), {self.data: source[:, :, start:stop], **caches}
            to_bytes = uint8_session(models, session) if uint8 else None
            made = decode_to_uint8(session, to_bytes, feeds) if to_bytes is not None else session.run(feeds)
            if uint8 and to_bytes is None:
                made[self.output] = to_uint8(to_unit_range(made[self.output]))
            caches = {name.removeprefix(NEW): cache for name, cache in made.items() if name.startswith(NEW)}
            yield made[self.output]

    def run_whole(self, models: Sessions, source: Array) -> Array:
        """(B, C, F, H, W) input → all that its chunks make, one video after the other: (B, C', F', H', W')."""
        videos = [
            np.concatenate(list(self.run(models, source[index : index + 1])), axis=2) for index in range(len(source))
        ]
        return np.concatenate(videos)


ENCODER = Half(component="vae_encoder", data="video", output="moments", size=8)
DECODER = Half(component="vae_decoder", data="latents", output="video", size=2)
