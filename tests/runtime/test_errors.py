"""The hierarchy, what a message holds, and what importing the package costs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import telecine
from telecine import errors
from telecine.errors import TelecineError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TelecineError)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_says_what_was_got_expected_and_what_to_do(kind: type[TelecineError]) -> None:
    error = kind("height is 500", expected="a multiple of 32", fix="Use 480 or 512.")
    assert str(error) == "height is 500; expected a multiple of 32. Use 480 or 512."
    assert (error.got, error.expected, error.fix) == ("height is 500", "a multiple of 32", "Use 480 or 512.")
    assert isinstance(error, TelecineError)


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawing_and_the_package_name_every_error(kind: type[TelecineError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    assert getattr(telecine, kind.__name__) is kind


def test_no_part_of_a_message_may_be_left_out() -> None:
    with pytest.raises(TypeError):
        TelecineError("height is 500", expected="a multiple of 32")  # type: ignore[call-arg]


def test_the_package_offers_what_it_lists_and_no_more() -> None:
    assert all(getattr(telecine, name) is not None for name in telecine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        _ = telecine.Pipelines  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys, telecine; print([n for n in ('numpy', 'click', 'tokenizers', 'onnxruntime') if n in sys.modules])"
    )
    runtime = Path(telecine.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=runtime, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", KINDS)
def test_errors_cross_process_pools(kind: type[TelecineError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a", expected="b", fix="c")))
    assert (type(error), error.got, error.expected, error.fix) == (kind, "a", "b", "c")
