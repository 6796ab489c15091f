"""A trained run on disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from histokit.errors import InputError
from histokit.files import read_json


class Fold:
    """One fold of a run: its split, its genes and its trained model."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name

    def is_finished(self) -> bool:
        """Whether the fold was trained to its end."""
        return (self.folder / "model.safetensors").is_file()

    @property
    def split(self) -> pd.DataFrame:
        """slide_id, split (train, val or test), cancer, patient."""
        return pd.read_csv(self.folder / "split.csv", dtype=str, keep_default_na=False)

    @property
    def genes(self) -> pd.DataFrame:
        """gene, gene_id, symbol, hvg_rank, train_mean, train_variance; rows are model outputs."""
        text = dict.fromkeys(("gene", "gene_id", "symbol"), str)
        table = pd.read_csv(
            self.folder / "genes.csv",
            dtype=text,
            na_values={"hvg_rank": [""]},
            keep_default_na=False,
        )
        return table

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

    @property
    def folds(self) -> list[Fold]:
        """Folds in the order they were trained in."""
        return [Fold(self.folder / "folds" / name) for name in self.config["folds"]]
