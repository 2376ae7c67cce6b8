"""Exports of these tests share their traces too, with each other and with the bundles of all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from traces import shared_traces


@pytest.fixture(scope="session", autouse=True)
def sharing_traces(shared: Callable[..., Path]) -> Iterator[None]:
    with shared_traces(shared):
        yield
