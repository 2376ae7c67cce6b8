"""The matrix products of a float32 graph: what FP8 may quantise, calibration watches and the quality gate blames."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from telecine_export.precision.assign import module_of
from telecine_export.precision.policy import Policy
from telecine_export.trace import HEAD_SIZE

OPERATORS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention")
# TensorRT's kernels for attention in FP8.
HEAD_SIZE_MULTIPLE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product by its node's name: its module, the values that it multiplies (weights apart) and its weight.

    `head_size` is attention's, else 0.
    """

    node: str
    module: str
    operator: str
    activations: tuple[str, ...]
    weight: str | None
    head_size: int


def products(model: ir.Model) -> list[Product]:
    """Every product of a traced model, in its order."""
    found = []
    for node in model.graph:
        if node.op_type not in OPERATORS:
            continue
        values = [value for value in node.inputs[: 3 if node.op_type == "Attention" else 2] if value is not None]
        weight = next((value.name for value in values if value.is_initializer()), None)
        activations = tuple(str(value.name) for value in values if not value.is_initializer())
        assert node.name is not None
        found.append(
            Product(
                node=node.name,
                module=module_of(node),
                operator=node.op_type,
                activations=activations,
                weight=weight,
                head_size=int(node.metadata_props.get(HEAD_SIZE, 0)),
            )
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Product:
    """A product in FP8; without `scaled`, its weight alone is quantised."""

    product: Product
    scaled: bool


def fp8_products(model: ir.Model, policy: Policy, kept: Collection[str] = ()) -> list[Fp8Product]:
    """What fp8 quantises of a traced model: the policy's modules, less the blocks at both ends and what is `kept`.

    A product with a weight must be a MatMul with the output channels last, as linear layers are stored; attention
    needs a head size that TensorRT has kernels for.
    """
    every = products(model)
    edges = policy.edge_blocks(len({policy.block_of(product.module) for product in every} - {None}))
    chosen = []
    for product in every:
        rule = policy.quantises(product.module)
        if rule is None or product.module in kept or policy.block_of(product.module) in edges:
            continue
        if product.operator == "Attention":
            fits = rule.activations and product.head_size % HEAD_SIZE_MULTIPLE == 0
        else:
            fits = product.operator == "MatMul" and product.weight is not None
        if fits:
            chosen.append(Fp8Product(product=product, scaled=rule.activations))
    return chosen
