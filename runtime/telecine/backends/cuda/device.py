"""One GPU."""

from __future__ import annotations

from dataclasses import dataclass

from telecine.backends.cuda.library import Cuda
from telecine.errors import BackendError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU by its index; `compute_capability` as in "8.9"."""

    cuda: Cuda
    index: int
    compute_capability: str

    @classmethod
    def open(cls, name: str) -> Device:
        """The GPU that "auto", "cuda" (both the first) or "cuda:N" names.

        Raises:
            BackendError: as `Cuda.load`; another device; fewer GPUs than that.
        """
        kind, _, index = name.partition(":")
        if kind not in ("auto", "cuda"):
            raise BackendError(
                f"device {name!r}", expected="auto, cuda or cuda:N", fix="Name a GPU, or leave device out."
            )
        cuda = Cuda.load()
        number, count = int(index or 0), cuda.call("cudaGetDeviceCount")
        if number >= count:
            raise BackendError(
                f"device {name}", expected=f"one of {count}: cuda:0 to cuda:{count - 1}", fix="nvidia-smi lists them."
            )
        attribute = cuda.api.cudaDeviceAttr
        major = cuda.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, number)
        minor = cuda.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, number)
        return cls(cuda=cuda, index=number, compute_capability=f"{major}.{minor}")

    def use(self) -> None:
        """Make it the calling thread's current device: CUDA keeps one for each thread."""
        self.cuda.call("cudaSetDevice", self.index)

    def used_bytes(self) -> int:
        """Memory of this GPU that is taken now, by whatever process."""
        self.use()
        free, total = self.cuda.call("cudaMemGetInfo")
        return int(total) - int(free)

    def synchronize(self) -> None:
        """Wait for all work on this device."""
        self.use()
        self.cuda.call("cudaDeviceSynchronize")
