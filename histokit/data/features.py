"""What makes features interchangeable, in one place for extraction, training and evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from histokit.core.errors import InputError

# Patches are cut in microns by each slide's mpp (patch_um, several sides where there are several
# scales), or in level-0 pixels whatever the mpp is (patch_px, then patch_um is 0). The turns and
# mirrors that are averaged over are part of ``transform``.
FEATURE_IDENTITY = (
    "encoder",
    "weights_sha256",
    "transform",
    "pooling",
    "precision",
    "patch_um",
    "patch_px",
    "dimension",
)

# In the folder of an encoder that was tuned for each fold: its features lie in FOLDER/FOLD.
TUNED = "tuned.json"
FOLD_FEATURES = "features.json"  # in a fold's folder: the identity of features of its own


def tuned_slides(attributes: Mapping, roles: Sequence[str] = ("train", "val")) -> set[str]:
    """Slides that trained an encoder, or chose its epoch, by the attribute of a feature file."""
    known = json.loads(attributes.get("tuned_on", "{}"))
    return {slide for role in roles for slide in known.get(role, [])}


def feature_identity(attributes: Mapping) -> dict:
    """The part of a feature file's attributes that has to agree."""
    return {key: attributes[key] for key in FEATURE_IDENTITY if key in attributes}


def difference(trained: Mapping, found: Mapping) -> tuple[str, object, object] | None:
    """The first identity in which features differ: key, value trained on, value found.

    A key that one side does not record is no difference: files made before it existed stay usable.
    But patches cut in pixels (``patch_um`` 0) say nothing of themselves without ``patch_px``.

    Raises:
        InputError: patches cut in pixels, and one side does not record how many.
    """
    for key in FEATURE_IDENTITY:
        if key in trained and key in found and trained[key] != found[key]:
            return key, trained[key], found[key]
    in_pixels = trained.get("patch_um") == 0 and found.get("patch_um") == 0
    if in_pixels and ("patch_px" in trained) != ("patch_px" in found):
        raise InputError(
            "these features were cut in pixels (--patch-px), and either the run or the feature "
            "file was made before it recorded how many; extract and train again"
        )
    return None
