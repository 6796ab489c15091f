"""Do the spots belong on this picture? Flags, the array's own grid, and the tissue under them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree
from skimage.filters import threshold_otsu

from histokit.core.errors import InputError
from histokit.data.technologies import PITCH_UM, technology_kind

YES = frozenset("1 1.0 true t yes y ja j".split())
NO = frozenset(["", *"0 0.0 false f no n nein na nan none".split()])
FLAGS = ("selected", "in_tissue")  # a spot takes part if all of these that are there say yes
# Names of the array's own columns and rows, as (along x, along y).
ARRAY_COLUMNS = (("array_col", "array_row"), ("array_x", "array_y"), ("col", "row"))
_SHIFT = 0.3  # residual of a spot from its array place, in pitches, beyond which it does not fit
_SCALE = 0.25  # deviation of the array's pitch from the maker's that no tolerance explains
_OFF = 0.5  # share of spots off the tissue from which they do not belong to this picture
_BETTER = 0.2  # by how much swapped axes have to fit the tissue better
_GLASS, _LEAST_GLASS, _BLACK, _CHROMA = 12, 150, 24, 18  # gray levels of 255
_COVERED = (0.02, 0.97)  # share of tissue in a picture beyond which a mask tells nothing


def selected_spots(table: pd.DataFrame, where: str) -> np.ndarray:
    """Which spots take part, (N,) bool: those that every column of ``FLAGS`` says yes of.

    Yes is 1, true, t, yes, y, ja; no is 0, false, f, no, n, nein, NA or blank; case and outer
    blanks do not matter.

    Raises:
        InputError: any other word, or no spot left.
    """
    keep = np.ones(len(table), bool)
    for column in FLAGS:
        if column not in table:
            continue
        words = table[column].astype(str).str.strip().str.casefold()
        strange = ~words.isin(YES | NO)
        if strange.any():
            row = int(np.argmax(strange.to_numpy()))
            raise InputError(
                f"{where}: the column {column} of spot {table['barcode'].iloc[row]} is "
                f"{table[column].iloc[row]!r}; expected 1 or 0, yes or no, true or false"
            )
        keep &= words.isin(YES).to_numpy()
    if len(table) and not keep.any():
        raise InputError(
            f"{where}: no spot is selected ({' and '.join(c for c in FLAGS if c in table)}); "
            "correct the column or leave it out"
        )
    return keep


@dataclasses.dataclass(frozen=True)
class ArrayFit:
    """How spot centers follow the array's rows and columns.

    Attributes:
        pitch_px: distance of neighboring spots.
        residual: root mean square deviation from the array place, in pitches.
        transposed: the array's columns run along y and its rows along x, mirrored: what swapped
            axes look like (a turned picture is not mirrored).
    """

    pitch_px: float
    residual: float
    transposed: bool


def fit_array(spots: pd.DataFrame) -> ArrayFit | None:
    """Fit the array's grid to the centers; None where the table does not hold the grid.

    Visium's hexagonal array counts columns twice as densely as spots; the pitch is that of the
    nearest neighbors in the fitted grid either way.
    """
    pair = next((p for p in ARRAY_COLUMNS if set(p) <= set(spots.columns)), None)
    if pair is None:
        return None
    grid = spots[list(pair)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    centers = spots[["x", "y"]].to_numpy(float)
    known = np.isfinite(grid).all(axis=1)
    grid, centers = grid[known], centers[known]
    if len(grid) < 4 or (np.ptp(grid, axis=0) == 0).any():
        return None
    # tables of hexagonal arrays may count columns without the half step of every other row
    odd = grid[:, 1] % 2
    design = np.column_stack([grid, np.ones(len(grid)), odd])
    design = design if np.linalg.matrix_rank(design) == 4 else design[:, :3]
    solution, _, rank, _ = np.linalg.lstsq(design, centers, rcond=None)
    if rank < 3:
        return None
    steps = solution[:2]  # pixels by which one column, one row moves (x, y)
    shift = solution[3] if len(solution) == 4 else np.zeros(2)
    hexagonal = bool(((grid.sum(axis=1) % 2) == grid[0].sum() % 2).all())
    near = np.array([2 * steps[0], steps[0] + steps[1]])
    if not hexagonal:
        near = np.array([steps[0], steps[1] + shift])
    pitch = float(np.linalg.norm(near, axis=1).mean())
    rest = centers - design @ solution
    residual = float(np.sqrt((rest**2).sum(axis=1).mean())) / max(pitch, 1e-9)
    crossed = abs(steps[0, 1]) > abs(steps[0, 0]) and abs(steps[1, 0]) > abs(steps[1, 1])
    mirrored = np.linalg.det(steps) < 0
    return ArrayFit(pitch, residual, bool(crossed and mirrored))


def nearest_pitch(centers: np.ndarray) -> float:
    """Median distance of a center (N, 2) to the nearest other; NaN for fewer than two."""
    if len(centers) < 2:
        return float("nan")
    return float(np.median(cKDTree(centers).query(centers, k=2)[0][:, 1]))


def tissue_mask(picture: Image.Image) -> np.ndarray | None:
    """Tissue of a small picture, (H, W) bool; None where it tells nothing apart.

    Where a good part is black, the rest is tissue, cut out. Else Otsu's threshold parts the pixels;
    the brighter part is glass if it is bright and even, and tissue is what is darker than glass by
    0.4 of the way to the threshold, or more colored.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    light = uniform_filter(pixels.mean(axis=2), 3)
    color = uniform_filter(pixels.max(axis=2) - pixels.min(axis=2), 3)
    lit = light > _BLACK
    if _COVERED[0] <= lit.mean() <= 0.95:
        return lit  # tissue cut out on black
    if not lit.any() or np.ptp(light[lit]) < 2 * _GLASS:
        return None
    threshold = threshold_otsu(light[lit])
    bright = light[lit & (light > threshold)]
    glass, spread = np.median(bright), np.median(np.abs(bright - np.median(bright)))
    if glass < _LEAST_GLASS or spread > _GLASS:
        return None  # no glass in the picture
    paler = color[lit & (np.abs(light - glass) <= spread + 1)]
    mask = lit & (
        (light < threshold + 0.6 * (glass - threshold)) | (color > np.median(paler) + _CHROMA)
    )
    return mask if _COVERED[0] <= mask.mean() <= _COVERED[1] else None


def on_tissue(mask: np.ndarray, scale: float, centers: np.ndarray, radius: float) -> np.ndarray:
    """Whether a fifth of the square around each center (N, 2) is tissue, (N,) bool.

    Args:
        mask: the mask of the small picture.
        scale: its pixels for one of level 0.
        centers: in pixels of level 0; outside the picture there is no tissue.
        radius: half the side of the square, in pixels of level 0.
    """
    side = max(1, 2 * round(radius * scale) + 1)
    share = uniform_filter(mask.astype(np.float32), side, mode="constant")
    x, y = np.floor(centers * scale).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    found = np.zeros(len(centers), bool)
    found[inside] = share[y[inside], x[inside]] >= 0.2
    return found


def misfits(
    spots: pd.DataFrame, picture: Image.Image, scale: float, mpp: float | None, technology: str
) -> tuple[list[str], dict]:
    """What speaks against the spots lying on this picture, in sentences, and what was measured.

    Args:
        spots: barcode, x, y in pixels of level 0, and further columns such as the array's.
        picture: the small picture of the slide.
        scale: its pixels for one of level 0.
        mpp: microns for each pixel of level 0, or None.
        technology: the technology of the slide.

    Returns:
        Sentences, and ``off_tissue`` (spots, blank where the picture tells nothing),
        ``array_pitch_um`` and ``array_residual`` (blank without an array).
    """
    said, found = [], {"off_tissue": "", "array_pitch_um": "", "array_residual": ""}
    centers = spots[["x", "y"]].to_numpy(float)
    fit = fit_array(spots)
    if fit is not None:
        found["array_residual"] = round(fit.residual, 3)
        if fit.residual > _SHIFT:
            said.append(
                f"centers lie {fit.residual:.1f} spot distances off the array's rows and columns: "
                "positions of another slide, or barcodes in another order"
            )
        if fit.transposed:
            said.append("the array's columns run along y: x and y look swapped")
        pitch = PITCH_UM.get(technology_kind(technology))
        if mpp:
            found["array_pitch_um"] = round(fit.pitch_px * mpp, 1)
        if mpp and pitch and abs(fit.pitch_px * mpp / pitch - 1) > _SCALE:
            said.append(
                f"neighboring spots of the array are {fit.pitch_px * mpp:.0f} um apart where "
                f"{technology} has {pitch:.0f}: the mpp is wrong, or the coordinates belong to an "
                "image of another size"
            )
    mask = tissue_mask(picture)
    if mask is not None:
        distance = fit.pitch_px if fit else nearest_pitch(centers)
        off = ~on_tissue(mask, scale, centers, distance / 2)
        found["off_tissue"] = int(off.sum())
        if off.mean() > _OFF:
            said.append(f"{off.sum():,} of {len(off):,} spots lie off the tissue")
        swapped = ~on_tissue(mask, scale, centers[:, ::-1], distance / 2)
        if off.mean() - swapped.mean() > _BETTER:
            said.append(
                f"with x and y swapped only {swapped.sum():,} of {len(off):,} spots would lie off "
                f"the tissue, where {off.sum():,} do"
            )
    return said, found


def draw_overlay(
    picture: Image.Image,
    scale: float,
    spots: pd.DataFrame,
    joined: np.ndarray,
    mpp: float | None,
    radius: float,
) -> Image.Image:
    """The small picture with every listed spot on it: joined ones blue, the others orange.

    Args:
        picture: the picture of the slide.
        scale: its pixels for one of level 0.
        spots: x, y in pixels of level 0.
        joined: (N,) bool.
        mpp: microns for each pixel of level 0, or None: then no scale bar is drawn.
        radius: the radius of a spot as drawn, in pixels of level 0.
    """
    drawn = picture.convert("RGB").copy()
    pen = ImageDraw.Draw(drawn)
    r = max(2.0, radius * scale)
    width = max(1, round(r / 4))
    for good, color in ((False, "#D55E00"), (True, "#0072B2")):
        for x, y in spots.loc[joined == good, ["x", "y"]].to_numpy(float) * scale:
            pen.ellipse([x - r, y - r, x + r, y + r], outline=color, width=width)
    if mpp:
        length = 1000 / mpp * scale  # 1 mm
        um = 1000
        while length > drawn.width / 3:
            length, um = length / 10, um // 10
        y, font = drawn.height - 14, ImageFont.load_default(size=18)
        pen.rectangle([10, y - 28, 18 + max(length, 60), y + 8], fill="white")
        pen.line([14, y, 14 + length, y], fill="black", width=3)
        pen.text((14, y - 26), f"{um} um" if um < 1000 else "1 mm", fill="black", font=font)
    return drawn
