"""Memory of the CUDA double: host allocations by address, poisoned when made and when freed, watched for races."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np

ALIGNMENT = 256  # CUDA C++ Programming Guide, "Device Memory Accesses": cudaMalloc aligns to at least 256 bytes
FRESH, FREED = 0xCD, 0xDD

Point = tuple[int, int]  # (stream, how many operations it had been given): a moment of the device's work


@dataclass(eq=False)
class Allocation:
    """A block and its last accesses; a freed one is kept, so that an access to it is found and not a crash."""

    address: int
    size: int
    kind: str  # "device" or "host"
    device: int
    backing: np.ndarray = field(repr=False)
    live: bool = True
    written: Point | None = None
    read: list[Point] = field(default_factory=list)


class Memory:
    def __init__(self) -> None:
        self.allocations: list[Allocation] = []

    def allocate(self, size: int, kind: str, device: int) -> int:
        backing = np.full(size + ALIGNMENT, FRESH, np.uint8)
        address = -(-backing.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.allocations.append(Allocation(address, size, kind, device, backing))
        return address

    def free(self, address: int, kind: str) -> Allocation | None:
        found = next((each for each in self.live(kind) if each.address == address), None)
        if found:
            found.live = False
            found.backing.fill(FREED)
        return found

    def live(self, kind: str | None = None, device: int | None = None) -> list[Allocation]:
        return [
            each
            for each in self.allocations
            if each.live and kind in (None, each.kind) and device in (None, each.device)
        ]

    def find(self, address: int, size: int = 1) -> Allocation | None:
        """The live block that holds all of these bytes."""
        return next(
            (each for each in self.live() if each.address <= address and address + size <= each.address + each.size),
            None,
        )


def view(address: int, size: int) -> np.ndarray:
    """(size) bytes at an address."""
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)
