"""An extracted cohort on disk, read one slide at a time."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit.errors import InputError
from histokit.files import safe_name

COLUMNS = ["slide_id", "cancer", "patient", "technology", "mpp"]


@dataclasses.dataclass(frozen=True)
class Slide:
    """One slide's patches and counts, row by row the same barcodes.

    Attributes:
        centres: (N, 2) spot centres x, y in pixels of level 0.
        features: (N, D) float32 tensor.
        counts: (N, G) CSR raw counts in the order of the genes asked for.
        library_size: (N,) total counts over all genes the slide measured.
        measured: (G,) bool, whether the slide measured the gene.
    """

    slide_id: str
    cancer: str
    patient: str
    barcodes: list[str]
    centres: np.ndarray
    features: torch.Tensor
    counts: sp.csr_matrix
    library_size: np.ndarray
    measured: np.ndarray


class Cohort:
    """The folder that ``run_extract.py`` wrote, seen through one encoder's features."""

    def __init__(self, folder: str | Path, encoder: str):
        self.folder, self.encoder = Path(folder), encoder
        table = self.folder / "slides.csv"
        if not table.is_file():
            raise InputError(f"{self.folder} holds no slides.csv; make it with run_extract.py")
        self.slides = pd.read_csv(
            table, dtype={"slide_id": str, "patient": str, "cancer": str}, keep_default_na=False
        )
        missing = [column for column in COLUMNS if column not in self.slides]
        if missing:
            raise InputError(f"{table} lacks the column {missing[0]}; run run_extract.py again")
        if self.slides.empty:
            raise InputError(f"{table} lists no slide; run run_extract.py to its end")
        self.slides = self.slides.set_index("slide_id")
        self.feature_folder = self.folder / "features" / safe_name(encoder)
        if not self.feature_folder.is_dir():
            parent = self.folder / "features"
            there = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
            raise InputError(
                f"{self.folder} holds no features of {encoder} "
                f"(there: {', '.join(there) or 'none'}); run run_extract.py --encoder {encoder}"
            )

    def provenance(self, slide_id: str) -> dict:
        """The attributes of a slide's feature file and its dimension D as ``dimension``."""
        with _open(self._feature_file(slide_id)) as file:
            attributes = {
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in file.attrs.items()
            }
            return attributes | {"dimension": int(file["features"].shape[1])}

    def gene_table(self, slide_id: str) -> pd.DataFrame:
        """Measured genes of a slide: index gene, columns gene_id and symbol."""
        with _open(self._expression_file(slide_id)) as file:
            var = _read_var(file)
        return var.loc[var["measured"], ["gene_id", "symbol"]]

    def load(self, slide_id: str, genes: list[str] | None = None) -> Slide:
        """Read one slide, its counts in the order of ``genes`` (all its own genes by default).

        A gene is found by its name, its Ensembl id or its symbol; one that the slide did not
        measure is an empty column with ``measured`` false.

        Raises:
            InputError: a file is missing or damaged, or features are not finite.
        """
        path = self._feature_file(slide_id)
        with _open(path) as file:
            features = file["features"][:]
            barcodes = [_text(b) for b in file["barcodes"][:].reshape(-1)]
        if not np.isfinite(features).all():
            raise InputError(f"{path} holds features that are not finite; extract the slide again")
        counts, obs_names, centres, var = self._expression(slide_id)
        rows = pd.Index(obs_names).get_indexer(barcodes)
        if (rows < 0).any():
            raise InputError(
                f"barcode {barcodes[int(np.argmax(rows < 0))]} of {path} has no expression; "
                "extract the slide again"
            )
        counts = counts[rows]
        library_size = np.asarray(counts[:, var["measured"].to_numpy()].sum(axis=1)).ravel()
        columns = _columns(var, genes)
        row = self.slides.loc[slide_id]
        return Slide(
            slide_id=slide_id,
            cancer=row["cancer"],
            patient=row["patient"],
            barcodes=barcodes,
            centres=centres[rows],
            features=torch.from_numpy(features.astype(np.float32)),
            counts=_take_columns(counts, columns),
            library_size=library_size,
            measured=(columns >= 0) & var["measured"].to_numpy()[columns],
        )

    def _expression(self, slide_id: str):
        from anndata.io import read_elem

        with _open(self._expression_file(slide_id)) as file:
            if "obsm/spatial" not in file:
                raise InputError(
                    f"slide {slide_id} has no coordinates: {file.filename} lacks obsm/spatial; "
                    "extract the slide again"
                )
            try:
                counts = sp.csr_matrix(read_elem(file["X"]))
                obs = read_elem(file["obs"])
                centres = file["obsm/spatial"][:]
                return counts, obs.index.astype(str), centres, _read_var(file)
            except (OSError, KeyError) as error:
                raise InputError(
                    f"the expression file {file.filename} is damaged; delete it and extract the "
                    "slide again"
                ) from error

    def _feature_file(self, slide_id: str) -> Path:
        if slide_id not in self.slides.index:
            raise InputError(f"slide {slide_id} is not in {self.folder / 'slides.csv'}")
        return self.feature_folder / f"{slide_id}.h5"

    def _expression_file(self, slide_id: str) -> Path:
        return self.folder / "expression" / f"{slide_id}.h5ad"


class SlideCache:
    """Prepared slides, kept up to a bound of memory; beyond it a slide is read again."""

    def __init__(self, prepare, max_bytes: int):
        self.prepare, self.max_bytes = prepare, max_bytes
        self._kept: OrderedDict[str, object] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, slide_id: str):
        if slide_id in self._kept:
            return self._kept[slide_id]
        slide = self.prepare(slide_id)
        size = slide.num_bytes()
        if self._bytes + size <= self.max_bytes:
            self._kept[slide_id] = slide
            self._bytes += size
        return slide


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise InputError(f"{path} does not exist; run run_extract.py for this slide")
    try:
        return h5py.File(path)
    except OSError as error:
        raise InputError(
            f"{path} is damaged or not HDF5; delete it and extract the slide again"
        ) from error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_var(file: h5py.File) -> pd.DataFrame:
    from anndata.io import read_elem

    var = read_elem(file["var"])
    var.index = var.index.astype(str)
    var["gene_id"] = var["gene_id"].astype(str).replace("nan", "")
    var["symbol"] = var["symbol"].astype(str)
    var["measured"] = var["measured"].astype(bool)
    return var


def _columns(var: pd.DataFrame, genes: list[str] | None) -> np.ndarray:
    """Column of each gene in the slide's matrix, -1 where the slide does not have it."""
    if genes is None:
        return np.arange(len(var))
    columns = var.index.get_indexer(genes)
    for key in ("gene_id", "symbol"):
        if (columns >= 0).all():
            break
        names = pd.Series(np.arange(len(var)), index=var[key])
        names = names[~names.index.duplicated() & (names.index != "")]
        lost = columns < 0
        columns[lost] = names.reindex(np.asarray(genes, object)[lost]).fillna(-1).astype(int)
    return columns


def _take_columns(counts: sp.csr_matrix, columns: np.ndarray) -> sp.csr_matrix:
    """Columns of a CSR matrix in a new order, empty where ``columns`` is -1."""
    if np.array_equal(columns, np.arange(counts.shape[1])):
        return counts
    found = np.flatnonzero(columns >= 0)
    place = sp.csr_matrix(
        (np.ones(len(found), counts.dtype), (columns[found], found)),
        shape=(counts.shape[1], len(columns)),
    )
    result = sp.csr_matrix(counts @ place)
    result.sort_indices()
    return result
