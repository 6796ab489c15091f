"""The page of a prediction: a folder whose index.html shows the map of any gene, without a server.

Values of genes lie in scripts beside the page, a block each, which the page loads on demand.
"""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from histokit.core.errors import InputError
from histokit.evaluate.folders import whole_folder
from histokit.maps.slide_map import SlideMap
from histokit.report.page import flatten, plural, templates

MOST_GENES = 5_000  # on a page for which no genes were named, and ...
MOST_VALUES = 100_000_000  # ... of many patches, as many as a folder of some 130 MB holds
_FILE = 1_400_000  # characters of one file of values
_LARGE = 400_000_000  # characters of all files; a larger page stores bytes, not 16-bit numbers


def write_page(slide: SlideMap, folder: Path, genes: list[str] | None = None) -> Path:
    """Write a folder with ``index.html``, and scripts with the values of genes and scores.

    The page opens by a double click and fetches nothing from elsewhere. Memory is bounded by a
    few blocks of genes. The folder appears whole; one that an earlier call wrote is replaced.

    Args:
        slide: the map.
        folder: the folder to write.
        genes: unique names of the genes to show; without them all are shown, at most
            ``MOST_GENES`` of best rank, and ``MOST_VALUES`` values.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: a gene is not among those predicted, no gene or patch is left to draw, or the
            folder holds files of others.
    """
    if not slide.barcodes:
        raise InputError(f"slide {slide.slide_id} has no patches; a map needs at least one")
    shown = _shown(slide, genes)
    layers = 1 + (slide.spread is not None) + (slide.measured is not None)
    bits = 16 if len(shown) * _characters(slide, 16) * layers <= _LARGE else 8
    with whole_folder(folder) as temporary:
        places = _write_genes(slide, shown, temporary, bits)
        extra = _write_extra(slide, temporary)
        data = {
            "bits": bits,
            "unit": slide.unit,
            "mpp": None if slide.mpp is None else float(slide.mpp),
            "side": float(slide.side),
            "scale": float(slide.scale),
            "barcodes": list(map(str, slide.barcodes)),
            "centers": _base64(np.asarray(slide.centers, "<f4")),
            "genes": _gene_columns(slide.genes, shown) | places,
            "ranked": int(slide.genes["rank"].notna().sum()),
            "elsewhere": _elsewhere(slide.genes, shown),
            "spread": slide.spread is not None,
            "measured": slide.measured is not None,
            "extra": extra,
            "colors": {"color": _colors("viridis"), "gray": _colors("gray")},
        }
        html = _html(slide, data, len(shown), genes is not None)
        (temporary / "index.html").write_text(html, encoding="utf-8")
    return Path(folder) / "index.html"


def _shown(slide: SlideMap, names: list[str] | None) -> np.ndarray:
    """Places of the genes to show in the table of genes, best rank first, unranked ones last."""
    table = slide.genes
    chosen = np.arange(len(table))
    if names is not None:
        chosen = table.index.get_indexer(list(dict.fromkeys(names)))
        if (chosen < 0).any():
            absent = list(dict.fromkeys(names))[int(np.argmin(chosen))]
            raise InputError(
                f"the page of slide {slide.slide_id} was asked for gene {absent!r}, which is not "
                "among the predicted genes; give names as the table of genes has them"
            )
    if not len(chosen):
        raise InputError(f"the page of slide {slide.slide_id} has no gene to show; name some")
    rank = pd.to_numeric(table["rank"]).to_numpy(float, na_value=np.nan)[chosen]
    chosen = chosen[np.argsort(rank, kind="stable")]
    most = min(MOST_GENES, max(1, MOST_VALUES // len(slide.barcodes)))
    return chosen[:most] if names is None else chosen


def _characters(slide: SlideMap, bits: int) -> int:
    """How many characters the values of one gene take."""
    return len(slide.barcodes) * (bits // 8) * 4 // 3 + 100


def _write_genes(slide: SlideMap, shown: np.ndarray, folder: Path, bits: int) -> dict:
    """Write blocks of genes as scripts; for each shown gene its file and its place in there."""
    kinds = 1 + (slide.spread is not None) + (slide.measured is not None)
    width = max(1, _FILE // (_characters(slide, bits) * kinds))
    measured = None if slide.measured is None else slide.measured.tocsc()
    order = {int(gene): i for i, gene in enumerate(shown)}
    file, place = [0] * len(shown), [0] * len(shown)
    written = 0
    for start in range(0, len(slide.genes), width):
        stop = min(start + width, len(slide.genes))
        wanted = [gene for gene in range(start, stop) if gene in order]
        if not wanted:
            continue
        blocks = [slide.block(start, stop)]
        if slide.spread is not None:
            blocks.append(slide.spread(start, stop))
        if measured is not None:
            blocks.append(measured[:, start:stop].toarray())
        columns = []
        for gene in wanted:
            file[order[gene]], place[order[gene]] = written, len(columns)
            columns.append([_packed(block[:, gene - start], bits) for block in blocks])
        _write_block(folder, f"genes/{written:03}", columns)
        written += 1
    return {"file": file, "place": place}


def _write_extra(slide: SlideMap, folder: Path) -> list[dict]:
    """Write scores and novelty as scripts; the name, kind, file and place of each."""
    layers = [("score", name, values) for name, values in slide.scores.items()]
    if slide.novelty is not None:
        layers.append(("novelty", "Novelty", slide.novelty))
    width, found = max(1, _FILE // _characters(slide, 16)), []
    for start in range(0, len(layers), width):
        number, part = start // width, layers[start : start + width]
        columns = [[_packed(np.asarray(values), 16)] for _, _, values in part]
        _write_block(folder, f"scores/{number:03}", columns)
        for place, (kind, name, _) in enumerate(part):
            found.append({"kind": kind, "name": name, "file": number, "place": place})
    return found


def _write_block(folder: Path, name: str, columns: list) -> None:
    path = folder / f"{name}.js"
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(columns, separators=(",", ":"), allow_nan=False)
    path.write_text(f'histokitBlock("{name}",{text});\n', encoding="ascii")


def _packed(values: np.ndarray, bits: int) -> list:
    """Lowest value, 2nd and 98th percentile, highest value, and codes between, as base64.

    The highest code stands for a value that is not finite, the one below for the highest value.
    """
    top = 2**bits - 1
    finite = np.isfinite(values)
    known = values[finite].astype(np.float64)
    codes = np.full(len(values), top, f"<u{bits // 8}")
    if not len(known):
        return [None, None, None, None, _base64(codes)]
    low, high = known.min(), known.max()
    codes[finite] = np.rint((known - low) / ((high - low) or 1) * (top - 1))
    robust = np.percentile(known, [2, 98])
    return [float(low), *map(float, robust), float(high), _base64(codes)]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _gene_columns(table: pd.DataFrame, shown: np.ndarray) -> dict[str, list]:
    """What the page says of each gene, a list a column."""
    table = table.iloc[shown]
    columns = {"name": _texts(table.index), "symbol": _texts(table["symbol"])}
    columns |= {"id": _texts(table["gene_id"]), "trusted": table["trusted"].astype(bool).tolist()}
    numbers = ("pcc", "pcc_low", "pcc_high", "rank", "train_mean", "train_sd")
    return columns | {name: _numbers(table[name]) for name in numbers}


def _elsewhere(table: pd.DataFrame, shown: np.ndarray) -> list[list[str]]:
    """Name, symbol and id of the genes that are predicted and not shown."""
    table = table.drop(table.index[shown])
    return [_texts(column) for column in (table.index, table["symbol"], table["gene_id"])]


def _texts(values) -> list[str]:
    return ["" if pd.isna(value) else str(value) for value in values]


def _numbers(values: pd.Series) -> list[float | None]:
    numbers = pd.to_numeric(values).to_numpy(float, na_value=np.nan)
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in numbers]


def _colors(name: str) -> list[list[int]]:
    """256 colors (r, g, b) of 0 to 255; grays leave out black and white, which tissue shows."""
    ends = (0.12, 0.92) if name == "gray" else (0, 1)
    table = matplotlib.colormaps[name](np.linspace(*ends, 256))[:, :3]
    return np.rint(table * 255).astype(int).tolist()


def _html(slide: SlideMap, data: dict, shown: int, named: bool) -> str:
    # "<" could close the script element that holds the data
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    here = files("histokit.maps")
    return (
        templates("histokit.maps")
        .get_template("page.html.j2")
        .render(
            slide_id=slide.slide_id,
            patches=f"{len(slide.barcodes):,} patch{'es' if len(slide.barcodes) > 1 else ''}",
            scope=_scope(len(slide.genes), shown, named),
            unit=slide.unit,
            about=list(flatten(slide.about).items()),
            said=slide.said,
            steps="" if data["bits"] == 16 else _STEPS,
            picture=_jpeg(slide.picture),
            data=text,
            script=(here / "page.js").read_text("utf-8"),
            style=(here / "page.css").read_text("utf-8"),
        )
    )


_STEPS = (
    "This page stores each gene in 254 steps from its lowest to its highest value; exact values "
    "are in the files of the prediction."
)


def _scope(predicted: int, shown: int, named: bool) -> str:
    """Which of the predicted genes the page shows."""
    if shown == predicted:
        return plural(predicted, "gene")
    which = "chosen genes" if named else "genes of best held-out rank"
    return f"{shown:,} {which} of {predicted:,} (the files of the prediction hold them all)"


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
