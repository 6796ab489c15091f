"""How an H&E image lies on a Xenium run: the matrix or the keypoints that Xenium Explorer exports.

Both say where a pixel of the H&E lies on the DAPI image; microns of the run are DAPI pixels times
the run's pixel size.
"""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.core.tables import read_table, text_lines
from histokit.data.sources import plausible_mpp

KEYPOINTS = ("fixedX", "fixedY", "alignmentX", "alignmentY")
ANISOTROPY = 0.02  # by which the scales of two directions may differ
_ON_A_LINE = 1e-3  # spread across a line of points for that along it
_EXPORT = (
    "in Xenium Explorer add the H&E image, align it and export the alignment, then put the file "
    "(*_he_imagealignment.csv or the keypoints) into the folder or beside the image"
)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """An affine map from H&E pixels to DAPI pixels.

    Attributes:
        matrix: (3, 3), for columns (x, y, 1); the last row is 0, 0, 1.
        residual: root mean square distance of the keypoints from the map in DAPI pixels; None for
            a map that was given as a matrix.
        points: number of keypoints; 0 for a matrix.
    """

    matrix: np.ndarray
    residual: float | None = None
    points: int = 0

    def scales(self) -> tuple[float, float]:
        """The greatest and the least number of DAPI pixels that an H&E pixel spans."""
        large, small = np.linalg.svd(self.matrix[:2, :2], compute_uv=False)
        return float(large), float(small)

    def scale(self) -> float:
        """DAPI pixels for one H&E pixel, the root of the ratio of areas."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))

    def to_image(self, dapi: np.ndarray) -> np.ndarray:
        """H&E pixels (N, 2) of DAPI pixels (N, 2)."""
        inverse = np.linalg.inv(self.matrix)
        return dapi @ inverse[:2, :2].T + inverse[:2, 2]


def alignment_kind(path: Path) -> str | None:
    """``keypoints`` or ``matrix`` for a CSV that holds such, None for any other."""
    try:
        with text_lines(path) as lines:
            rows = list(islice((line for line in lines if line.strip()), 4))
    except InputError:
        return None
    if rows and set(KEYPOINTS) <= {name.strip().strip('"') for name in rows[0].split(",")}:
        return "keypoints"
    return "matrix" if len(rows) == 3 and all(len(_numbers(row)) == 3 for row in rows) else None


def _numbers(line: str) -> list[float]:
    """The numbers of a line of a CSV; none where a field is no number."""
    try:
        return [float(field) for field in line.split(",")]
    except ValueError:
        return []


def read_alignment(path: Path) -> Alignment:
    """Read an alignment matrix or keypoints, told apart by content.

    Args:
        path: three lines of three numbers without a header, H&E pixels to DAPI pixels; or a table
            with ``fixedX``, ``fixedY`` (DAPI pixels), ``alignmentX``, ``alignmentY`` (H&E pixels),
            through all of which an affine map is laid by least squares.

    Raises:
        InputError: neither of the two, a matrix that is no affine map or has no inverse, fewer than
            three keypoints or all on a line.
    """
    kind = alignment_kind(path)
    if kind == "keypoints":
        return _fit(path)
    if kind is None:
        raise InputError(
            f"{path} is no alignment of an H&E image; three lines of three numbers were expected, "
            f"or keypoints with the header {','.join(KEYPOINTS)}; export it again from Xenium "
            "Explorer"
        )
    with text_lines(path, "alignment matrix") as lines:
        matrix = np.array([_numbers(line) for line in lines if line.strip()])
    if not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1], atol=1e-9):
        raise InputError(
            f"{path} is no affine map (its last line has to be 0,0,1); export the alignment again "
            "from Xenium Explorer"
        )
    return _checked(Alignment(matrix), path)


def _fit(path: Path) -> Alignment:
    """The affine map that fits all keypoints best."""
    table = read_table(path, KEYPOINTS, "table of keypoints")
    with reading(path, "table of keypoints", "export it again from Xenium Explorer"):
        points = table[list(KEYPOINTS)].to_numpy(float)
    fixed, moving = points[:, :2], points[:, 2:]
    if len(points) < 3 or not np.isfinite(points).all() or _on_a_line(moving):
        raise InputError(
            f"{path} holds {len(points)} keypoints; at least 3 that do not lie on one line are "
            "needed, set more in Xenium Explorer"
        )
    design = np.column_stack([moving, np.ones(len(moving))])
    solution = np.linalg.lstsq(design, fixed, rcond=None)[0]
    residual = float(np.sqrt(((design @ solution - fixed) ** 2).sum(axis=1).mean()))
    return _checked(Alignment(np.vstack([solution.T, [0, 0, 1]]), residual, len(points)), path)


def _on_a_line(points: np.ndarray) -> bool:
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(spread[1] <= _ON_A_LINE * spread[0])


def _checked(alignment: Alignment, path: Path) -> Alignment:
    large, small = alignment.scales()
    if small <= _ON_A_LINE * large:
        raise InputError(
            f"{path} maps the image onto a line or a point, so it has no inverse; export the "
            "alignment again from Xenium Explorer"
        )
    return alignment


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder by pattern, in order, without hidden ones."""
    return [p for p in sorted(folder.glob(pattern)) if p.is_file() and not p.name.startswith(".")]


def find_alignment(source: Path, image: Path) -> Path:
    """The alignment of an H&E image: named like the image, else the only one there.

    Args:
        source: the Xenium folder, which is searched first.
        image: the H&E image, whose folder is searched too.

    Raises:
        InputError: none, or several.
    """
    folders = {folder.resolve(): folder for folder in (source, image.parent)}.values()
    stem = image.name.split(".")[0]
    named = [p for f in folders for p in visible_files(f, "*he_imagealignment.csv")]
    found = [p for p in named if p.name == f"{stem}alignment.csv"] or named
    if not found:
        tables = [p for f in folders for p in visible_files(f, "*.csv") if "if_image" not in p.name]
        kinds = {path: alignment_kind(path) for path in tables}
        found = [path for path, kind in kinds.items() if kind == "matrix"]
        found = found or [path for path, kind in kinds.items() if kind == "keypoints"]
    if not found:
        raise InputError(f"{source} has no alignment of its H&E image {image.name}; {_EXPORT}")
    if len(found) > 1:
        raise InputError(
            f"{source} has several alignments ({', '.join(p.name for p in found)}); leave the one "
            f"of {image.name}"
        )
    return found[0]


def aligned_mpp(alignment: Alignment, pixel_size: float, path: Path) -> float:
    """Microns for each H&E pixel.

    Raises:
        InputError: they differ between directions, or are none that a slide has.
    """
    large, small = alignment.scales()
    if large > (1 + ANISOTROPY) * small:
        raise InputError(
            f"{path} makes an H&E pixel {large * pixel_size:.4f} um in one direction and "
            f"{small * pixel_size:.4f} um across, more than {ANISOTROPY:.0%} apart; align the "
            "image again, or give its true pixel size with --mpp"
        )
    return plausible_mpp(
        f"{alignment.scale() * pixel_size:.9g}", f"{path}: the pixel size of the H&E image"
    )
