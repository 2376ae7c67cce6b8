"""A `GraphSpec` → an ONNX graph with no weights in it, whose initializers carry the checkpoint's names."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules

from telecine.axes import parse_rule
from telecine.initializers import TRANSPOSED
from telecine_export.graphs import GraphSpec
from telecine_export.timesteps import computed_constants

PRODUCER = "telecine"
# Metadata key of a node while a model is being made: the module that computes it, by the checkpoint's names.
MODULE = "telecine.module"
# The same of an Attention: the values in a head.
HEAD_SIZE = "telecine.head_size"
# torch.onnx.export's own: the modules around a node from the outermost on, and the operator's name last.
NAME_SCOPES = "pkg.torch.onnx.name_scopes"
# The rules of onnxscript's optimizer that have something to do here. Its default set also fuses weights, which must
# stay as they are, and looks through the whole graph at every node for pairs of Slices: half of a 2B export's time.
SIMPLIFICATIONS = (
    rules.add_0_rule, rules.sub_0_rule, rules.mul_by_1_rule, rules.div_by_1_rule,
    rules.collapse_slice_rule, rules.collapse_slice2_rule, rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule, rules.cast_cast_rule,
    rules.reshape_reshape_rule, rules.squeeze_reshape_1d_rule, rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
)  # fmt: skip
NOISY_LOGGERS = (
    "torch.__trace", "torch.onnx", "torch.onnx._internal.exporter._registration", "onnx_ir", "onnxscript",
    "diffusers", "transformers",
)  # fmt: skip


def trace(spec: GraphSpec, *, opset: int) -> ir.Model:
    """Trace one graph at float32 on the meta device: no weight is read and none is allocated.

    Every initializer of the returned model that comes from the checkpoint has a name, a type and a shape but no
    value (`weights.py` gives it one); it is never folded into another, so that refit and LoRA find it. Nodes carry
    their `MODULE` and values their type, which `precision` goes by; `seal` removes both.
    """
    with _quiet(), torch.device("meta"):
        module = spec.build(torch.float32)
    sample = {name: tensor.to("meta") for name, tensor in spec.sample.items()}
    dims = _dynamic_shapes(spec)
    with _quiet(), torch.no_grad():
        # Export first, convert second: given the module, torch.onnx.export sets `backed_size_oblivious`, which
        # breaks `view(b, -1, ...)`.
        exported = torch.export.export(module, (), kwargs=sample, dynamic_shapes=dims, strict=False)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=dims,
            input_names=list(sample),
            output_names=list(spec.outputs),
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    constants = computed_constants(module)
    _forget_values(model, parameters | set(constants))
    with _quiet():
        _simplify(model)
    for name, tensor in constants.items():
        model.graph.initializers[name].const_value = ir.tensor(tensor.numpy(), name=name)
    _store_linears_transposed(model)
    # In the graph's order, not a set's: the weights file follows it, and one source must give one file.
    for name in [name for name in model.graph.initializers if name in parameters]:
        model.graph.initializers[name].name = spec.rename(name)
    for name, axis, symbol in spec.untied:
        free_axis(model, name, axis, symbol)
    _name_boundaries(model, spec)
    _strip(model, spec)
    return model


def _dynamic_shapes(spec: GraphSpec) -> dict[str, dict[int, object]]:
    """torch.export's dims: one `Dim` a symbol, derived dims (`8*latent_frames-7`) from the same `Dim`."""
    symbols: dict[str, Any] = {}

    def dim(rule: str) -> object:
        scale, symbol, offset = parse_rule(rule)
        base = symbols.setdefault(symbol, torch.export.Dim(symbol, min=1))
        scaled = scale * base if scale > 1 else base
        return scaled + offset if offset else scaled

    return {name: {axis: dim(rule) for axis, rule in axes.items()} for name, axes in spec.axes.items()}


def _forget_values(model: ir.Model, names: set[str]) -> None:
    """Drop the meta tensors, which only stand for shapes."""
    initializers = model.graph.initializers
    for value in list(initializers.values()):
        assert value.name is not None
        if value.name not in names:
            continue  # a constant that tracing made: it has real data
        assert value.const_value is not None
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(value.const_value.shape.numpy())
        value.const_value = None


def _simplify(model: ir.Model) -> None:
    """Fold what is constant (weights have no values here, so: shape arithmetic) and drop what does nothing.

    TensorRT needs ReduceMean's axes constant. The order is that of onnxscript's own optimizer.
    """
    common.InlinePass()(model)
    for _ in range(2):  # what a rewrite leaves may fold
        fold_constants(model, onnx_shape_inference=True)
        rewrite(model, SIMPLIFICATIONS)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)


def _store_linears_transposed(model: ir.Model) -> None:
    """Turn Transpose(weight) into a weight that is stored transposed, marked so in its metadata.

    `nn.Linear` computes x @ W.T; left in the graph, every backend would transpose gigabytes at load.
    """
    for value in list(model.graph.initializers.values()):
        uses = list(value.uses())
        assert value.shape is not None
        if value.const_value is not None or not uses or len(value.shape) != 2:
            continue
        if any(use.node.op_type != "Transpose" for use in uses):
            continue
        value.shape = ir.Shape(reversed(value.shape.dims))
        value.metadata_props[TRANSPOSED] = "1"
        for use in uses:
            use.node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(use.node, safe=True)


def free_axis(model: ir.Model, name: str, axis: int, symbol: str) -> None:
    """Let `name`'s axis differ from the axis it was traced equal to; the graph then broadcasts over it.

    Elementwise operators broadcast by themselves. Only the Reshapes of values that depend on this input alone carry
    the traced length; they keep their leading axes instead (a 0 in ONNX's Reshape copies the input's dimension).
    """
    (source,) = [value for value in model.graph.inputs if value.name == name]
    assert source.shape is not None
    source.shape[axis] = symbol
    constant = set(model.graph.initializers.values())
    derived = {source}
    for node in model.graph:
        # What a Reshape or Expand is shaped to does not make its data depend on more.
        operands = node.inputs[:1] if node.op_type in ("Reshape", "Expand") else node.inputs
        origins = {value for value in operands if value is not None}
        if origins <= constant:
            constant.update(node.outputs)
        elif origins <= constant | derived and node.op_type != "Shape":
            derived.update(node.outputs)
            if node.op_type == "Reshape":
                _keep_leading_axes(model, node, axis)


def _keep_leading_axes(model: ir.Model, node: ir.Node, axis: int) -> None:
    """Reshape (..., axes to the freed one, rest): copy those leading axes where the output still has them."""
    output = node.outputs[0]
    data = node.inputs[0]
    assert output.shape is not None
    assert data is not None
    assert data.shape is not None
    if len(data.shape) <= axis + 1 or len(output.shape) <= axis + 1:
        return  # flattens or restores the axes with a -1, which is already free
    tail = [dim if isinstance(dim, int) else None for dim in output.shape.dims[axis + 1 :]]
    if None in tail:
        raise RuntimeError(f"{node.name}: a Reshape of {data.name} to {output.shape} cannot follow a free axis")
    shape = ir.Value(
        name=f"{output.name}_shape",
        const_value=ir.tensor([0] * (axis + 1) + tail, dtype=ir.DataType.INT64),
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([len(output.shape)]),
    )
    model.graph.register_initializer(shape)
    node.replace_input_with(1, shape)
    node.attributes.pop("allowzero", None)  # the exporter sets it: a 0 would then mean an empty axis


def _name_boundaries(model: ir.Model, spec: GraphSpec) -> None:
    """Spell every input's and output's shape with the spec's names."""
    free = {(name, axis): symbol for name, axis, symbol in spec.untied}
    for value in model.graph.inputs:
        assert value.name is not None
        dims = list(spec.sample[value.name].shape)
        named = {axis: free.get((value.name, axis), rule) for axis, rule in spec.axes[value.name].items()}
        value.shape = ir.Shape([named.get(axis, dim) for axis, dim in enumerate(dims)])
    for output, shape in zip(model.graph.outputs, spec.outputs.values(), strict=True):
        output.shape = ir.Shape(shape)


def _strip(model: ir.Model, spec: GraphSpec) -> None:
    """Remove what only the tracer needs: stack traces with local paths, where values came from, and inner shapes.

    Inner shapes name the axes as they were traced; a freed axis would make them lie, and ONNX Runtime plans buffers
    by them.
    """
    common.RemoveUnusedNodesPass()(model)
    notes = [_notes(node, spec) for node in model.graph]
    common.ClearMetadataAndDocStringPass()(model)
    for node, kept in zip(model.graph, notes, strict=True):
        node.metadata_props.update(kept)
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        for key in set(value.metadata_props) - {TRANSPOSED}:
            del value.metadata_props[key]
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    model.graph.name = f"{spec.component}.{spec.role}"
    model.producer_name, model.producer_version = PRODUCER, None


def _notes(node: ir.Node, spec: GraphSpec) -> dict[str, str]:
    """The innermost module that a node is of, by the checkpoint's names (empty outside), and attention's head size."""
    scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "[]"))
    notes = {MODULE: spec.rename(scopes[-2]) if len(scopes) > 1 else ""}
    if node.op_type == "Attention" and node.inputs[0] is not None and node.inputs[0].shape is not None:
        notes[HEAD_SIZE] = str(node.inputs[0].shape[-1])
    return notes


def seal(model: ir.Model) -> None:
    """Remove what only the making of a model needs: notes on nodes, and inner types."""
    for node in model.graph:
        node.metadata_props.clear()
        for output in node.outputs:
            if not output.is_graph_output():
                output.type = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing prints to stdout, warns about names it shares and logs about torchvision; none of it is ours."""
    noisy = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
