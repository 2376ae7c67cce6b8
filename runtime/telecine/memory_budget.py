"""What a run takes in memory, predicted, and which networks it drops to stay within `memory_limit`.

The rule, of which `generate` and `upscale` have the one parameter: `memory_limit` is what telecine may add to the
process while a request runs, all of it: libraries, networks, their activations, and frames that are kept. To meet it,
in this order, until it is met: networks of other stages are dropped before the next one is loaded; the passes of
guidance run one after the other; weights are streamed, where a TensorRT engine was built for it; the VAE runs on tiles.
Only the last changes pixels. What cannot be met is refused
before anything runs, with the least that would do. On a GPU it is the memory there, where the networks are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from telecine.errors import RequestError
from telecine.tiling.options import show_size

MIB = 1 << 20
FLOAT = 4
# The widest activation, so many times over: what a network of linear layers holds at its peak on ONNX Runtime's CPU
# provider. Measured over sizes and models: 7.4 to 9.6 times at fp32, 13 at fp16, whose values it casts.
COPIES, CAST_COPIES = 10.5, 16.0
# Beside networks: ONNX Runtime's code, the tokenizer, Python modules. Measured growth: 38 MiB, 11 of them a tokenizer.
LIBRARIES = 52 * MIB
# Of a loaded graph beside weights and activations: itself and its kernels. Measured: 1 to 4 MiB.
SESSION = 5 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of one stage of a run: its network's weights as they are loaded, and what running it takes.

    `roles` are the component's graphs that run, each of which loads the weights; `weights` are those of all.
    `activations` stay with the network until it is dropped (its arena keeps them); `host` are arrays that go. A network
    that `streams` may have fewer of its weights loaded, and reads the others while it runs.
    """

    component: str
    weights: int
    activations: int = 0
    host: int = 0
    streams: bool = False
    roles: tuple[str, ...] = ("main",)

    @property
    def kept(self) -> int:
        """Until the network is dropped."""
        return self.weights + SESSION * len(self.roles) + self.activations

    @property
    def alone(self) -> int:
        """With no other network loaded."""
        return LIBRARIES + self.kept + self.host

    @property
    def least(self) -> int:
        """With no other network loaded, and no weights where they are streamed."""
        return self.alone - (self.weights if self.streams else 0)

    def within(self, limit: int | None) -> Need:
        """The same, with no more weights loaded than a limit leaves room for, where they can be streamed."""
        if limit is None or not self.streams or self.alone <= limit:
            return self
        return replace(self, weights=max(self.weights - (self.alone - limit), 0))


@dataclass(slots=True)
class Residents:
    """The networks that are loaded, by component, each with the most that it has taken so far."""

    held: dict[str, Need] = field(default_factory=dict)

    def enter(self, need: Need, limit: int | None) -> tuple[int, tuple[str, ...]]:
        """Begin a stage: the bytes that it takes with what stays loaded, and the networks to drop before it.

        The largest go first, and no more than must.
        """
        before = self.held.pop(need.component, None)
        entering = replace(need, activations=max(need.activations, before.activations if before else 0)).within(limit)
        dropped: list[str] = []
        for other in sorted(self.held.values(), key=lambda each: each.kept, reverse=True):
            if limit is None or self._beside() + entering.alone <= limit:
                break
            del self.held[other.component]
            dropped.append(other.component)
        self.held[need.component] = entering
        return self._beside() - entering.kept + entering.alone, tuple(dropped)

    def _beside(self) -> int:
        return sum(each.kept for each in self.held.values())


def activation_bytes(rows: int, widest: int, precision: str) -> int:
    """Bytes of running a network on so many rows (tokens of all passes and videos), `widest` values each at most."""
    return math.ceil(rows * widest * FLOAT * (COPIES if precision == "fp32" else CAST_COPIES))


def predicted_peak(needs: Iterable[Need], limit: int | None, held: Mapping[str, Need]) -> int:
    """Bytes that a run of these stages, in this order, takes at most, where these networks are loaded."""
    residents = Residents(dict(held))
    return max((residents.enter(need, limit)[0] for need in needs), default=0)


def check_limit(limit: int | None, least: int) -> None:
    """
    Raises:
        RequestError: the limit is below the least.
    """
    if limit is not None and limit < least:
        raise RequestError(
            f"memory_limit is {show_size(limit)}",
            expected=f"at least {show_size(least)} here",
            fix="Allow that much, ask for a smaller or shorter video, or leave the options of tiling out.",
        )
