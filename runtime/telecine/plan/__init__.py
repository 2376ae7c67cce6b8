"""`telecine plan`: a request as a program that a host without Python runs."""

from telecine.plan.make import make_plan

__all__ = ["make_plan"]
