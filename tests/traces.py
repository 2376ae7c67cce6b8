"""Traced graphs that all exports of a run share: tracing is most of an export's time, and weights are no part of it."""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from transformers import PreTrainedConfig

from telecine_export.graphs import GraphSpec
from telecine_export.precision import typed
from telecine_export.trace import trace

# torch remembers what an operator makes of its inputs' shapes. That pays with a dozen equal blocks; in networks of one
# or two it takes a third of the time. The graphs are the same; tests/scripts/test_check_real_sizes.py traces with it.
WITHOUT_CACHE = {"fake_tensor_cache_enabled": False}
# Settings of a VAE that its encoder does not read, and that tiny checkpoints differ in.
OF_DECODERS = ("decoder_inject_noise", "timestep_conditioning")
Shared = Callable[[str, Callable[[Path], object]], Path]


@contextmanager
def shared_traces(shared: Shared) -> Iterator[None]:
    """Trace a graph when it is first asked for, in whatever worker; read it from then on."""

    def traced(spec: GraphSpec, *, opset: int) -> ir.Model:
        def make(path: Path) -> None:
            with torch._dynamo.config.patch(WITHOUT_CACHE):
                save(trace(spec, opset=opset), path)

        try:
            key = hashlib.sha256(f"{opset} {_text(spec)}".encode()).hexdigest()[:16]
        except TypeError:
            return trace(spec, opset=opset)
        return load(shared(f"trace-{key}", make))

    with mock.patch.object(typed, "trace", traced):
        yield


def save(model: ir.Model, path: Path) -> None:
    """A traced model as a file; initializers without values refer to weights that are nowhere."""
    model = model.clone()
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.dtype is not None
            assert value.shape is not None
            value.const_value = ir.ExternalTensor("nowhere", 0, 0, value.dtype, shape=value.shape, name=name)
    ir.save(model, path)


def load(path: Path) -> ir.Model:
    """A model without the values of its weights, which `save` or an export wrote."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.shape, value.dtype = ir.Shape(value.const_value.shape), value.const_value.dtype
            value.const_value = None
    return model


def _text(value: Any, ignored: Collection[str] = ()) -> str:
    """All that a spec and its functions are made of: settings, and what a function's code closes over.

    Raises:
        TypeError: there is something in it of which no text tells all.
    """
    if isinstance(value, GraphSpec):
        ignored = OF_DECODERS if value.component == "vae_encoder" else ()
        return _text({each.name: getattr(value, each.name) for each in dataclasses.fields(value)}, ignored)
    if isinstance(value, types.FunctionType):
        code = value.__code__
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return _text([code.co_filename, code.co_firstlineno, value.__defaults__, closed], ignored)
    if isinstance(value, Mapping):
        return _text([f"{name}={_text(each, ignored)}" for name, each in value.items() if name not in ignored])
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(each, ignored) for each in value)}]"
    if isinstance(value, torch.Tensor):  # a sample: sizes are all that is read of it
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, PreTrainedConfig):
        return _text(value.to_dict(), ignored)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if value is None or isinstance(value, (str, bool, int, float, torch.dtype)):
        return repr(value)
    raise TypeError(f"a {type(value).__name__}")
