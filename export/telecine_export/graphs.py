"""What to trace: one `GraphSpec` per graph of a component, made by a family's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

AxisNames = Mapping[int, str]
# diffusers' transformer, and what its pipeline calls it with.
StepCall = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """One graph: a module on the meta device, sample inputs, and the names of what varies.

    `axes` names each input's dynamic axes; a name is either a symbol (`tokens`) or a symbol with a grid rule
    (`8*latent_frames-7`). `untied` lists (input, axis, name) triples that are traced equal to another axis and then
    set free: the graph broadcasts over them. `rename` maps a parameter of the module to the checkpoint's name. `states`
    are outputs beside `output`, by name. `checkpoint` is the source's component that has the weights, None for a graph
    without any; `also` is another that has the rest of them. `fused` says whether projections are joined (`fused_qkv`).
    """

    component: str
    role: str = "main"
    build: Callable[[torch.dtype], nn.Module]
    sample: Mapping[str, Tensor]
    axes: Mapping[str, AxisNames]
    output: str
    output_shape: tuple[str | int, ...]
    checkpoint: str | None
    also: str | None = None
    rename: Callable[[str], str] = lambda name: name
    untied: tuple[tuple[str, int, str], ...] = field(default=())
    states: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    fused: bool = False

    @property
    def outputs(self) -> dict[str, tuple[str | int, ...]]:
        """Every output's shape by name, in the graph's order."""
        return {self.output: self.output_shape, **self.states}
