"""The families that the runtime knows."""

from __future__ import annotations

from collections.abc import Mapping

from telecine.families.base import Family
from telecine.families.cogvideox import COGVIDEOX
from telecine.families.ltx2 import LTX2
from telecine.families.ltx_video import LTX_VIDEO

FAMILIES: Mapping[str, Family] = {family.name: family for family in (LTX_VIDEO, COGVIDEOX, LTX2)}
