"""An extracted cohort on disk, read one slide at a time."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit.core.errors import InputError
from histokit.core.files import file_id, open_hdf5, read_json, safe_name
from histokit.core.tables import read_table
from histokit.data.counts_hdf5 import read_matrix, row_names
from histokit.data.features import TUNED, difference, tuned_slides
from histokit.data.gene_keys import as_panel, positions
from histokit.data.gene_map import GeneMap
from histokit.data.graph import with_neighbors

COLUMNS = ["slide_id", "cancer", "patient", "technology", "mpp"]


@dataclasses.dataclass(frozen=True)
class Slide:
    """One slide's patches and counts, row by row the same barcodes.

    Attributes:
        centers: (N, 2) spot centers x, y in pixels of level 0.
        features: (N, D) float32 tensor.
        counts: (N, G) CSR raw counts in the order of the genes asked for.
        library_size: (N,) total counts over all genes the slide measured.
        measured: (G,) bool, whether the slide measured the gene.
        technology: as the table of slides names it.
    """

    slide_id: str
    cancer: str
    patient: str
    barcodes: list[str]
    centers: np.ndarray
    features: torch.Tensor
    counts: sp.csr_matrix
    library_size: np.ndarray
    measured: np.ndarray
    technology: str = ""


class Cohort:
    """The folder that ``run_extract.py`` wrote, seen through the features of its encoders.

    Args:
        folder: what ``run_extract.py`` wrote.
        encoder: whose features, as extraction called them; ``A+B`` sets those of A and B side by
            side.
        neighbors: one of ``histokit.data.graph.CHOICES``: what is appended to each encoder's
            features.
    """

    def __init__(self, folder: str | Path, encoder: str, neighbors: str = "none"):
        self.folder, self.encoder, self.neighbors = Path(folder), encoder, neighbors
        self.fills = False  # whether a gene that a slide did not measure counts as measured zero
        self.gene_map: GeneMap | None = None
        table = self.folder / "slides.csv"
        if not table.is_file():
            raise InputError(
                f"{self.folder.resolve()} holds no slides.csv; make it with run_extract.py"
            )
        self.slides = read_table(table, COLUMNS, "list of extracted slides")
        if self.slides.empty:
            raise InputError(f"{table} lists no slide; run run_extract.py to its end")
        self.slides = self.slides.set_index("slide_id")
        for slide_id in self.slides.index:
            if file_id(slide_id) != slide_id and not re.fullmatch(r"[\w][\w.+ -]*", slide_id):
                raise InputError(f"{table}: {slide_id!r} is no slide id; it cannot name a file")
        if self.slides.index.has_duplicates:
            raise InputError(f"{table} lists a slide twice; run run_extract.py again")
        parent = self.folder / "features"
        self.feature_folders = [parent / safe_name(name) for name in encoder.split("+")]
        for place, name in zip(self.feature_folders, encoder.split("+"), strict=True):
            if not place.is_dir():
                there = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
                raise InputError(
                    f"{self.folder} holds no features of {name} "
                    f"(there: {', '.join(there) or 'none'}); run run_extract.py --encoder {name}"
                )
        # whether an encoder has features of its own for each fold, which ``of_fold`` takes
        self.by_fold = any((place / TUNED).is_file() for place in self.feature_folders)

    def missing(self) -> dict[str, list[str]]:
        """Slides that were to be extracted and are not there, by source."""
        path = self.folder / "sources.json"
        listed = read_json(path) if path.is_file() else {}
        found = {
            source: [name for name in names if name not in self.slides.index]
            for source, names in listed.items()
        }
        return {source: names for source, names in found.items() if names}

    def delisted(self) -> dict[str, list[str]]:
        """Slides whose cohort.csv, where it can still be read, lists them no more, by source."""
        if "source" not in self.slides:  # of an older extraction
            return {}
        found = {}
        for source, rows in self.slides.groupby("source", sort=False):
            if not source:  # given one by one
                continue
            path = Path(source) if source.endswith(".csv") else Path(source) / "cohort.csv"
            if path.is_file():
                listed = set(read_table(path, ("slide_id",), "cohort table")["slide_id"])
                found[source] = [name for name in rows.index if name not in listed]
        return {source: names for source, names in found.items() if names}

    def only(self, slide_ids: Sequence[str]) -> Cohort:
        """The same cohort with these of its slides."""
        other = copy.copy(self)
        other.slides = self.slides.loc[list(slide_ids)]
        return other

    def of_fold(self, fold: str) -> Cohort:
        """The same cohort with the features of a fold, by its id, where they are one set a fold.

        Raises:
            InputError: no encoder was tuned for this fold.
        """
        if not self.by_fold:
            return self
        other = copy.copy(self)
        tuned = [(place / TUNED).is_file() for place in self.feature_folders]
        other.feature_folders = [
            place / fold if own else place
            for place, own in zip(self.feature_folders, tuned, strict=True)
        ]
        other.by_fold = False
        for place in other.feature_folders:
            if not place.is_dir():
                there = ", ".join(sorted(p.name for p in place.parent.iterdir() if p.is_dir()))
                raise InputError(
                    f"{place.parent} holds no features tuned for fold {fold} (there: "
                    f"{there or 'none'}); give run_finetune.py and run_train.py the same --folds"
                )
        return other

    def tuned_on(
        self, slide_ids: Sequence[str], roles: Sequence[str] = ("train", "val")
    ) -> set[str]:
        """Slides that tuned the encoders of some slides' features, in these roles."""
        found = set()
        for path in (path for slide_id in slide_ids for path in self.feature_files(slide_id)):
            with open_hdf5(path, *FEATURES) as file:
                found |= tuned_slides(file.attrs, roles)
        return found

    def zero_filled(self) -> Cohort:
        """The same cohort, in which a gene that a slide did not measure is zero in all its spots.

        HistoPrism's and HEST's authors train so. It teaches that what a small panel lacks is not
        expressed.
        """
        other = copy.copy(self)
        other.fills = True
        return other

    def with_gene_map(self, gene_map: GeneMap) -> Cohort:
        """The same cohort, whose genes have the ids of a map; see ``GeneMap.apply``."""
        other = copy.copy(self)
        other.gene_map = gene_map
        return other

    def with_counts(self) -> Cohort:
        """The slides that were measured, which can train and be scored; says which are not.

        Raises:
            InputError: no slide was.
        """
        counts = self.slides.get("num_genes", pd.Series("1", self.slides.index))
        bare = list(self.slides.index[pd.to_numeric(counts, errors="coerce") == 0])
        if not bare:
            return self
        if len(bare) == len(self.slides):
            raise InputError(
                f"no slide of {self.folder} has counts, such as {bare[0]}; they can be predicted "
                "(run_predict.py), and training needs slides that were measured"
            )
        print(f"{len(bare)} slides have no counts and take no part, such as {bare[0]}")
        other = copy.copy(self)
        other.slides = self.slides.drop(index=bare)
        return other

    def with_cancers(self, codes: Mapping[str, str]) -> Cohort:
        """The same cohort with other oncotree codes, by slide id; slides not named keep theirs."""
        other = copy.copy(self)
        other.slides = self.slides.copy()
        other.slides["cancer"] = [codes.get(s, c) for s, c in self.slides["cancer"].items()]
        return other

    def provenance(self, slide_id: str) -> dict:
        """The attributes of a slide's feature files, joined by `` + `` where they differ.

        With ``blocks``, the dimensions that each encoder has in the features, and their sum
        ``dimension``.
        """
        parts, blocks = [], []
        for path in self.feature_files(slide_id):
            with open_hdf5(path, *FEATURES) as file:
                parts.append(
                    {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
                )
                blocks.append(int(file["features"].shape[1]) * (1 + (self.neighbors != "none")))
        joined = {}
        for key in parts[0]:
            values = [str(part.get(key)) for part in parts]
            joined[key] = parts[0][key] if len(set(values)) == 1 else " + ".join(values)
        return joined | {"dimension": sum(blocks), "blocks": blocks}

    def gene_table(self, slide_id: str) -> pd.DataFrame:
        """Measured genes of a slide: index gene, columns gene_id and symbol."""
        with open_hdf5(self._expression_file(slide_id), *EXPRESSION) as file:
            var = _read_var(file)
        var = self.gene_map.apply(var)[0] if self.gene_map else var
        return var.loc[var["measured"], ["gene_id", "symbol"]]

    def load(
        self,
        slide_id: str,
        genes: pd.DataFrame | Sequence[str] | None = None,
        *,
        features: bool = True,
        counts: bool = True,
    ) -> Slide:
        """Read one slide.

        Args:
            slide_id: the slide.
            genes: rows gene, gene_id, symbol (or names alone) whose counts are wanted, in this
                order; all genes of the slide by default. They are found as
                ``histokit.data.gene_keys.positions`` says; one that the slide did not measure is an
                empty column with ``measured`` false.
            features: without them the slide has none, (N, 0), and no file of them is opened; rows
                are all spots of the expression file.
            counts: without them the slide has none, (N, 0), its library sizes are NaN, and the
                matrix is not read.

        Raises:
            InputError: a file is missing or damaged, or features are not finite.
        """
        self._check_listed(slide_id)
        paths = self.feature_files(slide_id) if features else []
        parts = [_read_features(path) for path in paths]
        matrix, obs_names, centers, var = self._expression(slide_id, counts)
        path, barcodes = (paths[0], parts[0][1]) if parts else ("", list(obs_names))
        rows = pd.Index(obs_names).get_indexer(barcodes)
        if (rows < 0).any():
            raise InputError(
                f"barcode {barcodes[int(np.argmax(rows < 0))]} of {path} has no expression; "
                "extract the slide again"
            )
        if counts:
            matrix = matrix[rows]
            library_size = np.asarray(matrix[:, var["measured"].to_numpy()].sum(axis=1)).ravel()
            if self.gene_map:
                var, place = self.gene_map.apply(var)
                matrix = self.gene_map.merged(matrix, place, len(var))
        else:
            matrix, library_size = sp.csr_matrix((len(rows), 0)), np.full(len(rows), np.nan)
            var, genes = var.iloc[:0], None
        columns = np.arange(len(var))
        if genes is not None:
            panel = genes if isinstance(genes, pd.DataFrame) else as_panel(genes)
            columns = positions(var, panel)
            if panel is not genes:  # a slide's own names, which are one gene each
                own = var.index.get_indexer(panel["gene"])
                columns = np.where(own >= 0, own, columns)
        joined = [torch.empty(len(barcodes), 0)] if not parts else []
        for values, own in parts:
            order = pd.Index(own).get_indexer(barcodes)
            if (order < 0).any() or len(own) != len(barcodes):
                raise InputError(
                    f"the encoders {self.encoder} saw different spots of slide {slide_id}; extract "
                    "it again with each"
                )
            values = torch.from_numpy(values[order].astype(np.float32))
            joined.append(with_neighbors(values, centers[rows], self.neighbors))
        row = self.slides.loc[slide_id]
        return Slide(
            slide_id=slide_id,
            cancer=row["cancer"],
            patient=row["patient"],
            barcodes=barcodes,
            centers=centers[rows],
            features=torch.cat(joined, dim=1),
            counts=_take_columns(matrix, columns),
            library_size=library_size,
            measured=((columns >= 0) & var["measured"].to_numpy()[columns]) | self.fills,
            technology=row["technology"],
        )

    def _expression(self, slide_id: str, whole: bool):
        """Counts (None unless ``whole``), barcodes, centers and genes of a slide."""
        path = self._expression_file(slide_id)
        with open_hdf5(path, *EXPRESSION) as file:
            if "obsm/spatial" not in file:
                raise InputError(
                    f"slide {slide_id} has no coordinates: {file.filename} lacks obsm/spatial; "
                    "extract the slide again"
                )
            names, var = row_names(file["obs"], path), _read_var(file)
            counts = read_matrix(file["X"], (len(names), len(var)), path) if whole else None
            centers = np.asarray(file["obsm/spatial"][:], dtype=np.float64)
            if centers.shape != (len(names), 2) or not np.isfinite(centers).all():
                raise InputError(
                    f"{path} holds coordinates {centers.shape} of {len(names)} spots; extract the "
                    "slide again"
                )
            if len(set(names)) < len(names) or (whole and counts.nnz and counts.data.min() < 0):
                raise InputError(
                    f"{path} holds repeated barcodes or negative counts; extract the slide again"
                )
            return counts, pd.Index(names), centers, var

    def feature_files(self, slide_id: str) -> list[Path]:
        """Where each encoder's features of a slide lie.

        Raises:
            InputError: an unknown slide, or features of which each fold has its own.
        """
        self._check_listed(slide_id)
        if self.by_fold:
            raise InputError(
                f"the features of {self.encoder} were tuned for each fold, so that none serves a "
                "slide in all; they are for run_train.py and run_eval.py alone"
            )
        return [folder / f"{slide_id}.h5" for folder in self.feature_folders]

    def _check_listed(self, slide_id: str) -> None:
        if slide_id not in self.slides.index:
            raise InputError(f"slide {slide_id} is not in {self.folder / 'slides.csv'}")

    def _expression_file(self, slide_id: str) -> Path:
        return self.folder / "expression" / f"{slide_id}.h5ad"


def refuse_missing(cohort: Cohort, allowed: bool) -> None:
    """Refuse half an extraction, or say it where that is allowed; refuse slides taken out since."""
    for source, names in cohort.missing().items():
        said = f"{len(names)} slides of {source} are not extracted, such as {names[0]}"
        if not allowed:
            raise InputError(
                f"{said}; give run_extract.py its command again, or train without them with "
                "--allow-missing"
            )
        print(f"{said}; the training goes on without them")
    for source, names in cohort.delisted().items():
        raise InputError(
            f"{len(names)} slides, such as {names[0]}, are in {cohort.folder} and no longer in "
            f"{source}; give run_extract.py its command again, which takes them out"
        )


def check_alike(cohort: Cohort, folds: Sequence) -> None:
    """Refuse a training on features of two kinds; reads attributes alone.

    Args:
        cohort: whose features train; where each fold has its own, they are alike in a fold.
        folds: the folds, as ``histokit.data.splits.make_folds`` returns them.

    Raises:
        InputError: names two slides and what differs.
    """
    if cohort.by_fold:
        for fold in folds:
            check_alike(cohort.of_fold(fold.id), [fold])
        return
    members = list(dict.fromkeys(s for f in folds for s in (*f.train, *f.val, *f.test)))
    first = cohort.provenance(members[0])
    for slide_id in members[1:]:
        if found := difference(first, cohort.provenance(slide_id)):
            raise InputError(
                f"the features of {members[0]} have {found[0]} {found[1]} and those of {slide_id} "
                f"{found[2]}; extract both the same way"
            )


def refuse_tuned(encoder: str, tuned_on: set[str], fold: str, tests: Sequence[str]) -> None:
    """Refuse features of an encoder that was tuned on slides it would be tested on.

    Args:
        encoder: its name.
        tuned_on: slides that tuned it.
        fold: the name of the fold.
        tests: the fold's test slides.

    Raises:
        InputError: names such a slide. No option allows it: the score would be of seen slides.
    """
    if seen := sorted(tuned_on & set(tests)):
        raise InputError(
            f"the encoder {encoder} was tuned on slide {seen[0]}, which fold {fold} tests; tune it "
            "with the same folds (run_finetune.py), or use another encoder"
        )


FEATURES = "feature file", "delete it and extract the slide again"
EXPRESSION = "expression file", "delete it and extract the slide again"


def _read_features(path: Path) -> tuple[np.ndarray, list[str]]:
    """Features (N, D) and barcodes of a file."""
    with open_hdf5(path, *FEATURES) as file:
        features = file["features"][:]
        barcodes = [_text(b) for b in file["barcodes"][:].reshape(-1)]
        if features.ndim != 2 or len(features) != len(barcodes):
            raise InputError(
                f"{path} holds features {features.shape} and {len(barcodes)} barcodes; one row a "
                "barcode was expected, extract the slide again"
            )
        if features.dtype.kind != "f" or len(set(barcodes)) < len(barcodes):
            raise InputError(
                f"{path} holds features of {features.dtype} and {len(set(barcodes))} different of "
                f"{len(barcodes)} barcodes; floats and unique barcodes were expected, extract the "
                "slide again"
            )
    if not np.isfinite(features).all():
        raise InputError(f"{path} holds features that are not finite; extract the slide again")
    return features, barcodes


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
