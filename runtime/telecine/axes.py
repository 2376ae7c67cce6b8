"""Named axes of graphs: what a symbolic shape of the manifest means for real arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from telecine.errors import BackendError
from telecine.manifest import TensorSpec

# `tokens`, `32*latent_height`, `8*latent_frames-7`: all that graph contracts use.
RULE = re.compile(r"(?:(?P<scale>\d+)\*)?(?P<symbol>[A-Za-z_]\w*)(?P<offset>[+-]\d+)?")

Shape = tuple[int, ...]


def parse_rule(rule: str) -> tuple[int, str, int]:
    """Scale, symbol and offset of an axis: `8*latent_frames-7` → (8, "latent_frames", -7).

    Raises:
        BackendError: another form.
    """
    match = RULE.fullmatch(rule.replace(" ", ""))
    if match is None:
        raise BackendError(
            f"the axis rule {rule!r}", expected="a form like 8*latent_frames-7", fix="Export the bundle again."
        )
    return int(match["scale"] or 1), match["symbol"], int(match["offset"] or 0)


def bind_axes(specs: Iterable[TensorSpec], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Symbol → size, from the shapes of inputs by name.

    Raises:
        BackendError: an input is missing or unknown, has another rank or fixed size, breaks a rule, or contradicts
            another input.
    """
    specs = list(specs)
    names = {spec.name for spec in specs}
    if names != set(shapes):
        raise BackendError(
            f"inputs {sorted(shapes)}",
            expected=f"exactly {sorted(names)}",
            fix="Pass every input of the graph, by name.",
        )
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = tuple(shapes[spec.name])
        if len(shape) != len(spec.shape) or not all(
            _fits(rule, size, sizes) for rule, size in zip(spec.shape, shape, strict=True)
        ):
            symbols = {parse_rule(rule)[1] for rule in spec.shape if isinstance(rule, str)}
            known = {symbol: size for symbol, size in sizes.items() if symbol in symbols}
            raise BackendError(
                f"{spec.name} has shape {shape}",
                expected=f"({', '.join(map(str, spec.shape))})" + (f" where {known} so far" if known else ""),
                fix="Shapes come from the bundle's manifest: telecine inspect shows them.",
            )
    return sizes


def resolve(spec: TensorSpec, sizes: Mapping[str, int]) -> Shape:
    """The shape of a tensor once its symbols have sizes.

    Raises:
        BackendError: no input has one of its symbols.
    """
    return tuple(rule if isinstance(rule, int) else _size(rule, sizes) for rule in spec.shape)


def _fits(rule: int | str, size: int, sizes: dict[str, int]) -> bool:
    """Whether a size obeys its rule; a symbol met for the first time is bound by it."""
    if isinstance(rule, int):
        return size == rule
    scale, symbol, offset = parse_rule(rule)
    value, rest = divmod(size - offset, scale)
    # An empty axis is never meant, and kernels differ in what they make of one.
    return rest == 0 and value >= 1 and sizes.setdefault(symbol, value) == value


def _size(rule: str, sizes: Mapping[str, int]) -> int:
    scale, symbol, offset = parse_rule(rule)
    if symbol not in sizes:
        raise BackendError(
            f"the axis {symbol} of an output",
            expected=f"one that an input has: {', '.join(sizes)}",
            fix="Export the bundle again.",
        )
    return scale * sizes[symbol] + offset
