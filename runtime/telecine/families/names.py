"""Names of tensors that several families share."""

from __future__ import annotations

from collections.abc import Collection

# T5's input embedding is shared with its decoder's; checkpoints name it by either end.
TIED_NAMES = {
    "shared.weight": "encoder.embed_tokens.weight",
    "encoder.embed_tokens.weight": "shared.weight",
}


def own_names(names: Collection[str]) -> dict[str, str]:
    """The names as they are: of components that have one layout."""
    return {name: name for name in names}
