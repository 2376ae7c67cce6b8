"""Manifests read back as they were written, and any other text is refused with the reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telecine import manifest
from telecine.errors import BundleError
from telecine.manifest import FILE_NAME, FORMAT, Component, FileEntry, Graph, Manifest, Quality, TensorSpec

Content = dict[str, Any]

ENTRY = FileEntry(path="transformer/main.onnx", size=3, sha256="ab")
SMALL = Manifest(
    format=FORMAT,
    family="ltx-video",
    variant="0.9.5",
    pipeline="LTXPipeline",
    components={
        "transformer": Component(
            precision="fp32",
            opset=23,
            parameters=7,
            weights=ENTRY,
            graphs={
                "main": Graph(
                    file=ENTRY,
                    inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "8*frames-7", 3)),),
                    outputs=(),
                )
            },
            refitted=("lora",),
        )
    },
    tokenizer=ENTRY,
    host={"std": [0.1, 1e-45, -0.0], "scheduler": {"shift": 1.0, "terminal": None}},
    presets={"recommended": {"negative_prompt": "schlecht, \U0001f600"}},
    versions={"telecine": "0.1.0"},
)


def parse(text: str) -> Manifest:
    return Manifest.parse(text, where="B/telecine.json")


def signed(content: Content) -> str:
    """JSON with the digest that fits it: what a hand-made manifest would have."""
    return json.dumps(content | {"sha256": manifest._digest(content)})


def changed(**fields: Any) -> Content:
    return json.loads(json.dumps(dataclasses.asdict(SMALL))) | fields


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
entries = st.builds(FileEntry, path=st.text(), size=st.integers(), sha256=st.text())
tensors = st.builds(
    TensorSpec,
    name=st.text(),
    dtype=st.text(),
    shape=st.lists(st.integers() | st.text(), max_size=5).map(tuple),
)
graphs = st.builds(
    Graph,
    file=entries,
    onnxruntime_cpu=st.none() | entries,
    inputs=st.lists(tensors, max_size=2).map(tuple),
    outputs=st.lists(tensors, max_size=2).map(tuple),
)
components = st.builds(
    Component,
    precision=st.text(),
    opset=st.integers(),
    parameters=st.integers(),
    weights=entries,
    graphs=st.dictionaries(st.text(), graphs, max_size=2),
    refitted=st.lists(st.text(), max_size=2).map(tuple),
)
manifests = st.builds(
    Manifest,
    format=st.just(FORMAT),
    family=st.text(),
    variant=st.text(),
    pipeline=st.text(),
    components=st.dictionaries(st.text(), components, max_size=2),
    tokenizer=entries,
    host=st.dictionaries(st.text(), json_values, max_size=3),
    presets=st.dictionaries(st.text(), st.dictionaries(st.text(), json_values, max_size=2), max_size=2),
    versions=st.dictionaries(st.text(), st.text(), max_size=2),
)


@settings(max_examples=50, deadline=None)
@given(manifests)
def test_parse_inverts_dump(original: Manifest) -> None:
    text = original.dump()
    assert parse(text) == original
    assert parse(text).dump() == text


def test_a_real_manifest_survives(tiny_bundle: Path) -> None:
    text = (tiny_bundle / FILE_NAME).read_text(encoding="utf-8")
    assert parse(text).dump() == text


def test_layout_does_not_count_but_content_does() -> None:
    content = json.loads(SMALL.dump())
    reordered = dict(reversed(content.items()))
    assert parse(json.dumps(reordered, separators=(",", ":"))) == SMALL


def paths(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    return [path] * bool(path) + [found for key, item in items for found in paths(item, (*path, key))]


@pytest.mark.parametrize("path", paths(json.loads(SMALL.dump())), ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("edit", ["change", "remove"])
def test_every_edit_is_caught(path: tuple[Any, ...], edit: str) -> None:
    content = json.loads(SMALL.dump())
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if edit == "remove":
        del holder[path[-1]]
    else:
        holder[path[-1]] = "edited"
    with pytest.raises(BundleError, match=r"B/telecine.json (was edited or cut|has no format number)"):
        parse(json.dumps(content))


@pytest.mark.parametrize("length", range(0, len(SMALL.dump()) - 2, 97))
def test_a_cut_manifest_is_refused(length: int) -> None:
    with pytest.raises(BundleError, match="is not JSON"):
        parse(SMALL.dump()[:length])


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "{}", '{"format": true}', '{"format": "1"}', "[" * 100_000])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"is not JSON|has no format number"):
        parse(text)


def test_a_newer_format_asks_for_an_upgrade_whatever_else_is_in_it() -> None:
    with pytest.raises(BundleError, match=r"has format 2; expected format 1.*pip install --upgrade"):
        parse('{"format": 2, "something": "new"}')


def test_an_older_format_asks_for_a_new_export() -> None:
    with pytest.raises(BundleError, match=r"has format 0; expected format 1.*Export the bundle again"):
        parse(signed(changed(format=0)))


def test_missing_and_unknown_fields_are_named() -> None:
    content = changed(colour="red")
    del content["family"]
    with pytest.raises(BundleError, match="missing or unknown fields in Manifest: colour, family"):
        parse(signed(content))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"family": 3}, "family is 3"),
        ({"family": None}, "family is None"),
        ({"versions": {"telecine": 1}}, "versions.telecine is 1"),
        ({"versions": []}, "versions is list, not an object"),
        ({"presets": {"fast": 3}}, "presets.fast is int, not an object"),
        ({"tokenizer": "tokenizer.json"}, "holds str where FileEntry belongs"),
        ({"tokenizer": {"path": "t", "size": 1.5, "sha256": ""}}, r"tokenizer: size is 1\.5"),
        ({"tokenizer": {"path": "t", "size": True, "sha256": ""}}, "tokenizer: size is True"),
        ({"tokenizer": {"path": "t", "size": 1}}, "fields in FileEntry: sha256"),
        ({"components": {"vae": {}}}, r"components\.vae has missing or unknown fields in Component"),
    ],
)
def test_wrong_types_are_named_with_their_place(fields: Content, problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        parse(signed(changed(**fields)))


@pytest.mark.parametrize("shape", [3, [1.5], [None], [[1]], [True]])
def test_shapes_hold_numbers_and_symbols(shape: Any) -> None:
    content = changed()
    content["components"]["transformer"]["graphs"]["main"]["inputs"][0]["shape"] = shape
    with pytest.raises(BundleError, match="inputs: shape is"):
        parse(signed(content))


def test_a_manifest_from_before_bundles_were_packed_is_read() -> None:
    content = changed()
    del content["components"]["transformer"]["packed"]
    assert not parse(signed(content)).components["transformer"].packed
    content["components"]["transformer"]["packed"] = 1
    with pytest.raises(BundleError, match="packed is 1"):
        parse(signed(content))


def test_a_manifest_from_before_quality_was_measured_reads_as_not_measured() -> None:
    fields = changed()
    del fields["quality"]
    assert Manifest.parse(signed(fields), where="here").quality == Quality()
