"""A trained run on disk."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import file_id, read_json, reading
from histokit.core.precision import from_autocast
from histokit.core.tables import read_table
from histokit.data.features import FOLD_FEATURES
from histokit.data.splits import ROLES


class Fold:
    """One fold of a run: its split, its genes and its trained model.

    Args:
        folder: the folder of the fold; its name is the fold's ``id``.
        name: what the fold is called, any text; shown, never part of a path.
        counted: slides by role as the training knew them; None for runs that did not record it.
    """

    def __init__(self, folder: Path, name: str, counted: dict[str, int] | None = None):
        self.folder, self.id, self.name, self.counted = folder, folder.name, name, counted

    def is_finished(self) -> bool:
        """Whether the fold was trained to its end."""
        return (self.folder / "model.safetensors").is_file()

    @property
    def features(self) -> dict:
        """The identity of features that are this fold's own; empty where all folds share theirs."""
        path = self.folder / FOLD_FEATURES
        return read_json(path) if path.is_file() else {}

    @cached_property
    def split(self) -> pd.DataFrame:
        """slide_id, split (train, val or test), cancer, patient; every slide once."""
        columns = ("slide_id", "split", "cancer", "patient")
        table = self._table("split.csv", columns, "table of a fold's slides")
        found = {role: int((table["split"] == role).sum()) for role in ROLES}
        whole = self.counted in (None, found) and sum(found.values()) == len(table)
        if not whole or table["slide_id"].duplicated().any():
            raise self._changed("split.csv")
        return table

    @cached_property
    def genes(self) -> pd.DataFrame:
        """Rows are the model's outputs.

        gene, gene_id, symbol, hvg_rank, train_mean, train_variance, train_spots (in how many of
        the spots that the model was fitted on the gene has a count).
        """
        path = self.folder / "genes.csv"
        table = self._table("genes.csv", ("gene", "gene_id", "symbol"), "table of a fold's genes")
        if self.is_finished() and len(table) != self._outputs():
            raise self._changed("genes.csv")
        with reading(path, "table of a fold's genes", "train the fold again"):
            for column in table.columns.difference(["gene", "gene_id", "symbol"]):
                table[column] = table[column].replace("", "nan").astype(float)
        return table

    @cached_property
    def learned(self) -> np.ndarray:
        """(G,) bool, genes with a count in a training spot; no other output has a prediction.

        It is what it began as, or zero and noise. All are learned where published weights do not
        say; in runs of before ``train_spots`` was counted, those with moments.
        """
        genes = self.genes
        if "train_spots" in genes:
            return (genes["train_spots"] != 0).to_numpy()
        if "train_mean" not in genes or "train_variance" not in genes:
            return np.ones(len(genes), bool)
        return ((genes["train_mean"] != 0) | (genes["train_variance"] != 0)).to_numpy()

    def _table(self, name: str, columns: tuple[str, ...], what: str) -> pd.DataFrame:
        """A table that the training wrote: it ends every line, so one without that end was cut."""
        path = self.folder / name
        table = read_table(path, columns, what)
        with reading(path, what):
            whole = path.read_bytes().endswith(b"\n")
        if not whole:
            raise self._changed(name)
        return table

    def _outputs(self) -> int:
        """How many genes the fold's trained model predicts."""
        path = self.folder / "model.json"
        description = read_json(path)
        with reading(path, "description of a model", "train the fold again"):
            return int(description["arguments"]["num_genes"])

    def _changed(self, name: str) -> InputError:
        return InputError(
            f"{self.folder / name} was changed or cut short since the training; remove the fold's "
            f"folder {self.folder} and give run_train.py the same command again"
        )

    def cancer(self, slide_id: str) -> str:
        """The oncotree code that the fold gave a slide."""
        return self.split.set_index("slide_id")["cancer"][slide_id]

    def check_held_out(self, slide_id: str) -> None:
        """The one rule of every figure: a slide is judged by a model that never saw it.

        Raises:
            RuntimeError: the slide trained or validated this fold, or is none of its slides.
        """
        role = self.split.set_index("slide_id")["split"].get(slide_id)
        if role != "test":
            raise RuntimeError(
                f"fold {self.name} did not hold slide {slide_id} out (its role there is {role}); "
                "its model must not be judged on it"
            )

    def load_model(self):
        """The fold's model, in evaluation mode."""
        from histokit import models

        if not self.is_finished():
            raise InputError(
                f"fold {self.name} of {self.folder.parents[1]} is not trained to its end; "
                "give run_train.py the same command again"
            )
        return models.load(self.folder)


class Run:
    """The folder that ``run_train.py`` wrote."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise InputError(
                f"{folder} is not a run: it holds no config.json; make it with run_train.py"
            )
        self.config = read_json(self.folder / "config.json")
        for key, kind in (("options", dict), ("folds", list), ("features", dict)):
            if not isinstance(self.config.get(key), kind):
                raise InputError(
                    f"{self.folder / 'config.json'} does not describe a run: it has no {key}; "
                    "train again"
                )
        self.config["options"] = from_autocast(self.config["options"])

    @property
    def official(self) -> dict:
        """Where published weights come from that were not trained here; empty for a training."""
        return self.config.get("official") or {}

    @property
    def ranks_genes(self) -> bool:
        """Whether the training slides of every fold say which genes are the most variable.

        Those of published weights are not there, and spots of many slides may have no gene that
        all of them detect.
        """
        return all(fold.genes["hvg_rank"].notna().any() for fold in self.folds)

    @cached_property
    def folds(self) -> list[Fold]:
        """Folds in the order they were trained in."""
        names = self.config.get("fold_names", {})
        counted = self.config.get("fold_slides", {})
        found = []
        for folder in self.config["folds"]:
            if file_id(str(folder)) != folder:
                raise InputError(
                    f"{self.folder} has a fold {folder!r}, which is no plain folder name; runs of "
                    "such folds mixed them up, train again"
                )
            place = self.folder / "folds" / folder
            found.append(Fold(place, names.get(folder, folder), counted.get(folder)))
        return found
