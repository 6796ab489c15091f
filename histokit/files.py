"""Files that are whole or absent: temporary names, renames, locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from histokit.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
# What file systems without locks answer: Lustre, EFS and others.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EBADF, errno.EOPNOTSUPP, errno.EINVAL)

if TYPE_CHECKING:
    import h5py

# Why a file could not be opened or locked, none of which says anything about its content.
_CIRCUMSTANCES = {
    errno.ENOENT: "does not exist; check the path",
    errno.EACCES: "cannot be opened, permission denied; make it readable for this user",
    errno.EPERM: "cannot be opened, permission denied; make it readable for this user",
    errno.EISDIR: "is a folder where a file was expected; check the path",
    errno.ENOTDIR: "lies under a file where a folder was expected; check the path",
    errno.ELOOP: "is a loop of symbolic links; point it at a file",
    errno.ENAMETOOLONG: "has a name that is too long for the file system; shorten it",
    errno.EMFILE: "cannot be opened, too many files are open; raise the limit (ulimit -n)",
    errno.EAGAIN: "is locked by another process; wait for that and run the same command again",
    errno.EDEADLK: "is locked by another process; wait for that and run the same command again",
    errno.ENOLCK: "lies on a file system without file locks; set HDF5_USE_FILE_LOCKING=FALSE",
    errno.ENOSYS: "lies on a file system without file locks; set HDF5_USE_FILE_LOCKING=FALSE",
    errno.EIO: "could not be read by the file system (input/output error); try again later",
    errno.ESTALE: "could not be read by the file system (stale handle); try again later",
}


def unreadable(
    path: str | os.PathLike, error: BaseException, what: str, remedy: str = "copy it again"
) -> InputError:
    """The one sentence about a file that could not be read.

    ``remedy`` is said of damaged content alone: a file that is locked, forbidden or out of reach
    is not damaged, and advice to delete or copy it would lose a good file.

    Args:
        path: the file.
        error: what a library raised.
        what: a whole file of this kind was expected, such as ``counts file (.h5ad)``.
        remedy: what to do about damaged content.
    """
    number = getattr(error, "errno", None)
    if found := re.search(r"errno = (\d+)", str(error)):  # h5py words it so
        number = int(found[1])
    if number in _CIRCUMSTANCES:
        return InputError(f"{path} {_CIRCUMSTANCES[number]}")
    if isinstance(error, MemoryError):
        return InputError(f"{path} asks for more memory than there is; it is no whole {what}")
    if isinstance(error, UnicodeError):
        return InputError(f"{path} is not UTF-8 text; save this {what} as UTF-8")
    reason = " ".join(f"{error or type(error).__name__}".split())[:200]
    return InputError(f"{path} is not a whole {what} ({reason}); {remedy}")


@contextmanager
def reading(path: str | os.PathLike, what: str, remedy: str = "copy it again") -> Iterator[None]:
    """Turn whatever a library raises about a file's content into one sentence about that file.

    Damaged bytes make libraries raise nearly anything (KeyError, TypeError, zlib.error, ...), so
    nothing but a full disk and our own errors passes. Wrap the reading alone, not the work.

    Raises:
        InputError: as ``unreadable`` words it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in FULL:
            raise
        raise unreadable(path, error, what, remedy) from error


@contextmanager
def open_hdf5(
    path: str | os.PathLike, what: str, remedy: str = "copy it again"
) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; its own failures and those inside end as in ``reading``."""
    import h5py

    with reading(path, what, remedy), h5py.File(path) as file:
        yield file


def safe_name(name: str) -> str:
    """A name as one path component: ``timm:resnet18`` becomes ``timm-resnet18``."""
    return name.replace(":", "-").replace("/", "-")


def file_id(label: str) -> str:
    """Any text as one path component that is safe on every file system, and always the same.

    Plain labels (ASCII letters, digits and ``_ . + -``, with single blanks inside) are their own
    id; of others the plain part is kept and a hash of the whole label is added, so that two labels
    never share an id by accident.
    """
    if len(label) <= 80 and re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.+ -]*[A-Za-z0-9_+-])?", label):
        return label
    plain = re.sub(r"[^A-Za-z0-9_]+", "-", label).strip("-")[:40]
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest


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

    Raises:
        OSError: with ENOSPC and the path, for whatever a writer raised while the disk was full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        with full_disk_named(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Whatever fails inside because the disk is full ends as one OSError with ENOSPC.

    torch, safetensors, HDF5 and matplotlib word a full disk as errors of their own.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in FULL or _is_full(path.parent, error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether a folder's disk has less room than a small file takes, or the error says so."""
    if "No space left" in str(error):
        return True
    try:
        space = os.statvfs(folder)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize < 1 << 16 or space.f_favail == 0 < space.f_files


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary files of killed processes; the caller holds the folder's lock."""
    for path in Path(folder).rglob(".*.tmp*"):
        if re.fullmatch(r"\..*\.\d+\.tmp(\.\w+)?", path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder for one process; a second one gets an InputError at once.

    The lock is the kernel's and ends with the process, so a killed run leaves nothing to clean.
    A file system without locks is used without, and that is said.
    """
    path = Path(folder) / ".lock"
    with open(path, "w") as handle:
        if not _lock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, folder):
            raise InputError(
                f"another process is writing into {folder}; wait for it or choose another folder"
            )
        yield


@contextmanager
def turn(folder: str | os.PathLike) -> Iterator[None]:
    """Hold an exclusive lock on a folder's tables, waiting if another process has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, fcntl.LOCK_EX, folder)
        yield
    finally:
        os.close(handle)


_UNLOCKED: set[str] = set()  # folders of which it was said already


def _lock(handle: int, how: int, folder: str | os.PathLike) -> bool:
    """Lock an open file; False where another process holds it."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        if str(folder) not in _UNLOCKED:
            _UNLOCKED.add(str(folder))
            print(
                f"the file system of {folder} has no locks ({error.strerror}): make sure that no "
                "other process writes there",
                file=sys.stderr,
            )
    return True


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write JSON atomically; NaN is refused, because JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON object; raises InputError when the file is missing, unreadable or no object."""
    with reading(path, "JSON file", "make it again"):
        value = json.loads(Path(path).read_text("utf-8-sig"))
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, where a JSON object was expected")
    return value
