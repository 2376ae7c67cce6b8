"""What callers may ask of CUDA; imports nothing of it."""

from __future__ import annotations

from typing import Literal

from telecine.errors import BackendError

# Whether launches are captured as CUDA graphs; "auto" is where that pays.
CudaGraphs = Literal["auto"] | bool


def check_cuda_graphs(graphs: object) -> None:
    """
    Raises:
        BackendError: none of "auto", True and False.
    """
    if not (isinstance(graphs, bool) or graphs == "auto"):
        raise BackendError(f"cuda_graphs is {graphs!r}", expected="'auto', True or False", fix="Leave it out.")
