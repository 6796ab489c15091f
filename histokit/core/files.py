"""Files that are whole or absent: temporary names, renames, locks."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from histokit.core.errors import InputError

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
    number = _number(error)
    if number not in _CIRCUMSTANCES:  # some libraries say that a file is missing that is forbidden
        number = _why_not_open(path)
    if number in _CIRCUMSTANCES:
        return InputError(f"{path} {_CIRCUMSTANCES[number]}")
    if isinstance(error, MemoryError):
        return InputError(f"{path} asks for more memory than there is; it is no whole {what}")
    if type(error).__name__ == "IORegistryError":
        return InputError(
            f"{path} holds a part that this version of AnnData cannot read; update anndata, or "
            "save the file again with an older version"
        )
    if isinstance(error, UnicodeError):
        return InputError(f"{path} is not UTF-8 text; save this {what} as UTF-8")
    reason = " ".join(f"{error or type(error).__name__}".split())[:200]
    return InputError(f"{path} is not a whole {what} ({reason}); {remedy}")


def _number(error: BaseException) -> int | None:
    """The error number of what a library raised; None without one."""
    found = re.search(r"errno = (\d+)", str(error))  # h5py words it so
    return int(found[1]) if found else getattr(error, "errno", None)


def _why_not_open(path: str | os.PathLike) -> int | None:
    """The error number with which a file does not open; None for one that does."""
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return error.errno


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
    with reading(path, what, remedy), hdf5_file(path) as file:
        yield file


def hdf5_file(path: str | os.PathLike) -> h5py.File:
    """An HDF5 file for reading, with a lock where the file system has such; h5py's own errors."""
    import h5py

    try:
        return h5py.File(path)
    except OSError as error:
        if _number(error) not in _NO_LOCKS:
            raise
        file = h5py.File(path, locking=False)
        _say_unlocked(Path(path).parent, error)
        return file


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
        if error.errno in FULL:
            raise
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
    # a name as long as the file system takes leaves no room for more
    stem = path.stem
    if len(os.fsencode(path.name)) > 200:
        stem = f"{stem[:20]}-{zlib.crc32(os.fsencode(path.name)):08x}"
    temporary = path.with_name(f".{stem}.{os.getpid()}.tmp{path.suffix}")
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
        if _is_full(path.parent, error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether a folder's disk has less room than a small file takes, or the error says so."""
    cause = error
    while cause is not None:  # what a file of ours raised inside a library
        if getattr(cause, "errno", None) in FULL or "No space left" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
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


def is_locked(folder: str | os.PathLike) -> bool:
    """Whether another process holds the folder's lock now."""
    try:
        with open(Path(folder) / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock was ever taken, or there are none
        return False
    return False


@contextmanager
def turn(folder: str | os.PathLike) -> Iterator[None]:
    """Hold an exclusive lock on a folder's tables, waiting if another process has it.

    Raises:
        InputError: ranks that torchrun started would write one table without a lock, and lose rows.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno == errno.EBADF:  # NFS locks what is open for writing, never a folder
                writable = os.open(Path(folder) / ".turn", os.O_RDWR | os.O_CREAT)
                os.close(handle)
                handle = writable
            _lock(handle, fcntl.LOCK_EX, folder)
        if str(folder) in _UNLOCKED and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"the file system of {folder} has no locks, without which several processes lose "
                "each other's rows; start one process, or choose another place"
            )
        yield
    finally:
        os.close(handle)


_UNLOCKED: set[str] = set()  # folders of which it was said already


def _say_unlocked(folder: str | os.PathLike, error: OSError) -> None:
    """Say once that a folder's files are used without locks."""
    if str(folder) not in _UNLOCKED:
        _UNLOCKED.add(str(folder))
        print(
            f"the file system of {folder} has no locks ({os.strerror(_number(error))}): make sure "
            "that no other process writes there",
            file=sys.stderr,
        )


def _lock(handle: int, how: int, folder: str | os.PathLike) -> bool:
    """Lock an open file; False where another process holds it."""
    try:
        fcntl.flock(handle, how)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:
            raise
        _say_unlocked(folder, error)
    return True


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write JSON atomically; NaN is refused, because JSON has none."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_rows(path: str | os.PathLike, rows: Sequence[Mapping]) -> None:
    """Write rows of the same keys as CSV, atomically; the first row's keys are the header."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON object; raises InputError when the file is missing, unreadable or no object."""
    with reading(path, "JSON file", "make it again"):
        value = json.loads(Path(path).read_text("utf-8-sig"))
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, where a JSON object was expected")
    return value
