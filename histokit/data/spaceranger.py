"""Visium folders as Space Ranger writes them and as data sets are published, and their images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.data.array_scale import (
    VISIUM_STEP_UM,
    array_notes,
    fit_scale,
    read_positions,
    read_scales,
    settle_mpp,
)
from histokit.data.counts import read_counts
from histokit.data.counts_mex import is_mex, mex_files
from histokit.data.sources import Ask, SlideSource, check_slide_id
from histokit.data.technologies import PITCH_UM

SPOT_UM = 65.0  # what spot_diameter_fullres measures; the spot itself has 55 um
POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
_ZIPPED = tuple(f"{name}.gz" for name in POSITIONS[:2])  # as GEO publishes them
MATRICES = ("filtered_feature_bc_matrix", "raw_feature_bc_matrix")
SCALES = "scalefactors_json.json"
BINS = re.compile(r"(?:.+_)?square_(\d{3})um")
IMAGE_SUFFIXES = set(".tif .tiff .btf .svs .ndpi .png .jpg .jpeg .scn .bif .mrxs".split())
_BIN = re.compile(r"s_\d{3}um_\d{5}_")  # how the barcodes of Visium HD begin
_IMAGE_FOLDERS = ("image", "images", "microscope_image")
_COPIES = {
    "tissue_hires_image.png": "tissue_hires_scalef",
    "tissue_lowres_image.png": "tissue_lowres_scalef",
}
_NO_SLIDES = (
    *_COPIES,
    "aligned_fiducials.jpg",
    "detected_tissue_image.jpg",
    "aligned_tissue_image.jpg",
    "cytassist_image.tiff",
)
_OTHERS = ("cohort.csv", "ST-spotfiles", "st")  # what makes a folder one of another layout
_INNER = re.compile(r"outs|spatial|(.+_)?binned_outputs|" + BINS.pattern)
_PREFIX = re.compile(
    r"(.+?)_(filtered_feature_bc|raw_feature_bc|tissue_positions|scalefactors|barcodes\.tsv|"
    r"features\.tsv|genes\.tsv|matrix\.mtx)"
)
_HINT = (
    "positions and scale factors may be of different images, or spot_diameter_fullres holds 55 um "
    "/ mpp, as HEST writes it, in place of 65 um / mpp"
)


@dataclass(frozen=True)
class Run:
    """The files of one slide.

    Attributes:
        name: the prefix of the files, or the name of the folder that holds them.
        spatial: the folder of the positions.
        counts: a 10x ``.h5`` or a MEX folder.
        scales: the scale factors, or None.
        places: folders beside or in which the image may lie, innermost first.
    """

    name: str
    spatial: Path
    positions: Path
    counts: Path
    scales: Path | None
    places: tuple[Path, ...]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The files, with those of a MEX folder."""
        counts = mex_files(self.counts) if self.counts.is_dir() else (self.counts,)
        return (self.positions, *counts, *([self.scales] if self.scales else []))


def detect_spaceranger(source: Path) -> bool:
    """A folder with tissue positions or a feature-barcode matrix, itself or in ``outs``."""
    try:
        if is_other(source) or bin_folders(source):
            return False
        source = absolute(source)
        return _spatial_folder(source) is not None or any(
            _matching(folder, (name, f"{name}.h5"))
            for folder in (source, source / "outs")
            for name in MATRICES
        )
    except OSError:
        return False


def read_spaceranger(source: Path, ask: Ask, slide_id: str | None = None) -> list[SlideSource]:
    """One Visium slide; mpp is measured on the array, whose spots are 100 um apart.

    Args:
        source: the run folder, its ``outs``, its ``spatial``, or a folder of a published data set.
        ask: what the user says of it.
        slide_id: the id to use, in place of the prefix of the files or the name of the folder.

    Raises:
        InputError: a file is absent or there twice, no image, or figures for mpp that disagree.
    """
    source = absolute(source)
    run = _find_run(source)
    name = check_slide_id(slide_id, source) if slide_id else file_id(run.name)
    if not ask.wants(name):
        return []
    image = choose_image(images_in(run), ask, source)
    scales = read_scales(run.scales)
    scale = copy_scale(image, scales, run)
    spots = read_positions(run.positions, scale)
    if _BIN.match(str(spots["barcode"].iloc[0])):
        raise InputError(
            f"{run.positions} lists bins of Visium HD; put the matrix, and a folder spatial with "
            "positions and scale factors, into a folder named by the bins, such as square_008um"
        )
    fit = fit_scale(spots, VISIUM_STEP_UM)
    diameter = scales.get("spot_diameter_fullres")
    figures = {
        "spot pitch 100 um": fit and fit.mpp,
        "65 um / spot_diameter_fullres": diameter and SPOT_UM / diameter / scale,
    }
    extent = spots[["x", "y"]].max().to_numpy() / scale
    said = array_notes(fit, PITCH_UM["visium"], extent, scale)
    mpp, origin, notes = settle_mpp(figures, ask, source, "; ".join([*said, _HINT]))
    notes += [*said, *copy_notes(image, mpp, scale)]
    if MATRICES[1] in run.counts.name:
        notes.append(f"counts of {run.counts.name}: only its spots in tissue are used")
    slide = SlideSource(
        name,
        ask.cancer,
        name,
        "Visium",
        image,
        mpp,
        origin,
        partial(read_positions, run.positions, scale),
        partial(read_counts, run.counts, name),
        (image, *run.inputs),
        tuple(notes),
    )
    return [slide]


def absolute(source: Path) -> Path:
    """A path whose every part has a name, with links left as they are."""
    return Path(os.path.abspath(source))


def is_other(source: Path) -> bool:
    """Whether a folder is one of a cohort, of legacy ST or of HEST, or no folder at all."""
    return not source.is_dir() or any((source / name).exists() for name in _OTHERS)


def bin_folders(source: Path) -> dict[int, list[Path]]:
    """Folders of Visium HD bins by their side in um, in a run, its ``outs`` or itself."""
    source = absolute(source)
    own = source.parent if source.name == "spatial" else source
    if match := BINS.fullmatch(own.name):
        return {int(match[1]): [own]}
    found: dict[int, list[Path]] = {}
    for top in (source, source / "outs"):
        for holder in (top, *sorted(top.glob("*binned_outputs"))):
            for folder in sorted(holder.glob("[!.]*")):
                if (match := BINS.fullmatch(folder.name)) and folder.is_dir():
                    found.setdefault(int(match[1]), []).append(folder)
    return found


def _matching(folder: Path, names: Sequence[str]) -> list[Path]:
    """What is called one of ``names``, with or without the prefix of a data set."""
    return sorted(
        path
        for path in folder.glob("[!.]*")
        if any(path.name == name or path.name.endswith(f"_{name}") for name in names)
    )


def only(paths: Sequence[Path]) -> Path | None:
    """The one path, or None; raises InputError naming two."""
    if len(paths) > 1:
        raise InputError(
            f"{paths[0]} and {paths[1]} are both there, and one is wanted; move the other to a "
            "folder of its own"
        )
    return paths[0] if paths else None


def _spatial_folder(source: Path) -> Path | None:
    places = (source / "spatial", source / "outs" / "spatial", source)
    wanted = POSITIONS + _ZIPPED
    return next((place for place in places if _matching(place, wanted)), None)


def _find_run(source: Path) -> Run:
    spatial = _spatial_folder(source)
    if spatial is None:
        packed = [*source.glob("*spatial.tar.gz"), *source.glob("outs/*spatial.tar.gz")]
        remedy = f"unpack {packed[0].name} there" if packed else "copy the folder spatial there"
        raise InputError(
            f"{source} has no spatial folder with one of {', '.join(POSITIONS)}; {remedy}"
        )
    beside = (spatial, spatial.parent) if spatial == source else (spatial.parent,)
    return assemble_run(spatial, beside)


def assemble_run(spatial: Path, beside: Sequence[Path]) -> Run:
    """The files of a run; the filtered matrix is preferred to the raw one, HDF5 to MEX.

    The three files of a MEX matrix may lie in a folder of their own or beside the others.

    Args:
        spatial: the folder that holds the positions.
        beside: folders in which the matrix may lie.

    Raises:
        InputError: no matrix, two of one kind, or files of different data sets.
    """
    positions = only(_matching(spatial, POSITIONS + _ZIPPED))
    scales = only(_matching(spatial, [SCALES, f"{SCALES}.gz"]))
    counts = _find_counts(beside)
    if positions is None:
        raise InputError(f"{spatial} has none of {', '.join(POSITIONS)}; copy one there")
    if counts is None:
        raise InputError(
            f"{' and '.join(map(str, beside))}: no counts; expected {MATRICES[0]}.h5, or a folder "
            f"{MATRICES[0]} with barcodes, features and matrix, or the same of {MATRICES[1]}"
        )
    places = [counts if counts in beside else counts.parent]
    while _INNER.fullmatch(places[-1].name):
        places.append(places[-1].parent)
    of_counts = mex_files(counts) if counts in beside else [counts]
    named = [positions, *of_counts, *([scales] if scales else [])]
    prefixes = {match[1] for path in named if (match := _PREFIX.match(path.name))}
    if len(prefixes) > 1:
        raise InputError(
            f"{', '.join(path.name for path in named)} of {places[0]} are of different data sets "
            f"({', '.join(sorted(prefixes))}); keep each in a folder of its own"
        )
    name = next(iter(prefixes), places[-1].name)
    return Run(name, spatial, positions, counts, scales, tuple(places))


def _find_counts(beside: Sequence[Path]) -> Path | None:
    for name in MATRICES:
        for place in beside:
            found = [path for path in _matching(place, [f"{name}.h5"]) if path.is_file()]
            if path := only(found or [path for path in _matching(place, [name]) if is_mex(path)]):
                return path
    return next((place for place in beside if is_mex(place)), None)


def images_in(run: Run) -> list[Path]:
    """Images where the one given to Space Ranger may lie: never in a folder ``spatial``.

    Space Ranger's own pictures of the slide are left out.
    """
    folders = [place / name for place in run.places for name in ("", *_IMAGE_FOLDERS)]
    return [
        path
        for folder in folders
        if folder != run.spatial or folder in run.places
        for path in sorted(folder.glob("[!.]*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        if not path.name.endswith(_NO_SLIDES)
    ]


def choose_image(found: Sequence[Path], ask: Ask, source: Path) -> Path:
    """The user's image, else the only one found.

    Raises:
        InputError: the user's image does not exist; without one, several or none were found.
    """
    if ask.image is not None:
        if not ask.image.is_file():
            raise InputError(f"the image {ask.image} does not exist; check --image")
        return ask.image
    if len(found) == 1:
        return found[0]
    names = f"{len(found)} images ({', '.join(path.name for path in found[:3])})"
    raise InputError(
        f"{source} holds {names if found else 'no full-resolution image'}; give the image that "
        "Space Ranger was given with --image; without it, spatial/tissue_hires_image.png may be "
        "given as --image, at its coarseness"
    )


def copy_scale(image: Path, scales: Mapping[str, float], run: Run) -> float:
    """Pixels of the image for one pixel of the full-resolution image; 1 unless a small copy.

    Raises:
        InputError: one of Space Ranger's small copies without its scale factor.
    """
    key = next((key for name, key in _COPIES.items() if image.name.endswith(name)), None)
    if key is None:
        return 1.0
    if key not in scales:
        raise InputError(
            f"{image} is a small copy of the slide, and {run.spatial} has no {SCALES} with {key} "
            "to place the spots on it; copy that file there"
        )
    return scales[key]


def copy_notes(image: Path, mpp: float | None, scale: float) -> list[str]:
    """What to say of a small copy of the slide."""
    if scale == 1.0:
        return []
    size = f"{mpp:.3g} um per pixel" if mpp else "an unknown pixel size"
    return [f"{image.name} is a small copy of the slide, {size}: too coarse for cells"]
