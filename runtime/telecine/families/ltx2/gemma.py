"""Names of Gemma-3's tensors, which depend on the transformers that saved them."""

from __future__ import annotations

import re
from collections.abc import Collection

# As `Gemma3ForConditionalGeneration` names its language model since transformers 5.
PREFIX = "model.language_model."
# The released files have transformers 4's; a language model that was saved alone has the last two.
_TENSOR = re.compile(
    r"(?:model\.language_model\.|language_model\.model\.|model\.)?((?:embed_tokens|layers\.\d+|norm)\..+)"
)


def gemma_names(names: Collection[str]) -> dict[str, str]:
    """{a bundle's name: the file's} of the language model, in any layout; nothing where a file does not hold it.

    The image tower and the head that predicts words are left out: LTX-2 uses neither.
    """
    found = ((name, _TENSOR.fullmatch(name)) for name in names)
    return {PREFIX + match[1]: name for name, match in found if match}
