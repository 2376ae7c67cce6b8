"""Whole or absent: kills, exceptions, concurrent writers, targets that must not be replaced."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from telecine import atomic
from telecine.atomic import atomic_file, atomic_folder, check_folder_writable, check_writable
from telecine.errors import RequestError

RUNTIME = Path(atomic.__file__).parents[1]


def holds_manifest(folder: Path) -> bool:
    return (folder / "telecine.json").is_file()


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_text(text)
    (folder / "telecine.json").write_text(text)


def make_bundle(path: Path, text: str = "old") -> Path:
    path.mkdir()
    fill(path, text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run `code` in a process of its own and wait until it says "ready"."""
    header = "import sys, time, os\nfrom pathlib import Path\nfrom telecine import atomic\n"
    header += "from telecine.atomic import atomic_file, atomic_folder\n"
    process = subprocess.Popen(
        [sys.executable, "-c", header + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(RUNTIME)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


HOLD_FOLDER = """
with atomic_folder(sys.argv[1], overwrite=True, is_ours=lambda folder: True) as folder:
    (folder / "telecine.json").write_text(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
"""
HOLD_FILE = """
with atomic_file(sys.argv[1]) as file:
    file.write_text("half")
    print("ready", flush=True)
    sys.stdin.readline()
"""
# Stops between the two renames of an overwrite, where nothing is at the path.
HOLD_SWAP = """
def stop(new, target, aside):
    print("ready", flush=True)
    time.sleep(60)
atomic._swap_in = stop
with atomic_folder(sys.argv[1], overwrite=True, is_ours=lambda folder: True) as folder:
    (folder / "telecine.json").write_text("new")
"""


class TestFile:
    def test_appears_whole_with_suffix_and_ordinary_permissions(self, tmp_path: Path) -> None:
        target = tmp_path / "new" / "deep" / "out.mp4"
        with atomic_file(target) as file:
            assert file.suffix == ".mp4"
            assert file.parent == target.parent
            assert file.name.startswith(".")
            file.write_text("whole")
            assert not target.exists()
        assert target.read_text() == "whole"
        assert names(target.parent) == ["out.mp4"]
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
    def test_an_exception_keeps_the_old_file(self, tmp_path: Path, error: type[BaseException]) -> None:
        target = tmp_path / "out.txt"
        target.write_text("old")

        def write() -> None:
            with atomic_file(target) as file:
                file.write_text("half")
                raise error

        with pytest.raises(error):
            write()
        assert target.read_text() == "old"
        assert names(tmp_path) == ["out.txt"]

    def test_the_body_may_replace_the_temporary_file(self, tmp_path: Path) -> None:
        with atomic_file(tmp_path / "out.txt") as file:
            file.unlink()
            file.write_text("another inode")
        assert (tmp_path / "out.txt").read_text() == "another inode"

    def test_a_link_is_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        link = tmp_path / "out.txt"
        link.symlink_to(tmp_path / "disk" / "real.txt")
        with atomic_file(link) as file:
            file.write_text("new")
        assert link.is_symlink()
        assert (tmp_path / "disk" / "real.txt").read_text() == "new"

    def test_long_names(self, tmp_path: Path) -> None:
        target = tmp_path / ("é" * 120 + ".png")
        with atomic_file(target) as file:
            file.write_text("x")
        assert target.exists()
        with pytest.raises(RequestError, match="too long"), atomic_file(tmp_path / ("é" * 130)):
            pytest.fail("the body ran")

    def test_a_killed_writer_leaves_no_file_and_the_next_one_cleans_up(self, tmp_path: Path) -> None:
        target = tmp_path / "out.mp4"
        writer = start(HOLD_FILE, target)
        try:
            with atomic_file(target) as file:  # a living writer's file stays
                file.write_text("first")
            assert len(names(tmp_path)) == 2
        finally:
            kill(writer)
        assert len(names(tmp_path)) == 2
        with atomic_file(target) as file:
            file.write_text("second")
        assert names(tmp_path) == ["out.mp4"]
        assert target.read_text() == "second"


class TestRefusals:
    """Before the body runs, with nothing left behind."""

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda folder: folder, "is a folder"),
            (lambda folder: folder / "file" / "out.mp4", "Not a directory"),
            (lambda folder: folder / "file" / "deep" / "out.mp4", "Not a directory"),
            (lambda folder: Path("/proc/nothing/out.mp4"), "/proc takes no file"),
            (lambda folder: Path("/dev/null"), "is a device"),
            (lambda folder: folder / "loop" / "out.mp4", "cannot be reached"),
            (lambda folder: folder / ("x" * 300), "too long"),
        ],
    )
    def test_files(self, tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        before = names(tmp_path)
        with pytest.raises(RequestError, match=message):
            check_writable(make(tmp_path))
        with pytest.raises(RequestError, match=message), atomic_file(make(tmp_path)):
            pytest.fail("the body ran")
        assert names(tmp_path) == before

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda folder: folder / "file", "is a file"),
            (lambda folder: folder / "file" / "bundle", "Not a directory"),
            (lambda folder: Path("/proc/bundle"), "/proc takes no file"),
            (lambda folder: Path("/proc"), "mount point"),
            (lambda folder: Path("/"), "mount point"),
        ],
    )
    def test_folders(self, tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
        (tmp_path / "file").write_text("")
        arguments = {"overwrite": True, "is_ours": lambda folder: True}
        with pytest.raises(RequestError, match=message):
            check_folder_writable(make(tmp_path), **arguments)
        with pytest.raises(RequestError, match=message), atomic_folder(make(tmp_path), **arguments):
            pytest.fail("the body ran")
        assert names(tmp_path) == ["file"]

    def test_checks_leave_nothing(self, tmp_path: Path) -> None:
        assert check_writable(tmp_path / "a" / "b.mp4") == tmp_path / "a" / "b.mp4"
        assert check_folder_writable(tmp_path / "a" / "b", overwrite=False) == tmp_path / "a" / "b"
        assert names(tmp_path) == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights in a child")
    def test_permissions_of_another_user(self, tmp_path: Path) -> None:
        code = "print('ready', flush=True)\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        code += "try: atomic.check_writable('/etc/out.mp4')\nexcept Exception as error: print(error)"
        child = start(code)
        assert child.stdout is not None
        assert "/etc takes no file (Permission denied)" in child.stdout.read()
        child.communicate()


class TestFolder:
    @pytest.mark.parametrize("exists", [False, True])
    def test_appears_in_one_step(self, tmp_path: Path, exists: bool) -> None:
        target = tmp_path / "bundle"
        if exists:
            target.mkdir()
        with atomic_folder(target, overwrite=False) as folder:
            assert folder.parent == tmp_path
            assert folder.name.startswith(".bundle.partial-")
            fill(folder, "new")
            assert not holds_manifest(target)
        assert (target / "sub" / "data").read_text() == "new"
        assert names(tmp_path) == ["bundle"]
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(target.stat().st_mode) == 0o777 & ~umask

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_keeps_the_old_folder(self, tmp_path: Path, error: type[BaseException]) -> None:
        target = make_bundle(tmp_path / "bundle")

        def write() -> None:
            with atomic_folder(target, overwrite=True, is_ours=holds_manifest) as folder:
                fill(folder, "new")
                raise error

        with pytest.raises(error):
            write()
        assert (target / "telecine.json").read_text() == "old"
        assert names(tmp_path) == ["bundle"]

    def test_overwrite_replaces_only_what_is_ours(self, tmp_path: Path) -> None:
        target = make_bundle(tmp_path / "bundle")
        with pytest.raises(RequestError, match="not empty"), atomic_folder(target, overwrite=False):
            pytest.fail("the body ran")
        with atomic_folder(target, overwrite=True, is_ours=holds_manifest) as folder:
            fill(folder, "new")
            assert (target / "telecine.json").read_text() == "old"
        assert (target / "telecine.json").read_text() == "new"
        home = tmp_path / "home"
        home.mkdir()
        (home / "thesis.tex").write_text("years")
        for is_ours in (holds_manifest, None):
            context = atomic_folder(home, overwrite=True, is_ours=is_ours)
            with pytest.raises(RequestError, match="did not write"), context:
                pytest.fail("the body ran")
        assert names(home) == ["thesis.tex"]
        assert names(tmp_path) == ["bundle", "home"]

    def test_a_folder_that_came_meanwhile_is_checked_too(self, tmp_path: Path) -> None:
        target = tmp_path / "bundle"

        def write() -> None:
            with atomic_folder(target, overwrite=True, is_ours=holds_manifest) as folder:
                fill(folder, "new")
                target.mkdir()
                (target / "foreign").write_text("")

        with pytest.raises(RequestError, match="did not write"):
            write()
        assert names(target) == ["foreign"]
        assert names(tmp_path) == ["bundle"]

    def test_the_old_folder_comes_back_when_the_new_one_cannot_be_placed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = make_bundle(tmp_path / "bundle")
        real = os.rename

        def refuse(source: Path, destination: Path) -> None:
            if ".partial-" in str(source) and not Path(destination).exists():
                raise OSError(5, "Input/output error")
            real(source, destination)

        monkeypatch.setattr(atomic.os, "rename", refuse)
        context = atomic_folder(target, overwrite=True, is_ours=holds_manifest)
        with pytest.raises(RequestError, match="Input/output"), context as folder:
            fill(folder, "new")
        assert (target / "telecine.json").read_text() == "old"
        assert names(tmp_path) == ["bundle"]

    def test_a_link_to_a_folder_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        make_bundle(tmp_path / "disk" / "real")
        link = tmp_path / "bundle"
        link.symlink_to(tmp_path / "disk" / "real")
        with atomic_folder(link, overwrite=True, is_ours=holds_manifest) as folder:
            fill(folder, "new")
        assert link.is_symlink()
        assert (link / "telecine.json").read_text() == "new"
        assert names(tmp_path / "disk") == ["real"]


class TestKillsAndConcurrency:
    def test_a_killed_writer_leaves_the_old_folder_and_one_hidden_sibling(self, tmp_path: Path) -> None:
        target = make_bundle(tmp_path / "bundle")
        kill(start(HOLD_FOLDER, target, "new"))
        assert (target / "telecine.json").read_text() == "old"
        left = names(tmp_path)
        assert len(left) == 2
        assert left[0].startswith(".bundle.partial-")
        (tmp_path / ".bundle.partial-notes").mkdir()  # not one of ours: it only looks similar
        (tmp_path / ".bundle2.partial-abcdef").mkdir()  # another target's
        with atomic_folder(target, overwrite=True, is_ours=holds_manifest) as folder:
            assert left[0] not in names(tmp_path)
            fill(folder, "newer")
        assert names(tmp_path) == [".bundle.partial-notes", ".bundle2.partial-abcdef", "bundle"]

    def test_a_living_writer_is_left_alone_and_both_end_well(self, tmp_path: Path) -> None:
        target = tmp_path / "bundle"
        writer = start(HOLD_FOLDER, target, "other")
        try:
            with atomic_folder(target, overwrite=False) as folder:
                fill(folder, "mine")
                assert len(names(tmp_path)) == 2
            assert (target / "telecine.json").read_text() == "mine"
        finally:
            writer.communicate("go on\n")
        assert writer.returncode == 0
        assert (target / "telecine.json").read_text() == "other"
        assert names(tmp_path) == ["bundle"]

    def test_the_second_of_two_writers_without_overwrite_is_refused(self, tmp_path: Path) -> None:
        target = tmp_path / "bundle"
        second = atomic_folder(target, overwrite=False)
        fill(second.__enter__(), "second")
        with atomic_folder(target, overwrite=False) as first:
            fill(first, "first")
        with pytest.raises(RequestError, match="not empty"):
            second.__exit__(None, None, None)
        assert (target / "telecine.json").read_text() == "first"
        assert names(tmp_path) == ["bundle"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_killed_between_the_renames_the_old_folder_comes_back(self, tmp_path: Path, overwrite: bool) -> None:
        target = make_bundle(tmp_path / "bundle")
        kill(start(HOLD_SWAP, target))
        assert not target.exists()
        assert len(names(tmp_path)) == 2
        if overwrite:
            with atomic_folder(target, overwrite=True, is_ours=holds_manifest) as folder:
                assert (target / "telecine.json").read_text() == "old"
                fill(folder, "newer")
            assert (target / "telecine.json").read_text() == "newer"
        else:
            with pytest.raises(RequestError, match="not empty"), atomic_folder(target, overwrite=False):
                pytest.fail("the body ran")
            assert (target / "telecine.json").read_text() == "old"
            with pytest.raises(RequestError), atomic_folder(target, overwrite=False):
                pytest.fail("the body ran")
        assert names(tmp_path) == ["bundle"]

    def test_writers_that_overwrite_each_other_leave_one_whole_folder(self, tmp_path: Path) -> None:
        code = """
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    with atomic_folder(sys.argv[1], overwrite=True, is_ours=lambda f: (f / "telecine.json").is_file()) as folder:
        text = f"{sys.argv[2]} {number}"
        (folder / "data").write_text(text)
        (folder / "telecine.json").write_text(text)
"""
        target = tmp_path / "bundle"
        writers = [start(code, target, name) for name in "abc"]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        deadline = time.monotonic() + 60
        for writer in writers:
            writer.communicate(timeout=deadline - time.monotonic())
        assert [writer.returncode for writer in writers] == [0, 0, 0]
        assert (target / "data").read_text() == (target / "telecine.json").read_text()
        assert names(target) == ["data", "telecine.json"]
        assert names(tmp_path) == ["bundle"]
