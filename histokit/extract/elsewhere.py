"""Features that other programs made, read as they are: TRIDENT, CLAM, HEST.

A patch is known by the top-left corner of its square in level-0 pixels. A spot takes the features
of the patch that contains its center, the one whose center is nearest where several do; a spot
outside every patch has none. HEST's files name the spot of each patch instead.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from histokit.core.errors import InputError
from histokit.core.files import open_hdf5
from histokit.data.sources import SlideSource
from histokit.extract.bundled import BUNDLED
from histokit.extract.registry import REGISTRY
from histokit.extract.writer import LOST, image_size

# only this program makes them
OWN = (*BUNDLED, "efficientnet-lite0-random", "hed")
WHAT = "feature file with features (N, D) and coords (N, 2)"
_SIZE_KEYS = ("patch_size_level0", "patch_size", "downsample")


@dataclasses.dataclass(frozen=True)
class Embedded:
    """The features of one slide's patches.

    Attributes:
        features: (N, D) float32.
        corners: (N, 2) int64 top-left corners x, y in level-0 pixels.
        side: side of a patch in level-0 pixels, None where the file does not say.
        barcodes: (N,) the spot of each patch, or None.
        maker: one of ``histokit.core.encoder_names.MAKERS``.
        about: what the file says of how it was made.
    """

    features: np.ndarray
    corners: np.ndarray
    side: int | None
    barcodes: list[str] | None
    maker: str
    about: dict[str, str]

    @property
    def centers(self) -> np.ndarray:
        """(N, 2) centers of the patches."""
        return self.corners + self.side / 2


def feature_file(folder: Path, slide_id: str) -> Path:
    """The file of a slide; raises InputError where there is none, or none that can be placed."""
    path = folder / f"{slide_id}.h5"
    if path.is_file():
        return path
    for other in (f"{slide_id}.pt", f"{slide_id}_embeddings.pt"):
        if (folder / other).is_file():
            raise InputError(
                f"{folder / other} holds features without coordinates, so nothing says where on "
                "the tissue they belong; give the .h5 files that were made beside it"
            )
    found = sorted(p.stem for p in folder.glob("[!.]*.h5")) if folder.is_dir() else []
    raise InputError(
        f"{folder} holds no {slide_id}.h5 with the features of slide {slide_id} (there: "
        f"{', '.join(found[:5]) or 'no .h5 file'}); name slides as their feature files are named"
    )


def of_slide(slide: SlideSource, folder: Path, patch_px: int | None) -> Embedded:
    """The features of a slide, with places that can be those of its image.

    Raises:
        InputError: as ``feature_file`` and ``read_embedded``; patches without a size, outside the
            image, or of an image of another size.
    """
    name, path = slide.slide_id, feature_file(folder, slide.slide_id)
    embedded = read_embedded(path, name, patch_px)
    if embedded.barcodes is not None and slide.load_spots is not None:
        return embedded
    if embedded.side is None:
        raise InputError(
            f"slide {name}: {path} does not say how large its patches are; give their side in "
            "level-0 pixels with --patch-px"
        )
    size = image_size(slide)
    cut_from = tuple(embedded.about.get(f"level0_{axis}", "None") for axis in ("width", "height"))
    if "None" not in cut_from and tuple(map(float, cut_from)) != size and np.isfinite(size[0]):
        raise InputError(
            f"slide {name}: {path} was made from an image of {cut_from[0]} x {cut_from[1]} px, and "
            f"{slide.image.name} has {size[0]:g} x {size[1]:g}; give the image it was made from"
        )
    beyond = (embedded.centers >= size).any(axis=1) | (embedded.centers < 0).any(axis=1)
    if beyond.any():
        raise InputError(
            f"slide {name}: {beyond.sum():,} of {len(beyond):,} patches of {path} lie outside the "
            f"image of {size[0]:g} x {size[1]:g} px; they were cut from another image"
        )
    return embedded


def provenance_of(folder: Path, slides: list[SlideSource], encoder: str) -> dict:
    """What features that others made are held to, from the file of the first slide.

    Args:
        folder: of the feature files.
        slides: the slides that are extracted.
        encoder: what the user calls the encoder.

    Raises:
        InputError: no file, no encoder named, or one whose features have another dimension.
    """
    path = feature_file(folder, slides[0].slide_id)
    embedded = read_embedded(path, slides[0].slide_id)
    stated, dim = embedded.about.get("encoder", ""), embedded.features.shape[1]
    if encoder in OWN:
        raise InputError(
            f"--features-from: say with --encoder what made the features of {folder}"
            + f" (the files say {stated})" * bool(stated)
        )
    expected = REGISTRY[encoder].dim if encoder in REGISTRY else dim
    if expected != dim:
        alike = [name for name, entry in REGISTRY.items() if entry.dim == dim]
        raise InputError(
            f"{path} holds features of {dim} dimensions and {encoder} gives {expected}; encoders "
            f"of {dim}: {', '.join(alike) or 'none that is known here'}"
        )
    if stated:
        print(f"{folder}: its files say that they are of {stated}; here they are {encoder}")
    return {
        "encoder": f"{encoder}@{embedded.maker}",
        "weights_sha256": "not known",
        "transform": _cut(embedded.about),
        "pooling": "not known",
        "precision": "not known",
        "patch_um": 0.0,
        "patch_px": 0,
    }


def _cut(about: dict[str, str]) -> str:
    """How the patches were cut, as far as the file says it."""
    said = {key: about[key] for key in ("patch_size", "target_magnification") if key in about}
    if len(said) == 2:
        return f"{said['patch_size']} px at {said['target_magnification']}x"
    return "not known"


def read_embedded(path: Path, slide_id: str, patch_px: int | None = None) -> Embedded:
    """Read and check the features of one slide.

    Args:
        path: the file.
        slide_id: named in errors.
        patch_px: side of a patch in level-0 pixels, for files that do not say it.

    Raises:
        InputError: a file of another kind, of no patch, of another side than ``patch_px``, with
            rows that do not belong together, values that are not finite, or corners that occur
            twice.
    """
    with open_hdf5(path, WHAT) as file:
        key = next((k for k in ("features", "embeddings") if k in file), None)
        if key is None or "coords" not in file:
            raise InputError(
                f"slide {slide_id}: {path} holds {', '.join(file) or 'nothing'}; a {WHAT} was "
                "expected"
            )
        features, corners = file[key][:], file["coords"][:]
        name = next((k for k in ("barcodes", "barcode") if k in file), None)
        barcodes = None if name is None else [_text(b) for b in file[name][:].ravel()]
        about = {k: _text(v) for node in (file, file["coords"], file[key]) for k, v in _attrs(node)}
    where = f"slide {slide_id}: {path}"
    if len(features) == 0:
        raise InputError(f"{where} holds no patch: its maker found no tissue; leave the slide out")
    rows = {len(features), len(corners), len(barcodes or features)}
    if features.ndim != 2 or corners.ndim != 2 or corners.shape[1] != 2 or len(rows) > 1:
        raise InputError(
            f"{where} holds features {features.shape}, coords {corners.shape} and "
            f"{len(barcodes or [])} barcodes; one row a patch was expected"
        )
    features = features.astype(np.float32)
    if not np.isfinite(features).all():
        raise InputError(f"{where} holds features that are not finite; extract the slide again")
    if len(np.unique(corners, axis=0)) < len(corners):
        raise InputError(f"{where} holds two patches at one place; the file is damaged")
    side = _side(about) or patch_px
    if patch_px and side != patch_px:
        raise InputError(
            f"{where} says that its patches are of {side} level-0 pixels, and --patch-px of "
            f"{patch_px}; leave --patch-px out"
        )
    return Embedded(features, corners.astype(np.int64), side, barcodes, _maker(about, key), about)


def _attrs(node: h5py.Group | h5py.Dataset):
    return [(k, v) for k, v in node.attrs.items() if np.size(v)]


def _text(value) -> str:
    value = value if isinstance(value, (bytes, str)) else np.ravel(value)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def _side(about: dict[str, str]) -> int | None:
    """Level-0 side: TRIDENT states it; CLAM states the side at a level and its downsample."""
    said = {key: float(about[key]) for key in _SIZE_KEYS if about.get(key, "None") != "None"}
    if "patch_size_level0" in said:
        return round(said["patch_size_level0"])
    if {"patch_size", "downsample"} <= set(said):
        return round(said["patch_size"] * said["downsample"])
    return None


def _maker(about: dict[str, str], key: str) -> str:
    if "weights_sha256" in about:
        return "histokit"
    if key == "embeddings":
        return "hest"
    return "clam" if "patch_level" in about else "trident"


def join_patches(centers: np.ndarray, embedded: Embedded) -> tuple[np.ndarray, np.ndarray]:
    """The patch that contains each spot center.

    Args:
        centers: (M, 2) spot centers x, y in level-0 pixels.
        embedded: the patches.

    Returns:
        (M,) rows of the patches, -1 where none contains the center, and (M,) the distance of spot
        and patch center in level-0 pixels, along the axis where it is larger.
    """
    # squares of one side: the nearest center in the maximum norm is that of a containing patch
    distance, rows = cKDTree(embedded.centers).query(centers, p=np.inf)
    return np.where(distance <= embedded.side / 2, rows, -1), distance


def take(
    slide: SlideSource, spots: anndata.AnnData, embedded: Embedded, row: dict
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """The features of a slide's spots.

    Args:
        slide: the slide.
        spots: its M spots.
        embedded: the features of its patches.
        row: the row of the reconciliation table; gets ``without_patch``.

    Returns:
        features (N, D) and corners (N, 2) of the spots that have a patch, (M,) bool which these
        are, and what speaks against these being features of this slide, in sentences.

    Raises:
        InputError: fewer than two spots have a patch.
    """
    name = slide.slide_id
    if embedded.barcodes is not None and slide.load_spots is not None:
        rows, how = pd.Index(embedded.barcodes).get_indexer(spots.obs_names), "by barcode"
    else:
        rows, distance = join_patches(spots.obsm["spatial"], embedded)
        unit, scale = ("um", slide.mpp) if slide.mpp else ("px", 1.0)
        near = distance[rows >= 0] * scale
        how = (
            f"with their centers at most {near.max(initial=0):.0f} {unit} apart, "
            f"{np.median(near) if len(near) else 0:.0f} {unit} in the median, on patches of "
            f"{embedded.side * scale:.0f} {unit}"
        )
    kept = rows >= 0
    row["without_patch"] = int((~kept).sum())
    if kept.sum() < 2:
        raise InputError(
            f"slide {name}: {kept.sum()} of {len(kept):,} spots lie in a patch of the features "
            "given; they belong to another slide or to an image of another size"
        )
    shared = len(rows[kept]) - len(np.unique(rows[kept]))
    print(
        f"{name}: {kept.sum():,} of {len(kept):,} spots take the features of a patch {how}"
        + f"; {shared:,} share theirs with another spot" * bool(shared)
    )
    said = []
    if (~kept).mean() > LOST:
        said.append(f"{(~kept).sum():,} of {len(kept):,} spots lie in no patch of the features")
    features = embedded.features[rows[kept]]
    if np.ptp(features, axis=0).max() == 0:
        said.append("all spots have the same features")
    return features, embedded.corners[rows[kept]], kept, said
