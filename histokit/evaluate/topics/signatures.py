"""Gene signatures: is the score of a named list of genes predicted, not only each gene?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histokit.core.distributed import Team
from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.data.gene_names import full_name
from histokit.data.genes import read_gene_list
from histokit.evaluate.coherence import (
    coherence,
)
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.intervals import mean_interval, units_of
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import (
    CORRELATION,
    MIN_SPOTS,
    averaged,
    one_row_a_slide,
)
from histokit.evaluate.topics.base import Part, Topic, gather_rows
from histokit.evaluate.topics.pathway_plots import signature_bars
from histokit.evaluate.topics.pathways import PathwayGenes, genes_of
from histokit.evaluate.verdict import interval_note, with_interval
from histokit.evaluate.views import SlideView
from histokit.ops.moments import is_constant
from histokit.report import plots
from histokit.report.page import Picture, Section, Table, number

SHIPPED = {path.stem: path for path in Path(__file__).parent.glob("*.txt")}


@dataclasses.dataclass(frozen=True)
class Signature:
    """A named gene list; each entry holds a gene's current name and then its former ones."""

    name: str
    genes: tuple[tuple[str, ...], ...]


def read_signature(source: str) -> Signature:
    """A signature from a text file, one gene a line, or a shipped one by name (``pam50``).

    Former names of a gene follow it after a bar: ``NDC80|KNTC2``.

    Raises:
        InputError: neither a file nor a shipped name, no gene, or a name listed twice.
    """
    path = Path(source)
    if not path.is_file():
        if source.lower() not in SHIPPED:
            raise InputError(
                f"the signature {source} is neither a file nor one of "
                f"{', '.join(sorted(SHIPPED))}; give a file with one gene a line"
            )
        path = SHIPPED[source.lower()]
    genes = tuple(
        tuple(name.strip() for name in line.split("|") if name.strip())
        for line in read_gene_list(path)
    )
    names = pd.Index([name for entry in genes for name in entry])
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise InputError(f"the signature {path} names {twice} twice; list each gene once")
    return Signature(file_id(path.stem), genes)


def read_signatures(sources: Sequence[str]) -> list[Signature]:
    """Read signatures; raises InputError for the first that is wrong or named twice."""
    signatures = [read_signature(source) for source in sources]
    names = [signature.name for signature in signatures]
    if len(set(names)) < len(names):
        raise InputError(f"--signature names {max(names, key=names.count)} twice; give it once")
    return signatures


def find_genes(signature: Signature, genes: pd.DataFrame) -> pd.Series:
    """As ``rows_of``.

    Raises:
        InputError: the panel has none of the genes.
    """
    found = rows_of(signature, genes)
    if found.empty:
        raise InputError(
            f"none of the {len(signature.genes)} genes of the signature {signature.name} (such as "
            f"{signature.genes[0][0]}) is in the panel, whose genes look like "
            f"{genes['gene'].iloc[0]}; give the same kind of name"
        )
    return found


def rows_of(signature: Signature, genes: pd.DataFrame) -> pd.Series:
    """Where a panel has the genes of a signature.

    Args:
        signature: names are tried from the current to the former.
        genes: gene, gene_id, symbol, a row a model output.

    Returns:
        Row of ``genes`` by current name; genes that the panel lacks are left out.
    """
    known: dict[str, int] = {}
    for column in ("gene", "symbol", "gene_id"):
        for row, name in enumerate(genes[column]):
            if name:
                known.setdefault(name, row)
    found = {
        entry[0]: next(known[name] for name in entry if name in known)
        for entry in signature.genes
        if any(name in known for name in entry)
    }
    return pd.Series(found, dtype=int)


def varying(values: np.ndarray) -> np.ndarray:
    """Which columns of (N, K) expression vary beyond rounding: (K,) bool; a NaN column does not."""
    mean, squares = values.mean(axis=0), values.var(axis=0) * len(values)
    moments, eps = map(torch.from_numpy, (squares, mean)), torch.finfo(torch.float32).eps
    return np.isfinite(mean) & ~is_constant(*moments, len(values), eps).numpy()


def signature_score(values: np.ndarray) -> np.ndarray:
    """Mean over genes of their z-scores over the spots of a slide: (N, K) to (N,), float64."""
    values = np.asarray(values, dtype=np.float64)
    return ((values - values.mean(axis=0)) / values.std(axis=0)).mean(axis=1)


def score_signature(prediction: np.ndarray, target: np.ndarray) -> dict:
    """Correlate the predicted with the measured score of a signature over the spots of a slide.

    Args:
        prediction: (N, K) predicted expression of the signature's genes.
        target: (N, K) measured expression; NaN columns are genes the slide did not measure.

    Returns:
        ``pcc`` and ``genes``, how many vary in both and make up both scores; NaN where none does.
    """
    prediction, target = (np.asarray(x, dtype=np.float64) for x in (prediction, target))
    both = varying(prediction) & varying(target)
    if not both.any():
        return {"pcc": float("nan"), "genes": 0}
    scores = [signature_score(values[:, both]) for values in (prediction, target)]
    if not all(score.std() > 1e-12 for score in scores):  # z-scores that cancel in every spot
        return {"pcc": float("nan"), "genes": int(both.sum())}
    return {"pcc": float(np.corrcoef(*scores)[0, 1]), "genes": int(both.sum())}


def random_genes(places: np.ndarray, variance: np.ndarray, num_lists: int) -> list[np.ndarray]:
    """Lists of other genes that vary as much as those of a signature: its null.

    Args:
        places: (K,) int, genes of the signature.
        variance: (G,) of the measured expression on a slide, NaN where not measured.
        num_lists: how many; the draw is seeded.

    Returns:
        Each (K',) int: for every measured gene of the signature one of the genes next to it in
        the order of variance that are not in the signature, none twice in a list.
    """
    order = np.argsort(variance, kind="stable")[: np.count_nonzero(~np.isnan(variance))]
    others = order[~np.isin(order, places)]
    wanted = np.searchsorted(variance[others], variance[places[~np.isnan(variance[places])]])
    rng, lists = np.random.default_rng(0), []
    near = max(50, 2 * len(places))
    for _ in range(num_lists):
        taken: set[int] = set()
        for at in wanted:
            pool = [g for g in others[max(0, at - near) : at + near] if g not in taken]
            if pool:
                taken.add(int(rng.choice(pool)))
        lists.append(np.array(sorted(taken), dtype=int))
    return lists


_RANDOM_LISTS = 20  # lists of random genes beside each signature


class SignatureTopic(Topic):
    """Scores of signatures on every test slide."""

    def __init__(self, signatures: Sequence[Signature]):
        self.signatures = signatures
        self.rows: list[dict] = []
        self._places: dict[tuple[str, str], np.ndarray] = {}

    def add(self, view: SlideView) -> None:
        """Score a slide."""
        fold, slide, score = view.fold, view.slide, view.score
        prediction, target = view.prediction, view.target
        for signature in self.signatures:
            key = (fold.name, signature.name)
            if key not in self._places:
                self._places[key] = find_genes(signature, score.genes).to_numpy()
            places = self._places[key]
            row = {"signature": signature.name, "fold": fold.name, "slide_id": slide.slide_id}
            row |= {"patient": score.patient, "below_floor": score.num_spots < MIN_SPOTS}
            row |= _score_genes(places, prediction, target, score)
            draws = random_genes(places, score.variance, _RANDOM_LISTS)
            null = [_score_genes(draw, prediction, target, score)["pcc"] for draw in draws]
            self.rows.append(row | {"random_pcc": mean_or_nan(null)})

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Take over the rows of all ranks, in the order of the scores."""
        self.rows = gather_rows(team, self.rows, scores)

    def table(self) -> pd.DataFrame:
        """One row a signature, fold and slide; ``random_pcc`` is that of genes as variable."""
        columns = ["signature", "fold", "slide_id", "patient", "below_floor", "pcc", "genes"]
        columns.append("random_pcc")
        return pd.DataFrame(self.rows, columns=columns)

    def finish(self, evaluation: Evaluation) -> Part:
        """A section a signature."""
        rows, folder = self.table(), evaluation.folder
        if not self.signatures:
            return Part()
        rows.to_csv(folder / "signatures.csv", index=False, float_format="%.6g")
        genes, sections = genes_of(evaluation.scores), []
        for signature in self.signatures:
            own = rows[rows["signature"] == signature.name]
            sections.append(signature_section(signature, own, genes, evaluation.genes, folder))
        return Part(sections=sections)


def _score_genes(places: np.ndarray, prediction, target, score: SlideScore) -> dict:
    measured = target[:, places].toarray().astype(float)
    measured[:, ~score.measured[places]] = np.nan
    return score_signature(prediction[:, places].numpy(), measured)


def signature_section(
    signature: Signature,
    scores: pd.DataFrame,
    genes: PathwayGenes,
    table: pd.DataFrame,
    folder: Path,
) -> Section:
    """Per-gene PCC and the score of one signature.

    Args:
        signature: its genes.
        scores: rows of ``SignatureScores.table`` of this signature.
        genes: the genes of the run.
        table: as ``histokit.evaluate.summary.gene_table`` returns it.
        folder: the folder of the evaluation; gets signature_NAME.csv and .png.
    """
    found = find_genes(signature, genes.panel)
    places = genes.panel["gene"].iloc[found.to_numpy()]
    own = table.loc[places].reset_index()
    own.index = found.index.rename("name")
    own.to_csv(folder / f"signature_{signature.name}.csv", float_format="%.6g")
    slides = one_row_a_slide(averaged(scores))
    units = units_of(slides["patient"])
    interval = mean_interval(slides["pcc"].to_numpy(dtype=float), units, bounds=CORRELATION)
    value = interval.value
    random = mean_interval(slides["random_pcc"].to_numpy(dtype=float), units).value
    mean = _coherence_of(signature.name, places, genes)
    everything = mean_or_nan(table["pcc"])
    rows = [
        ["signature score", with_interval(value, interval.low, interval.high)],
        ["score of random genes as variable", number(random)],
        ["mean PCC of its genes", with_interval(mean.score, mean.low, mean.high)],
        ["mean PCC of all genes", number(everything)],
    ]
    missing = [entry[0] for entry in signature.genes if entry[0] not in found]
    note = f"{len(found)} of {len(signature.genes)} genes are in the panel"
    note += f"; missing: {', '.join(missing)}. " if missing else ". "
    note += interval_note(interval.unit, interval.units, not np.isnan(interval.low))
    columns = ["slide", "fold", "PCC of the score", "random genes", "genes in it"]
    by_slide = [
        [s.slide_id, s.fold, float(s.pcc), float(s.random_pcc), int(s.genes)]
        for s in scores.itertuples()
    ]
    tables = [
        Table("", ["", "PCC"], rows, note),
        Table("By slide", columns, by_slide, text_columns=2),
    ]
    text = (
        "The signature's score at a spot is the mean z-score of its genes over the slide's spots, "
        "predicted and measured in the same way; its PCC is their correlation on a slide, then the "
        "mean over the slides of a patient, then over patients. What single genes have in common "
        "adds up in a score and their noise averages out, so it lies far above the mean PCC of the "
        "genes, for any genes: the score of random genes of the same number and variance is what "
        "to compare with. Only what lies above it is owed to this signature."
    )
    pictures = []
    if own["pcc"].notna().any():
        path = folder / f"signature_{signature.name}.png"
        plots.save(signature_bars(_labeled(own), value, random, everything), path)
        caption = "Each gene: PCC, mean over patients, and the span of its slides."
        pictures.append(Picture(path, caption, 90))
    return Section(f"Signature: {signature.name}", text, tables, pictures)


def _labeled(genes: pd.DataFrame) -> pd.DataFrame:
    """Genes of a panel by the name that the signature has for them, with their ids where known."""
    named = zip(genes.index, genes["gene"], genes["symbol"], genes["gene_id"], strict=True)
    # a signature may list ids, whose symbols the panel knows
    labels = [
        full_name(gene, symbol if name == gene_id else name, gene_id)
        for name, gene, symbol, gene_id in named
    ]
    return genes.set_axis(labels)


def _coherence_of(name: str, places: pd.Series, genes: PathwayGenes) -> pd.Series:
    """The mean PCC of a signature's genes and its interval, as those of a pathway."""
    return coherence({name: list(places)}, genes.pcc, genes.variance, genes.patients).iloc[0]
