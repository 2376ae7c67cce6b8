"""ONNX graphs as TensorRT networks: parsed strongly typed, checked, counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from telecine.backends.tensorrt.library import Library
from telecine.errors import EngineError
from telecine.manifest import Graph, TensorSpec

# NumPy's names of what graphs take and give, by TensorRT's.
DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}


def parse(library: Library, builder: Any, path: Path, graph: Graph) -> Any:
    """The network of an ONNX file, whose weights stand beside it.

    Raises:
        EngineError: TensorRT does not take the graph, or sees other inputs and outputs than the manifest says.
    """
    api = library.module
    # TensorRT 11 knows nothing else and ignores the flag; 10.x would choose precisions itself.
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, library.log)
    if not parser.parse_from_file(str(path)):
        problems = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(
            f"{library.name} {library.version} does not parse {path}: {problems or library.errors()}",
            expected="a graph of operators that it knows",
            fix="Upgrade TensorRT; for one older than 10.14 export the bundle with --opset 20.",
        )
    _check_tensors(path, graph.inputs, [network.get_input(index) for index in range(network.num_inputs)])
    _check_tensors(path, graph.outputs, [network.get_output(index) for index in range(network.num_outputs)])
    return network


def let_attention_decompose(library: Library, network: Any) -> None:
    """Let TensorRT compute attention by several kernels where it has no fused one: in fp32, and for odd head sizes."""
    for layer in layers(network):
        if layer.type == library.module.LayerType.ATTENTION_INPUT:
            layer.__class__ = library.module.IAttentionInputLayer  # get_layer gives the base class
            layer.attention.decomposable = True


def layers(network: Any) -> Iterator[Any]:
    for index in range(network.num_layers):
        yield network.get_layer(index)


def census(network: Any) -> dict[str, int]:
    """Tensors of the parsed network by TensorRT's name of their type: {"HALF": 520, "FLOAT": 31, ...}."""
    counts = Counter(network.get_input(index).dtype.name for index in range(network.num_inputs))
    for layer in layers(network):
        counts.update(layer.get_output(index).dtype.name for index in range(layer.num_outputs))
    return dict(counts.most_common())


def activation_bytes(library: Library, network: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the tensors that live at once, at their most, for inputs of these shapes; layers run in their order.

    An estimate from above for what TensorRT keeps: it fuses layers, and what they hand on inside is never written.
    Decomposed attention may write its scores, which are not counted. The network's inputs get these shapes.
    """
    for index in range(network.num_inputs):
        network.get_input(index).shape = shapes[network.get_input(index).name]
    constant = library.module.LayerType.CONSTANT
    born: dict[str, tuple[int, int]] = {}
    dies: dict[str, int] = {}
    for step, layer in enumerate(layers(network)):
        for tensor in _tensors(layer.get_input, layer.num_inputs):
            dies[tensor.name] = step
        if layer.type != constant:
            for tensor in _tensors(layer.get_output, layer.num_outputs):
                born[tensor.name] = (step, math.ceil(math.prod(tensor.shape) * tensor.dtype.itemsize))
    changes: Counter[int] = Counter()
    for name, (step, size) in born.items():
        changes[step] += size
        changes[dies.get(name, step) + 1] -= size
    peak = live = 0
    for step in sorted(changes):
        live += changes[step]
        peak = max(peak, live)
    return peak


def _tensors(get: Any, count: int) -> Iterator[Any]:
    """What a layer takes or gives; optional inputs may be missing."""
    return (tensor for tensor in map(get, range(count)) if tensor is not None)


def _check_tensors(path: Path, specs: tuple[TensorSpec, ...], tensors: list[Any]) -> None:
    """What TensorRT parsed must be what the manifest says: profiles are planned from there."""
    expected = {spec.name: (spec.dtype, tuple(-1 if isinstance(size, str) else size for size in spec.shape))
                for spec in specs}  # fmt: skip
    found = {tensor.name: (DTYPES.get(tensor.dtype.name, tensor.dtype.name), tuple(tensor.shape)) for tensor in tensors}
    # An output's size may be known to the parser where the manifest has a symbol, or the other way round.
    odd = sorted(
        name for name in expected.keys() | found.keys()
        if name not in expected or name not in found or expected[name][0] != found[name][0]
        or len(expected[name][1]) != len(found[name][1])
        or any(one != other and -1 not in (one, other)
               for one, other in zip(expected[name][1], found[name][1], strict=True))
    )  # fmt: skip
    if odd:
        raise EngineError(
            f"{path} has {', '.join(f'{name} {found.get(name)}' for name in odd)}",
            expected=f"what the manifest says: {', '.join(f'{name} {expected.get(name)}' for name in odd)}",
            fix="Export the bundle again.",
        )
