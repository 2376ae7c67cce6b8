"""LTX-2's precision policies."""

from __future__ import annotations

from collections.abc import Mapping

from telecine_export.families.cogvideox.precision import TRIAL as TRIAL
from telecine_export.families.weightless import POLICIES as WEIGHTLESS
from telecine_export.precision.policy import Policy

POLICIES: Mapping[str, Policy] = {**WEIGHTLESS}
