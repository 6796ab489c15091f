"""Where the weights of a pathology encoder are: a file, a folder, or the hub's own cache."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from histokit.core.errors import InputError
from histokit.extract.registry import Foundation, page_of


def find_weights(entry: Foundation, given: str | os.PathLike | None) -> Path:
    """The file of an encoder's weights.

    Args:
        entry: of the registry.
        given: the file, or a folder that holds it under a name of the hub's; None asks the hub,
            which honors ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN``.

    Raises:
        InputError: no such file; says where access is asked for and what to give.
    """
    if given is None:
        return _from_hub(entry)
    found = in_folder(Path(given), entry.files)
    if found is None:
        raise InputError(
            f"the folder {given} holds none of {', '.join(entry.files)}, the weights of "
            f"{entry.name}; fetch one at {page_of(entry)}, or give the file itself as --weights"
        )
    return found


def in_folder(path: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these files in a folder, None for none; a path that is no folder itself."""
    if not path.is_dir():
        return path
    return next((path / name for name in names if (path / name).is_file()), None)


def at_hand(entry: Foundation) -> Path | None:
    """The file of an encoder's weights where it is in the hub's cache; asks nobody."""
    if not entry.hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in entry.files:
        found = try_to_load_from_cache(entry.hub, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _from_hub(entry: Foundation) -> Path:
    if not entry.hub:
        raise InputError(
            f"the weights of {entry.name} are on no hub; fetch {' or '.join(entry.files)} at "
            f"{page_of(entry)} and give the file as --weights"
        )
    if found := at_hand(entry):
        return found
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells every retry
    reason: Exception | None = None
    for name in entry.files:
        try:
            return Path(hf_hub_download(entry.hub, name))
        except EntryNotFoundError as error:
            reason = error
        except Exception as error:  # gated, offline, unreachable: the remedy is the same
            reason = error
            break
    raise InputError(
        f"the weights of {entry.name} cannot be fetched ({type(reason).__name__}); ask for access "
        f"at {page_of(entry)}, fetch {' or '.join(entry.files)} there, and give the file as "
        "--weights (or set HF_TOKEN where there is a network)"
    ) from reason
