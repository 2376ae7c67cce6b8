"""Files and folders that are either whole or absent, whatever interrupts their writer.

Work goes into a hidden sibling, `.NAME.partial-XXXXXX`, and one rename makes it the real thing. A writer
holds an flock on its sibling for as long as it lives, so whoever comes next can tell what a killed writer
left behind (removed) from what a living one is still filling (left alone).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from telecine.errors import RequestError

# A name has 255 bytes and a character up to 4; this leaves room for ".partial-XXXXXX" and a suffix.
_KEPT_NAME_CHARACTERS = 48
_PARTIAL = "partial"  # work in progress, or an old folder that is being removed
_REPLACED = "replaced"  # the old folder, between the two renames of an overwrite
_ATTEMPTS = 16  # each retry means that another writer got in between two system calls


def check_writable(path: str | os.PathLike[str]) -> Path:
    """The real path (links followed) of a file that can be written at `path`; leaves nothing behind.

    Raises:
        RequestError: a folder or a device is there, the file is read-only, or no file can be made beside it.
    """
    target = _real_path(path)
    mode = _mode(target)
    problem = None
    if mode is not None:
        if stat.S_ISDIR(mode):
            problem = "is a folder"
        elif not stat.S_ISREG(mode):  # a rename would replace /dev/null itself, for the whole machine
            problem = "is a device, pipe or socket"
        elif not os.access(target, os.W_OK):
            problem = "is read-only"
    if problem:
        raise RequestError(
            f"{path} {problem}", expected="a free path, or a file to replace", fix="Choose another path."
        )
    _check_parent(target)
    return target


def check_folder_writable(
    path: str | os.PathLike[str], *, overwrite: bool, is_ours: Callable[[Path], bool] | None = None
) -> Path:
    """The real path (links followed) that `atomic_folder` can write at `path`; leaves nothing behind.

    Raises:
        RequestError: something is there that may not be replaced, or no folder can be made beside it.
    """
    target = _real_path(path)
    mode = _mode(target)
    if mode is not None and not stat.S_ISDIR(mode):
        raise RequestError(f"{path} is a file", expected="a free path or a folder", fix="Choose another path.")
    if os.path.ismount(target):
        raise RequestError(
            f"{path} is a mount point, which cannot be replaced in one step",
            expected="a folder that can be renamed",
            fix=f"Write to a folder inside it: {target / 'NAME'}.",
        )
    if mode is not None:
        _check_replaceable(target, overwrite, is_ours)
    _check_parent(target)
    return target


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary sibling with the suffix of `path`; it becomes `path` if the body ends without error.

    The sibling exists and is empty. Missing parent folders are made. The body may rewrite it by any means.

    Raises:
        RequestError: before the body, if `path` cannot be written (`check_writable`); after it, if the file
            could not be moved into place.
    """
    target = check_writable(path)
    with _claimed(target, _create_file, target.suffix) as partial:
        try:
            yield partial
            with _refusing(f"{path} could not be written"):
                _sync(partial)
                os.replace(partial, target)
                _sync(target.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, overwrite: bool, is_ours: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Yield a temporary sibling folder of `path`; it becomes `path` if the body ends without error.

    An empty folder at `path` is replaced. Anything else there is replaced only with `overwrite`, and only if
    `is_ours(path)` knows it (without `is_ours`, nothing is known); it stays in place until the new folder is
    whole. Every file inside is on the disk before the folder has its name.

    Raises:
        RequestError: before the body, if `path` cannot be written or replaced (`check_folder_writable`);
            after it, if another writer put a folder there meanwhile, or the new one could not be moved.
    """
    target = _real_path(path)
    _remove_stale(target)  # first: it may bring back an old folder, which the check must see
    check_folder_writable(target, overwrite=overwrite, is_ours=is_ours)
    with _claimed(target, _create_folder) as partial:
        try:
            yield partial
            with _refusing(f"{path} could not be written"):
                for entry in [*partial.rglob("*"), partial]:
                    if not entry.is_symlink():
                        _sync(entry)
                _move_folder(partial, target, overwrite, is_ours)
                _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _move_folder(new: Path, target: Path, overwrite: bool, is_ours: Callable[[Path], bool] | None) -> None:
    """Rename `new` onto `target`; an old folder there goes only once the new one is in."""
    for _ in range(_ATTEMPTS):
        if _rename_if_free(new, target):
            return
        _check_replaceable(target, overwrite, is_ours)
        with suppress(FileNotFoundError), _opened(target) as old:  # another writer may just have moved it
            _try_lock(old)  # before it has the name that others look for
            aside = _sibling(target, _REPLACED)
            os.rename(target, aside)
            if _swap_in(new, target, aside):
                return
    raise _too_busy(target)


def _swap_in(new: Path, target: Path, aside: Path) -> bool:
    """Put `new` where the folder now at `aside` was; back goes the old one if that fails.

    False if another writer's folder got there first; then the old one is obsolete all the same.
    """
    try:
        placed = _rename_if_free(new, target)
    except BaseException:
        _rename_if_free(aside, target)
        raise
    # As a partial it can never be taken for a folder to bring back, even half removed.
    rubbish = _sibling(target, _PARTIAL)
    with suppress(OSError):  # the next writer tries again
        os.rename(aside, rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)
    return placed


def _rename_if_free(source: Path, target: Path) -> bool:
    """Rename a folder onto an absent or empty `target`; False if there is something in it."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _check_replaceable(target: Path, overwrite: bool, is_ours: Callable[[Path], bool] | None) -> None:
    """Raise RequestError if the folder `target` holds something that this caller may not replace."""
    for _ in range(_ATTEMPTS):
        before = _identity(target)
        with _refusing(f"{target} cannot be listed"):
            if _is_free(target):
                return
        if overwrite and is_ours is not None and is_ours(target):
            return
        if _identity(target) == before:
            break
        # else another writer replaced it while it was looked at, and the verdict is on neither folder
    if not overwrite:
        raise RequestError(
            f"{target} exists and is not empty",
            expected="a free path, or an empty folder",
            fix="Choose another path, or ask to overwrite it if the command can.",
        )
    raise RequestError(
        f"{target} holds something that telecine did not write",
        expected="a folder of the same kind as the one that replaces it",
        fix="Choose another path, or remove that folder yourself.",
    )


def _is_free(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return not any(entries)
    except FileNotFoundError:
        return True


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another that takes its place (inode numbers come back, times do not)."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


@contextmanager
def _claimed(target: Path, create: Callable[[Path], int], suffix: str = "") -> Iterator[Path]:
    """Make a sibling of `target` and hold the lock that says that its writer lives."""
    with _refusing(f"{target.parent} takes no new entry"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target, suffix)
        for _ in range(_ATTEMPTS):
            partial = _sibling(target, _PARTIAL, suffix)
            with suppress(FileExistsError, FileNotFoundError):  # the name was taken, or swept before the lock
                lock = create(partial)
                with suppress(OSError):  # no locks on this file system: nobody will call it stale either
                    fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    # Whoever held the lock until now was sweeping, and has removed the entry.
                    if os.path.samestat(os.fstat(lock), os.stat(partial)):
                        break
                except FileNotFoundError:
                    pass
                os.close(lock)
        else:
            raise _too_busy(target)
    try:
        yield partial
    finally:
        os.close(lock)


def _remove_stale(target: Path, suffix: str = "") -> None:
    """Remove what killed writers of `target` left; an old folder that lost its place goes back there."""
    for kind in (_REPLACED, _PARTIAL):
        pattern = re.compile(re.escape(_sibling_start(target, kind)) + "[0-9a-f]{6}" + re.escape(suffix))
        with suppress(OSError):  # a folder that cannot be listed
            for entry in [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name)]:
                with suppress(OSError):  # gone meanwhile, or not ours to remove: neither stops the work
                    _remove_if_stale(entry, target, kind)


def _remove_if_stale(entry: Path, target: Path, kind: str) -> None:
    with _opened(entry, os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
        if not _try_lock(descriptor):
            return
        if kind == _REPLACED and not target.exists():
            os.rename(entry, target)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held by a living writer; or no locks here, and then nothing may be called stale
        return False
    return True


def _create_file(path: Path) -> int:
    # 0666 less the umask: tempfile's 0600 would outlive the rename.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _create_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _sibling_start(target: Path, kind: str) -> str:
    name = target.name
    if len(name) > _KEPT_NAME_CHARACTERS:
        # Shortened, but told apart: an old folder must not come back under another one's name.
        name = name[: _KEPT_NAME_CHARACTERS - 9] + "-" + hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f".{name}.{kind}-"


def _sibling(target: Path, kind: str, suffix: str = "") -> Path:
    return target.parent / f"{_sibling_start(target, kind)}{secrets.token_hex(3)}{suffix}"


def _real_path(path: str | os.PathLike[str]) -> Path:
    # Through links: replacing the link itself would leave the file that it names as it was.
    return Path(os.path.realpath(os.path.expanduser(path)))


def _mode(path: Path) -> int | None:
    with _refusing(f"{path} cannot be reached"):
        try:
            return path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None


def _check_parent(target: Path) -> None:
    """Raise RequestError unless the closest existing folder above `target` takes a new file."""
    folder = target.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    # Tried, not asked: permission bits say nothing of read-only disks, quotas or /proc. The file has no name.
    with _refusing(f"{target} cannot be written: {folder} takes no file"), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    with _opened(path) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that syncs no folders
                raise


def _too_busy(target: Path) -> RequestError:
    return RequestError(
        f"{target} is being written by others again and again", expected="one writer", fix="Run this again."
    )


@contextmanager
def _refusing(got: str) -> Iterator[None]:
    """Turn an OSError into a RequestError that keeps the system's reason."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"{got} ({error.strerror or error})",
            expected="a folder that can be written, on a disk with room",
            fix="Choose another path, or free this one.",
        ) from error
