"""What stands in place of a bundle's own weights: fine-tunes of its components, and LoRA files over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.bundle import Bundle, sha256
from telecine.dtypes import Floats
from telecine.families import FAMILIES
from telecine.families.base import Naming
from telecine.fine_tune import FineTune
from telecine.graph_weights import GraphWeights
from telecine.lora import Delta, Lora, fuse, read_deltas

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComponentChange:
    """Of one component: another checkpoint's weights (None: the bundle's own), and what LoRA files add to them."""

    tune: FineTune | None = None
    loras: tuple[Lora, ...] = ()
    deltas: Mapping[str, tuple[Delta, ...]] = field(default_factory=dict)

    @property
    def acts(self) -> bool:
        """Whether anything differs from the bundle's own."""
        return self.tune is not None or bool(self.deltas)

    def values(self, weights: GraphWeights) -> Iterator[tuple[str, Array]]:
        """(initializer, value as stored) of all that differs from the bundle's own, one at a time.

        Always from the bundle's weights or the checkpoint's, never from what was loaded before: the same files give
        the same bits, whatever was there.

        Raises:
            BundleError, SourceError: a file was changed or removed meanwhile.
        """
        for stored, names in weights.stored().items():
            if self.tune is None and not any(self.deltas.get(name) for name in names):
                continue
            parts = [self._value(weights, name) for name in names]
            yield from weights.store(stored, parts[0] if len(parts) == 1 else np.concatenate(parts)).items()

    def _value(self, weights: GraphWeights, name: str) -> Floats:
        value = weights.load(name) if self.tune is None else self.tune.load(name)
        deltas = self.deltas.get(name)
        return fuse(value, deltas) if deltas else value

    def describe(self) -> tuple[str, ...]:
        """A line for each file, with its hash, in the order in which they act."""
        tune = () if self.tune is None else (f"weights {self.tune.describe()}",)
        return *tune, *(f"lora {lora.file.name} times {lora.scale:g} sha256 {sha256(lora.file)}" for lora in self.loras)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChanges:
    """The changes of a bundle, by component; none to begin with."""

    components: Mapping[str, ComponentChange] = field(default_factory=dict)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The files that act, in their order."""
        return next((change.loras for change in self.components.values() if change.loras), ())

    def with_loras(self, bundle: Bundle, loras: Sequence[Lora]) -> WeightChanges:
        """These LoRA files in place of any others; none for none.

        Raises:
            SourceError: a file is damaged, or not a LoRA of this model.
            BundleError: the bundle lacks the component that they act on.
        """
        naming = _naming(bundle)
        deltas: dict[str, tuple[Delta, ...]] = {}
        if loras:
            deltas = read_deltas(loras, GraphWeights.open(bundle, naming.lora), naming.rename)
        return self._changed(naming.lora, loras=tuple(loras), deltas=deltas)

    def with_tune(self, bundle: Bundle, component: str, path: str | Path) -> WeightChanges:
        """Another checkpoint's weights for a component; LoRA files stay over them.

        Raises:
            SourceError: the files are damaged, or of another shape.
            BundleError: the bundle lacks the component.
        """
        return self._changed(component, tune=FineTune.open(path, bundle, component, _naming(bundle)))

    def without_tune(self, bundle: Bundle, component: str) -> WeightChanges:
        """The bundle's own weights for a component again; LoRA files stay over them.

        Raises:
            BundleError: the bundle lacks the component.
        """
        bundle.component(component)
        return self._changed(component, tune=None)

    def values(self, bundle: Bundle, component: str, role: str) -> dict[str, Array]:
        """Initializers by name of one graph: what `Session.replace` takes.

        Raises:
            BundleError, SourceError: a file was changed or removed meanwhile.
        """
        change = self.components.get(component)
        return dict(change.values(GraphWeights.open(bundle, component, role))) if change else {}

    def _changed(self, component: str, **fields: Any) -> WeightChanges:
        change = replace(self.components.get(component, ComponentChange()), **fields)
        return WeightChanges(components={**self.components, component: change})


def _naming(bundle: Bundle) -> Naming:
    return FAMILIES[bundle.manifest.family].naming
