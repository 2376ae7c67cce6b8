"""What the README and its pages say of commands, options and parameters, held against the code and diffusers."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from diffusers import (
    LTX2ConditionPipeline,
    LTX2ImageToVideoPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXLatentUpsamplePipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from telecine.cli import main
from telecine.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
# Beside the README, a page in some of the folders that it tells of.
PAGES = {
    path: path.read_text()
    for folder in ("", "export", "engines", "runtime", "runtime/embed", "runtime/telecine/serving", "scripts/gallery")
    for path in [ROOT / folder / "README.md"]
}
README = "\n".join(PAGES.values())
# By the letters of the README's tables of parameters, and what they begin with.
TABLES = {
    "| diffusers | of | telecine |": {
        "T": LTXPipeline.__call__,
        "I": LTXImageToVideoPipeline.__call__,
        "C": LTXConditionPipeline.__call__,
        "U": LTXLatentUpsamplePipeline.__call__,
        "F": LTXVideoTransformer3DModel.forward,
    },
    "| LTX-2 in diffusers | of | telecine |": {
        "T": LTX2Pipeline.__call__,
        "I": LTX2ImageToVideoPipeline.__call__,
        "C": LTX2ConditionPipeline.__call__,
        "U": LTX2LatentUpsamplePipeline.__call__,
        "F": LTX2VideoTransformer3DModel.forward,
    },
}
# Options of docker and of tritonserver.
FOREIGN = {
    "--build",
    "--gpus",
    "--rm",
    "--shm-size",
    "--model-repository",
    "--model-control-mode",
    "--load-model",
    "--backend-config",
}
# What a row says first.
VERDICTS = ("work", "named", "not taken", "not input", "input")


def rows(header: str) -> list[list[str]]:
    """The cells of the table with this first line."""
    lines = README.split(f"{header}\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def console_lines() -> Iterator[list[str]]:
    """The words of every command in the README's blocks; a line that ends in a backslash goes on."""
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line.split("  #")[0]) if line.count('"') % 2 == 0 else []


def options_of(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize(
    ("header", "letter"), [(header, letter) for header, calls in TABLES.items() for letter in calls]
)
def test_every_parameter_of_diffusers_has_a_row_and_no_other_has(header: str, letter: str) -> None:
    told = [name for names, of, _ in rows(header) if letter in of for name in re.findall(r"`(\w+)`", names)]
    assert sorted(told) == sorted(set(told)), "two rows for one"
    assert set(told) == set(inspect.signature(TABLES[header][letter]).parameters) - {"self"}  # type: ignore[arg-type]


@pytest.mark.parametrize("header", TABLES)
def test_each_row_says_what_becomes_of_it(header: str) -> None:
    for names, of, verdict in rows(header):
        assert verdict.startswith(VERDICTS), names
        assert set(of) <= set(TABLES[header]), names


@pytest.mark.parametrize("header", TABLES)
@pytest.mark.parametrize(("letters", "method"), [("TIC", "generate"), ("U", "upscale")])
def test_what_works_is_a_parameter(header: str, letters: str, method: str) -> None:
    """And what is not taken is none."""
    ours = set(inspect.signature(getattr(Pipeline, method)).parameters)
    for names, of, verdict in rows(header):
        if set(of) & set(letters):
            for name in re.findall(r"`(\w+)`", names):
                works = verdict.startswith("work")
                if works or name not in ("video", "frame_index", "strength"):  # another family's, or a Condition's
                    assert (name in ours) == works, (name, of)


def test_every_parameter_of_generate_is_told() -> None:
    told = set(re.findall(r"`(\w+)[`(]", README))
    for method in (Pipeline.generate, Pipeline.upscale):
        assert set(inspect.signature(method).parameters) - {"self"} <= told


def test_commands_and_their_options_exist() -> None:
    commands = [words for words in console_lines() if words[:1] == ["telecine"]]
    assert len(commands) > 10
    for words in commands:
        options = options_of(main.commands[words[1]])
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options, words


def test_every_option_that_is_named_exists() -> None:
    """Anywhere in the page, also in prose: an option of telecine, of a script, or of what serves it."""
    known = set().union(*(options_of(command) for command in main.commands.values())) | {"--help"} | FOREIGN
    examples = [*(ROOT / "runtime" / "examples").glob("*.py"), *(ROOT / "runtime" / "embed" / "example").glob("*.?pp")]
    for script in [*(ROOT / "scripts").glob("*.py"), *examples]:
        known |= set(re.findall(r"\"(--[\w-]+)\"", script.read_text()))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) <= known


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in re.findall(r"^#+ .*", page, re.M)
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[path]):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(PAGES[target]), link


def test_every_page_is_linked() -> None:
    linked = {
        (ROOT / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[ROOT / "README.md"])
    }
    assert set(PAGES) - linked == {ROOT / "README.md"}


def test_the_gallery_is_made_by_the_commands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from demo_model.gallery import DEMO, PICTURES

    commands = [words for words in console_lines() if words[:1] == ["telecine"]]
    settings = re.search(r'^DEMO="(.*?)"$', README, re.DOTALL | re.MULTILINE)
    assert settings is not None
    assert settings[1].split() == DEMO
    for picture in PICTURES:
        shown = {f"]({picture.file})", f"]({Path(picture.file).name})"}  # in the README, or beside it
        assert any(each in README for each in shown), picture.name
        assert picture.command(["$DEMO"]) in commands, picture.name


def test_it_is_read_as_python() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")
