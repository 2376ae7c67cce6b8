"""What LTX-Video's conditions are not: those of LTX-2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from telecine import Condition
from telecine.errors import RequestError
from telecine.families.ltx_video.conditions import _item

IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize("field", [{"index": 1}, {"index": 0}, {"crf": 33}])
def test_fields_of_another_family_are_refused(field: dict[str, int]) -> None:
    generation: Any = None  # it is not asked for anything
    with pytest.raises(RequestError, match="LTX-2"):
        _item(generation, Condition(image=IMAGE, **field))  # type: ignore[arg-type]
