"""A bundle's networks on TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from telecine.backends.base import NetworkFacts
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.options import CudaGraphs
from telecine.backends.tensorrt.engine import Engine
from telecine.backends.tensorrt.opening import Plan, find_plan, plan_paths
from telecine.backends.tensorrt.profiles import largest_sizes
from telecine.backends.tensorrt.refit import BundleWeights
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle


class TensorRtBackend:
    """The plans of one folder on one GPU, which is asked for when the first is."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str,
        engines: Path,
        stream: int | None = None,
        cuda_graphs: CudaGraphs = "auto",
    ) -> None:
        """`stream` is the caller's, for all sessions; None gives each its own."""
        self._bundle, self._name, self._engines = bundle, device, engines
        self._stream, self._cuda_graphs = stream, cuda_graphs
        self._device: Device | None = None

    def device(self) -> Device:
        """
        Raises:
            BackendError: there is no such GPU, no driver for it, or no cuda-bindings.
        """
        if self._device is None:
            self._device = Device.open(self._name)
        return self._device

    def has_plans(self, component: str, role: str) -> bool:
        """Whether there are plans of a graph at all, fitting or not; asks neither CUDA nor TensorRT."""
        return bool(plan_paths(self._engines, component, role))

    def find(self, component: str, role: str) -> Plan:
        """
        Raises:
            BackendError: as `device`.
            EngineError: no plan fits.
        """
        return find_plan(self._engines, self._bundle, component, role, self.device())

    def open(self, plan: Plan, weights: int | None = None) -> TensorRtSession:
        """`weights`: as of `load`.

        Raises:
            EngineError: the plan is damaged, or is not what its sidecar says.
            BackendError: TensorRT or CUDA failed; out of memory says so.
        """
        graph = self._bundle.graph(plan.sidecar.component, plan.sidecar.role)
        engine = Engine(plan, self.device(), BundleWeights(self._bundle.path(graph.file)), streaming_budget=weights)
        return TensorRtSession(graph, engine, stream=self._stream, cuda_graphs=self._cuda_graphs)

    def load(self, component: str, role: str, weights: int | None = None) -> TensorRtSession:
        return self.open(self.find(component, role), weights)

    def limits(self, component: str, role: str) -> Mapping[str, int]:
        """The largest size of each axis, by symbol.

        Raises:
            BackendError, EngineError: as `find`.
        """
        return self.limits_of(self.find(component, role))

    def limits_of(self, plan: Plan) -> Mapping[str, int]:
        return largest_sizes(plan.sidecar)

    def facts(self, component: str, role: str) -> NetworkFacts:
        """
        Raises:
            BackendError, EngineError: as `find`.
        """
        return self.facts_of(self.find(component, role))

    def facts_of(self, plan: Plan) -> NetworkFacts:
        size = plan.sidecar.plan_size
        return NetworkFacts(weights=size, replaced=size, batch_pays=True, streams=plan.sidecar.weight_streaming)

    def device_bytes(self) -> int:
        """
        Raises:
            BackendError: as `device`.
        """
        return self.device().used_bytes()
