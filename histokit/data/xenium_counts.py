"""Transcripts or cells of a Xenium run, counted in squares on the aligned H&E image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.core.files import open_hdf5, reading
from histokit.core.tables import read_table
from histokit.data.alignment import Alignment
from histokit.data.counts import CONTROL_PROBE, gene_table, read_counts
from histokit.data.pooling import Pool, pool_rows, square_spots, squares_of

LEAST_QUALITY = 20  # Phred score that the maker's own tables of counts ask for
_BATCH = 1 << 20  # transcripts at a time
_NEEDED = ("feature_name", "x_location", "y_location", "qv")
_CELLS = ["cell_id", "x_centroid", "y_centroid"]
_COPY = "copy it again from the run's output folder"


@dataclasses.dataclass(frozen=True)
class XeniumRun:
    """Files of a run; None where one is absent."""

    slide_id: str
    transcripts: Path | None
    cells: Path | None
    matrix: Path | None


class Squares:
    """Squares of a slide as spots with counts, pooled once when first asked for.

    Args:
        run: the files.
        pixel_size: microns for each DAPI pixel.
        alignment: H&E pixels to DAPI pixels.
        side: of a square, in H&E pixels.
    """

    def __init__(self, run: XeniumRun, pixel_size: float, alignment: Alignment, side: float):
        self.run, self.side = run, side
        self._pixel_size, self._alignment = pixel_size, alignment

    def spots(self) -> pd.DataFrame:
        """One row a square that holds a transcript.

        Columns ``barcode``, ``x``, ``y`` (H&E pixels), ``array_row``, ``array_col``,
        ``transcripts`` and, where the run lists cells, ``cells``.
        """
        return self._pooled[0].copy()

    def counts(self, layer: str | None = None) -> anndata.AnnData:
        """Counts of the squares as ``histokit.data.counts.read_counts`` returns them."""
        if layer is not None:
            raise InputError(
                f"--layer {layer} belongs to an AnnData file, and this is a Xenium run"
            )
        return self._pooled[1].copy()

    @cached_property
    def _pooled(self) -> tuple[pd.DataFrame, anndata.AnnData]:
        cells = None if self.run.cells is None else _read_cells(self.run.cells)
        pool = self._from_cells(cells) if self.run.transcripts is None else self._transcripts()
        row, column, matrix, var, uns = pool
        spots = square_spots(row, column, self.side)
        spots["transcripts"] = np.asarray(matrix.sum(axis=1)).ravel().astype(np.int64)
        if cells is not None:
            _, *place = self._squares(cells[["x", "y"]].to_numpy(), self.run.cells)
            count = pd.Series(1, pd.MultiIndex.from_arrays(place)).groupby(level=[0, 1]).sum()
            wanted = pd.MultiIndex.from_arrays([row, column])
            spots["cells"] = count.reindex(wanted, fill_value=0).to_numpy()
        obs = pd.DataFrame(index=pd.Index(spots["barcode"].to_numpy(), dtype=str))
        counts = anndata.AnnData(matrix.astype(np.float32), obs=obs, var=var)
        counts.uns |= uns
        return spots, counts

    def _squares(self, um: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The squares of places (N, 2) in microns of the run, as ``squares_of`` returns them."""
        pixels = self._alignment.to_image(um / self._pixel_size)
        return squares_of(pixels, self.side, f"slide {self.run.slide_id}: {path}")

    def _from_cells(self, cells: pd.DataFrame):
        """Squares of the cells' own counts, by the places of their centers."""
        path = self.run.matrix
        counts = read_counts(path, self.run.slide_id)
        places = cells.set_index("cell_id").reindex(counts.obs_names)
        known = places["x"].notna().to_numpy()
        if not known.any():
            raise InputError(
                f"slide {self.run.slide_id}: {path} and {self.run.cells} have no cell in common "
                f"({counts.obs_names[0]!r}, {cells['cell_id'].iloc[0]!r}); take both from one run"
            )
        um = places.loc[known, ["x", "y"]].to_numpy()
        inside, row, column = self._squares(um, self.run.cells)
        said = [f"{int((~inside).sum()):,} cells outside the H&E left out"] * (not inside.all())
        said += [f"{int((~known).sum()):,} cells without a place left out"] * (not known.all())
        uns = dict(counts.uns) | {"note": "; ".join(filter(None, [counts.uns["note"], *said]))}
        pooled = pool_rows(sp.csr_matrix(counts.X)[known][inside], row, column)
        return *pooled, counts.var, uns

    def _transcripts(self):
        """Squares of the transcripts of genes, of enough quality, on the image."""
        panel = None if self.run.matrix is None else _read_panel(self.run.matrix)
        scan = _Scan(panel)
        for batch in _batches(self.run.transcripts):
            names, um = scan.good(batch)
            inside, row, column = self._squares(um, self.run.transcripts)
            scan.outside += int((~inside).sum())
            scan.pool.add(row, column, names[inside])
        where = f"slide {self.run.slide_id}: {self.run.transcripts}"
        if not scan.genes:
            raise InputError(f"{where} names no gene; {_COPY}")
        row, column, matrix = scan.pool.result(len(scan.genes))
        if not len(row):
            raise InputError(
                f"{where}: no transcript of a gene lies on the H&E image ({scan.note()}); check "
                "that the alignment belongs to this image and run"
            )
        ids = [scan.ids.get(name, "") for name in scan.genes]
        var = gene_table(np.array(list(scan.genes), dtype=object), ids, where)
        controls = [name for name in scan.others if CONTROL_PROBE.match(name)]
        uns = {
            "control_probes": len(controls),
            "other_features": len(scan.others) - len(controls),
            "date_names": 0,
            "renamed_genes": 0,
            "note": scan.note(),
        }
        return row, column, matrix, var, uns


class _Scan:
    """What is learned of genes and controls while the transcripts go by."""

    def __init__(self, panel: pd.DataFrame | None):
        self.pool = Pool()
        self.ids, self.others = {}, set()
        if panel is not None:
            genes = panel[panel["gene"]]
            self.ids = dict(zip(genes["name"], genes["id"], strict=True))
            self.others = set(panel["name"][~panel["gene"]])
        self.panel = panel is not None
        self.genes = {name: place for place, name in enumerate(self.ids)}
        self.total = self.low = self.control = self.outside = 0

    def good(self, batch) -> tuple[np.ndarray, np.ndarray]:
        """The genes (K,) int64 and places (K, 2) in um of the transcripts that count."""
        codes, names = _coded(batch, "feature_name")
        gene = self._is_gene(batch, codes, names)
        number = np.full(len(names), -1)
        for code in np.unique(codes[gene]):
            number[code] = self.genes.setdefault(names[code], len(self.genes))
        self.others.update(names[code] for code in np.unique(codes[~gene]))
        sure = _numbers(batch, "qv") >= LEAST_QUALITY
        self.total += len(codes)
        self.control += int((~gene).sum())
        self.low += int((gene & ~sure).sum())
        kept = gene & sure
        um = np.column_stack([_numbers(batch, f"{axis}_location") for axis in "xy"])
        return number[codes[kept]], um[kept]

    def _is_gene(self, batch, codes: np.ndarray, names: list[str]) -> np.ndarray:
        """Which transcripts are of genes: by themselves, else by the panel, else by name."""
        if "is_gene" in batch.schema.names:
            return batch.column("is_gene").to_numpy(zero_copy_only=False)
        if "codeword_category" in batch.schema.names:
            codes, categories = _coded(batch, "codeword_category")
            return np.array([c.endswith("gene") for c in categories], bool)[codes]
        if self.panel:
            return np.array([name in self.ids for name in names], bool)[codes]
        return np.array([not CONTROL_PROBE.match(name) for name in names], bool)[codes]

    def note(self) -> str:
        """What was left out, and what cannot be known."""
        said = (
            f"of {self.total:,} transcripts left out: {self.control:,} of controls, {self.low:,} "
            f"below Q{LEAST_QUALITY}, {self.outside:,} outside the H&E"
        )
        if self.panel:
            return said
        return (
            f"{said}; without cell_feature_matrix.h5 genes have no ids, and one without any "
            "transcript is not listed"
        )


def _batches(path: Path) -> Iterator:
    """Record batches of the needed columns of the transcripts."""
    import pyarrow.parquet as pq

    with reading(path, "table of transcripts", _COPY):
        file = pq.ParquetFile(path)
        there = set(file.schema_arrow.names)
        lost = [name for name in _NEEDED if name not in there]
        if lost:
            raise InputError(
                f"{path} has no column {lost[0]!r}, so it holds no transcripts; {_COPY}"
            )
        kind = [name for name in ("is_gene", "codeword_category") if name in there][:1]
        columns = [*_NEEDED, *kind]
        for batch in file.iter_batches(_BATCH, columns=columns):
            empty = [name for name in columns if batch.column(name).null_count]
            if empty:
                raise InputError(f"{path} has empty fields in the column {empty[0]!r}; {_COPY}")
            yield batch


def _coded(batch, name: str) -> tuple[np.ndarray, list[str]]:
    """A column of words as codes (B,) and the words; words of old files are bytes."""
    column = batch.column(name)
    if not hasattr(column, "dictionary"):
        column = column.dictionary_encode()
    codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, [_text(word) for word in column.dictionary.to_pylist()]


def _numbers(batch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)


def _text(word) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)


def _read_panel(path: Path) -> pd.DataFrame:
    """Name, id and whether it is a gene, of the features of ``cell_feature_matrix.h5``."""
    with open_hdf5(path, "10x matrix", _COPY) as file:
        features = file["matrix/features"]
        columns = {key: [_text(v) for v in features[key][:].tolist()] for key in ("name", "id")}
        kinds = [_text(v) for v in features["feature_type"][:].tolist()]
        panel = pd.DataFrame(columns | {"gene": [k == "Gene Expression" for k in kinds]})
    return panel.drop_duplicates("name", ignore_index=True)


def _read_cells(path: Path) -> pd.DataFrame:
    """``cell_id`` as text and the centers ``x``, ``y`` in um of every cell."""
    if path.suffix == ".parquet":
        with reading(path, "table of cells", _COPY):
            table = pd.read_parquet(path, columns=_CELLS)
    else:
        table = read_table(path, _CELLS, "table of cells")
    with reading(path, "table of cells", _COPY):
        centers = table[_CELLS[1:]].to_numpy(np.float64)
    ids = [_text(name) for name in table["cell_id"]]
    return pd.DataFrame({"cell_id": ids, "x": centers[:, 0], "y": centers[:, 1]})
