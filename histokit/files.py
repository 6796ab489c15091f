"""Files that are whole or absent: temporary names, renames, locks."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from histokit.errors import InputError


def safe_name(name: str) -> str:
    """A name as one path component: ``timm:resnet18`` becomes ``timm-resnet18``."""
    return name.replace(":", "-").replace("/", "-")


def make_folder(folder: str | os.PathLike) -> Path:
    """Make a folder with its parents; raises InputError where that cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder} ({error.strerror}); choose a place you can write to"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write into {folder}; choose a folder you can write to")
    return folder


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it on success, remove it on failure.

    The suffix is kept, for writers that choose a format by it. A file that exists under its
    final name is therefore whole, whenever the process was killed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder for one process; a second one gets an InputError at once.

    The lock is the kernel's and ends with the process, so a killed run leaves nothing to clean.
    """
    path = Path(folder) / ".lock"
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is writing into {folder}; wait for it or choose another folder"
            ) from None
        yield


@contextmanager
def turn(folder: str | os.PathLike) -> Iterator[None]:
    """Wait until no other process is at the tables of a folder, and keep them out meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write JSON atomically; NaN is refused, because JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON file; raises InputError when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); make it again") from error
