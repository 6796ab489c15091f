"""Folders that are written whole and replaced only where they are ours."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import histokit
from histokit.core.errors import InputError
from histokit.core.files import full_disk_named, make_folder, read_json, write_json

MANIFEST = "manifest.json"  # names every file of a folder that whole_folder wrote


def check_replaceable(folder: Path) -> None:
    """A folder is replaced only if every file in it is known to be ours.

    Raises:
        InputError: the folder holds a file that its manifest does not list, is no folder, or is
            the current folder.
    """
    folder = _resolved(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder with --out")
    if folder == Path.cwd() or folder in Path.cwd().parents:
        raise InputError(f"{folder} holds the current folder; give another one with --out")
    found = _files(folder)
    if not found:
        return
    if MANIFEST not in found:
        raise InputError(
            f"{folder} exists and was not written by this version (no {MANIFEST}); give "
            "another place with --out, or remove it yourself"
        )
    ours = read_json(folder / MANIFEST).get("files")
    foreign = sorted(found - {MANIFEST} - set(ours if isinstance(ours, list) else ()))
    if foreign:
        raise InputError(
            f"{folder} holds {len(foreign)} files that this program did not write, such as "
            f"{foreign[0]}, and replacing it would lose them; move them, or give another --out"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``folder`` on success.

    What was there before is kept until then. Temporary folders of killed processes are removed,
    and what such a process had moved away is put back.
    """
    folder = _resolved(folder)
    make_folder(folder.parent)
    _clean(folder)
    check_replaceable(folder)
    temporary = folder.with_name(_name(folder, os.getpid(), "tmp"))
    old = folder.with_name(_name(folder, os.getpid(), "old"))
    make_folder(temporary)
    try:
        with full_disk_named(folder):
            yield temporary
            write_json(temporary / MANIFEST, {"files": sorted(_files(temporary))})
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except RuntimeError as error:  # how Python words a loop of links
        raise InputError(f"{folder} is a loop of symbolic links; give another --out") from error


def _files(folder: Path) -> set[str]:
    """Everything in a folder that is no folder itself, by its path in there."""
    found = set()
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found |= {os.path.relpath(os.path.join(place, name), folder) for name in names + links}
    return found


def _name(folder: Path, process: int | str, kind: str) -> str:
    return f".{folder.name}.{socket.gethostname()}-{process}.{kind}"


def _clean(folder: Path) -> None:
    """Remove what killed processes of this machine left; put back what they had moved away."""
    pattern = re.compile(
        rf"\.{re.escape(folder.name)}\.{re.escape(socket.gethostname())}-(\d+)\.(tmp|old)"
    )
    for path in folder.parent.iterdir():
        left = pattern.fullmatch(path.name)
        if left is None or _is_alive(int(left[1])):
            continue
        if left[2] == "old" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def versions() -> dict:
    """Of what shapes a figure."""
    names = ("torch", "numpy", "pandas", "anndata", "matplotlib")
    return {"histokit": histokit.__version__} | {name: version(name) for name in names}
