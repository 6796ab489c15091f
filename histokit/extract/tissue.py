"""Where the tissue of a slide is, and the grid of squares on it; all on a small picture."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.draw import polygon
from skimage.measure import label
from skimage.morphology import closing, disk
from skimage.segmentation import find_boundaries

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.data.placement import tissue_mask

_SMALL = 1 / 5000  # of the picture's area: smaller pieces are dropped, smaller holes filled
_CLOSED = 2  # radius in pixels of the picture by which gaps are closed
_BLACK, _COLORLESS = 50, 25  # of 255: pixels below both are border or black pen
_PEN = 80  # of 255: saturation from which green that is at least as strong as red is a pen's
_COLORED, _DARK = 18, 200  # of 255: tissue where no glass is found to compare with
_FEW, _MOST = 0.01, 0.99  # shares of tissue beyond which a mask is doubted
_SAME_SHAPE = 0.02  # relative difference of aspect ratios
_BEYOND = 1.02  # polygons this much larger than the image are of another one


@dataclass(frozen=True)
class TissueMask:
    """Tissue on a slide's small picture.

    Attributes:
        mask: (H, W) bool, as large as the picture.
        method: how it was found, in words.
        said: what is to be doubted, in sentences.
    """

    mask: np.ndarray
    method: str
    said: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the picture that is tissue."""
        return float(self.mask.mean())


def find_tissue(
    picture: Image.Image, given: str | Path | None = None, scale: float = 1.0
) -> TissueMask:
    """Find the tissue of a small picture, or read it from a file.

    Without a file: black borders, black pen (below 50 of 255, colorless) and blue or green pen
    (saturated, green at least as strong as red) count as glass; the rest is parted by brightness
    and color as in ``histokit.data.placement.tissue_mask``, or, where no glass is found to compare
    with, by color alone. Gaps of up to 4 pixels are closed, and pieces and holes below 1/5000 of
    the picture dropped.

    Args:
        picture: the small picture of the slide.
        given: GeoJSON of polygons in level-0 pixels (.gz too), or an image of the same shape whose
            nonzero pixels (JPEG: above half of its greatest value) are tissue.
        scale: pixels of the picture for one of level 0.

    Raises:
        InputError: a file that is neither, or does not fit the picture.
    """
    said = []
    if given is None:
        mask, method = _seen(picture)
    elif _is_json(Path(given)):
        mask, said = _from_polygons(Path(given), picture, scale)
        method = f"the polygons of {given}"
    else:
        mask, method = _from_image(Path(given), picture), f"the mask image {given}"
    share = mask.mean()
    if share < _FEW or share > _MOST:
        said.append(
            f"{share:.1%} of the picture counts as tissue, by {method}; look at the overlay and "
            "give the true outline with --mask"
        )
    return TissueMask(mask, method, tuple(said))


def _seen(picture: Image.Image) -> tuple[np.ndarray, str]:
    pixels = np.array(picture.convert("RGB"))
    chroma = np.ptp(pixels, axis=2)
    foreign = (pixels.max(axis=2) < _BLACK) & (chroma < _COLORLESS)
    foreign |= (chroma > _PEN) & (pixels[..., 1] >= pixels[..., 0])
    pixels[foreign] = 255
    mask, method = tissue_mask(Image.fromarray(pixels)), "brightness and color (Otsu)"
    if mask is None:
        chroma, method = np.ptp(pixels, axis=2), "color alone, for no glass was found"
        mask = (chroma > _COLORED) | (pixels.mean(axis=2) < _DARK)
    return _smoothed(mask & ~foreign), method


def _smoothed(mask: np.ndarray) -> np.ndarray:
    """Gaps closed, specks dropped, small holes filled."""
    least = _SMALL * mask.size
    mask = _without_small(closing(mask, disk(_CLOSED)), least)
    return ~_without_small(~mask, least)


def _without_small(mask: np.ndarray, least: float) -> np.ndarray:
    pieces = label(mask, connectivity=1)
    large = np.bincount(pieces.ravel()) >= least
    large[0] = False
    return large[pieces]


def _is_json(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".geojson", ".json"))


def _from_image(path: Path, picture: Image.Image) -> np.ndarray:
    with reading(path, "mask image or GeoJSON of polygons"), Image.open(path) as image:
        values, lossy = np.asarray(image), image.format == "JPEG"
        if image.mode in ("LA", "RGBA", "PA"):
            values = values[..., :-1]
    values = values.max(axis=2) if values.ndim == 3 else values
    height, width = values.shape
    if abs(width / height * picture.height / picture.width - 1) > _SAME_SHAPE:
        raise InputError(
            f"the mask {path} is {width} x {height} pixels, of another shape than the image "
            f"({picture.width} x {picture.height} as a small picture); give the mask of this image"
        )
    tissue = values > (values.max() / 2 if lossy else 0)
    small = Image.fromarray(np.uint8(255) * tissue).resize(picture.size, Image.Resampling.BOX)
    return np.asarray(small) >= 128


def _from_polygons(path: Path, picture: Image.Image, scale: float) -> tuple[np.ndarray, list[str]]:
    with reading(path, "GeoJSON of polygons", "export it again"):
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
        found = [
            [np.array(ring, dtype=np.float64)[:, :2] * scale for ring in rings]
            for rings in _polygons(json.loads(content))
        ]
        if not found:
            raise InputError(
                f"{path} holds no Polygon or MultiPolygon; export the tissue's outline"
            )
        corners = np.concatenate([ring for rings in found for ring in rings])
        if not np.isfinite(corners).all():
            raise InputError(f"{path} has corners that are no numbers; export it again")
        reach = float((corners.max(axis=0) / picture.size).max())
        mask = np.zeros((picture.height, picture.width), bool)
        for rings in found:
            _fill(mask, rings)
    said = []
    if reach > _BEYOND:
        said.append(
            f"the polygons of {path} reach to {reach:.1f} times the image's size; they may "
            "be of another image, or not in level-0 pixels"
        )
    return mask, said


def _polygons(value: object) -> Iterator[list]:
    """Rings of every polygon in a collection, a feature, an array of features or a geometry."""
    if isinstance(value, list):
        for item in value:
            yield from _polygons(item)
    elif value["type"] == "FeatureCollection":
        yield from _polygons(value["features"])
    elif value["type"] == "Feature" and value["geometry"]:
        yield from _polygons(value["geometry"])
    elif value["type"] == "Polygon":
        yield value["coordinates"]
    elif value["type"] == "MultiPolygon":
        yield from value["coordinates"]


def _fill(mask: np.ndarray, rings: list[np.ndarray]) -> None:
    """Add a polygon, of which the first ring is the outline and the others are holes."""
    first = np.clip(np.floor(rings[0].min(axis=0)), 0, None).astype(int)
    last = np.minimum(np.ceil(rings[0].max(axis=0)).astype(int), mask.shape[::-1])
    if (last <= first).any():
        return
    own = np.zeros((last - first)[::-1], bool)
    for order, ring in enumerate(rings):
        x, y = (ring - first - 0.5).T  # the center of pixel 0 lies at 0.5
        own[polygon(y, x, own.shape)] = order == 0
    mask[first[1] : last[1], first[0] : last[0]] |= own


def grid(
    width: int,
    height: int,
    side: int,
    mask: TissueMask | None,
    scale: float,
    least: float = 0.5,
) -> np.ndarray:
    """Centers of the squares of a grid that lie on tissue.

    Squares do not overlap, begin at the image's top left and come row by row. Of one that leaves
    the image at the right or bottom the center has to lie inside; what is outside is no tissue.

    Args:
        width, height: of the image, in level-0 pixels.
        side: of a square, in level-0 pixels.
        mask: the tissue; None takes every square.
        scale: pixels of the mask for one of level 0.
        least: share of a square that has to be tissue.

    Returns:
        (N, 2) float64 x, y in level-0 pixels.

    Raises:
        InputError: no square is left.
    """
    x = np.arange(side / 2, width, side)
    y = np.arange(side / 2, height, side)
    centers = np.stack(np.meshgrid(x, y), axis=2).reshape(-1, 2)
    if not len(centers):
        raise InputError(
            f"the image of {width} x {height} pixels has no room for a square of {side}; make the "
            "patch smaller (--patch-um)"
        )
    if mask is None:
        return centers
    shares = _tissue_shares(mask.mask, centers, side, scale)
    kept = shares >= least - 1e-9
    if not kept.any():
        raise InputError(
            f"none of {len(centers):,} squares of {side} pixels is at least {least:.0%} tissue "
            f"(the best has {shares.max():.0%}; tissue by {mask.method}); give its outline with "
            "--mask, take every square with --no-mask, or make the patch smaller (--patch-um)"
        )
    return centers[kept]


def _tissue_shares(mask: np.ndarray, centers: np.ndarray, side: int, scale: float) -> np.ndarray:
    """The share of each square that is tissue, (N,), to a part of a mask's pixel."""
    total = np.zeros(np.add(mask.shape, 1))
    total[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)

    def area(corners: np.ndarray) -> np.ndarray:
        """Tissue above and left of points x, y: between whole pixels it grows linearly."""
        points = np.clip(corners, 0, mask.shape[::-1])
        whole = np.minimum(points.astype(int), np.array(mask.shape[::-1]) - 1)
        (x, y), (right, down) = whole.T, (points - whole).T
        upper = total[y, x] * (1 - right) + total[y, x + 1] * right
        lower = total[y + 1, x] * (1 - right) + total[y + 1, x + 1] * right
        return upper * (1 - down) + lower * down

    low, high = (centers - side / 2) * scale, (centers + side / 2) * scale
    crossed = area(np.column_stack([low[:, 0], high[:, 1]]))
    crossed += area(np.column_stack([high[:, 0], low[:, 1]]))
    return (area(high) + area(low) - crossed) / (side * scale) ** 2


def patch_names(centers: np.ndarray, side: int) -> list[str]:
    """Names of a grid's squares by row and column, such as ``00012x00034``."""
    places = np.floor(np.asarray(centers) / side).astype(int)
    return [f"{row:05d}x{column:05d}" for column, row in places]


def draw(
    picture: Image.Image, mask: TissueMask | None, centers: np.ndarray, side: int, scale: float
) -> Image.Image:
    """The small picture with the outline of the tissue (black) and the squares (blue).

    Args:
        picture: the small picture of the slide.
        mask: the tissue, or None.
        centers: (N, 2) x, y in level-0 pixels.
        side: of a square, in level-0 pixels.
        scale: pixels of the picture for one of level 0.
    """
    pixels = np.array(picture.convert("RGB"))
    if mask is not None:
        pixels[find_boundaries(mask.mask, mode="thick")] = 0
    drawn = Image.fromarray(pixels)
    pen = ImageDraw.Draw(drawn)
    for corner in (np.asarray(centers) - side / 2) * scale:
        pen.rectangle([*corner, *(corner + side * scale)], outline="#0072B2")
    return drawn
