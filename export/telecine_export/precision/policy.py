"""What of a network stays in higher precision: rules over module names and operators, with the reason beside each.

A family declares one `Policy` a component (`ltx_video_precision.py`); this file has what holds for every network. The
same rules serve fp16, bf16 and fp8: fp8 is its base precision with the matrix products of some modules in FP8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from telecine.errors import SourceError

PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
DTYPES: Mapping[str, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
# Around products in FP8. fp16 keeps 3 bits more than bf16, and ONNX Runtime's CPU kernels run it; what does not fit
# its range the rules keep at float32.
FP8_BASE = "fp16"
HALVES = ("fp16", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Nodes of some modules stay in float32, or (`half`) do not although a later rule would keep them there.

    `modules` is a regular expression for the whole dotted name of a node's innermost module, in the checkpoint's
    names; `operators` are ONNX's, every one where empty; `halves` are the base precisions that it is for. What only
    moves values (Reshape, Transpose, Concat...) follows its neighbours unless a rule names the operator.
    """

    modules: str = ".*"
    operators: tuple[str, ...] = ()
    halves: tuple[str, ...] = HALVES
    half: bool = False
    reason: str

    def matches(self, module: str, operator: str, half: str) -> bool:
        named = not self.operators or operator in self.operators
        return named and half in self.halves and re.fullmatch(self.modules, module) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """The products of these modules run in FP8; `activations` False quantises their weights alone."""

    modules: str
    activations: bool = True
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One network's rules, the first that matches deciding; where none does, a node computes in half precision.

    `quantised`: what fp8 turns to FP8, none of it in the `edge_blocks` first and last of the blocks that `block` finds
    in a module's name (its group is the number). `not_fp8` says why a network has no fp8 of its own: a bundle at fp8
    has it at the base precision. `only_fp32` says why it has no other precision at all: it is float32 in every bundle.
    """

    rules: tuple[Rule, ...] = ()
    quantised: tuple[Quantised, ...] = ()
    block: str | None = None
    edge_share: float = 0.0
    not_fp8: str | None = None
    only_fp32: str | None = None

    def rule(self, module: str, operator: str, half: str) -> Rule | None:
        """What decides about a node; None where it computes in half precision."""
        return next((rule for rule in (*EVERYWHERE, *self.rules) if rule.matches(module, operator, half)), None)

    def quantises(self, module: str) -> Quantised | None:
        """What fp8 does with a module's products, the blocks at the ends left out of the question."""
        return next((each for each in self.quantised if re.fullmatch(each.modules, module)), None)

    def block_of(self, module: str) -> int | None:
        """The number of the block that a module is in."""
        found = re.match(self.block, module) if self.block else None
        return int(found[1]) if found else None

    def edge_blocks(self, depth: int) -> frozenset[int]:
        """The first and last blocks: `edge_share` of the depth at each end, at least one, but never all of them."""
        count = min(max(1, round(depth * self.edge_share)), (depth - 1) // 2) if self.edge_share and depth else 0
        return frozenset(range(count)) | frozenset(range(depth - count, depth))


# What holds for every network.
EVERYWHERE = (
    Rule(
        operators=("Resize",),
        halves=("bf16",),
        reason="TensorRT's Resize has no bf16 kernel: a strongly typed network with one does not build",
    ),
    Rule(
        operators=("Sin", "Cos"),
        reason="angles reach thousands of radians, where a half's steps are whole turns",
    ),
)


def half_of(precision: str) -> str:
    """The base precision of a precision: itself, but for fp8."""
    return FP8_BASE if precision == "fp8" else precision


def check_precision(component: str, precision: str, policy: Policy) -> None:
    """
    Raises:
        SourceError: an unknown precision, or one that this component does not have, with the reason.
    """
    if precision not in PRECISIONS:
        raise SourceError(
            f"precision {precision} for {component}",
            expected=f"one of {', '.join(PRECISIONS)}",
            fix="Export at fp16 if you are not sure: TensorRT and ONNX Runtime both run it.",
        )
    if policy.only_fp32 is not None and precision != "fp32":
        raise SourceError(
            f"precision {precision} for {component}: {policy.only_fp32}",
            expected="fp32",
            fix=f"Leave --component {component}={precision} out.",
        )
    if precision == "fp8" and not policy.quantised:
        reason = policy.not_fp8 or "no policy says which of its products may be quantised"
        raise SourceError(
            f"precision fp8 for {component}: {reason}",
            expected="fp32, fp16 or bf16",
            fix=f"Leave --component {component}=fp8 out: a bundle at fp8 has it at {FP8_BASE}.",
        )
