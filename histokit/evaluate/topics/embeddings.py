"""What BP-Booster makes of an embedding: clusters of raw, PCA and refined ones (appendix A.7)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix, silhouette_score

from histokit.core.distributed import Team
from histokit.data.cohort import Cohort, Slide
from histokit.data.genes import normalize
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.intervals import Interval, Units, mean_interval, units_of
from histokit.evaluate.runs import Fold, Run
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import MIN_SPOTS, averaged
from histokit.evaluate.topics.base import Part, Topic, gather_rows
from histokit.evaluate.topics.embedding_plots import ClusterMap, cluster_maps
from histokit.evaluate.topics.maps import picture_path
from histokit.evaluate.topics.predictions import read_tissue
from histokit.evaluate.verdict import averaging, interval_note, with_interval
from histokit.evaluate.views import SlideView
from histokit.models.bpbooster import BPBooster
from histokit.report import plots
from histokit.report.page import NONE, Picture, Section, Table, number

CLUSTERS = 6  # the paper gives no number
PER_CLUSTER = 5  # spots at least, on average: fewer clusters on a slide of few spots
SPOTS = 2000  # of a test slide; silhouettes take the square of them
PCA_SPOTS = 20_000  # of all training slides of a fold
PERPLEXITY = 30
KEPT = 1 << 30  # bytes of features
SEED = 0
FEW = 10  # principal components that show what squeezing alone does
RAW, COMPONENTS, LEADING, REFINED = "raw", "PCA", f"PCA-{FEW}", "refined"
DRAWN = (RAW, COMPONENTS, REFINED)
EXPRESSION = "expression"  # its own clusters explain it about as well as so many can
NAMES = {
    RAW: "raw, as the model sees it",
    COMPONENTS: "PCA",
    LEADING: f"its first {FEW} components",
    REFINED: "refined",
    EXPRESSION: "measured expression",
}
TEXT = (
    f"K-means finds {CLUSTERS} clusters (fewer on slides of few spots) among the spots of each "
    "test slide: in the features as the model sees them, in as many of their principal components "
    f"as the refined embedding has dimensions (fitted on the training slides), in the first {FEW} "
    "of these, and in the refined embedding. “Silhouette” is computed in the embedding itself, not "
    "on its t-SNE: 1 is tight and far apart, 0 is no clusters. It judges shape alone. An embedding "
    "squeezed into a few directions scores high whatever it means, as do a few outlying patches "
    "set apart from all others; one with many unrelated directions scores low however informative. "
    "“Effective” dimensions (the squared sum of the variances along the principal axes over the "
    "sum of their squares) tells how squeezed it is. So read “variance explained”: how much of the "
    "measured variance of a highly variable gene lies between the clusters (eta squared), the mean "
    "over these genes. Clusters drawn at random would explain “by chance”; clusters of those "
    "genes' own expression, in the last row, about as much as so many clusters can."
)


@dataclasses.dataclass(frozen=True)
class Clustering:
    """One embedding of a slide's spots, (N, D), its clusters (N,) from 0, and their silhouette."""

    values: np.ndarray
    labels: np.ndarray
    silhouette: float


class EmbeddingTopic(Topic):
    """How the embeddings of every test slide of a run of BP-Booster cluster."""

    def __init__(self, run: Run, cohort: Cohort):
        self.target, self.cohort = run.config["options"]["target"], cohort
        self.rows: list[dict] = []
        self.pictures: list[Picture] = []
        self._pca: dict[str, PCA] = {}
        self._features: dict[str, torch.Tensor] = {}  # of slides seen, up to KEPT bytes

    def add(self, view: SlideView) -> None:
        """Cluster a slide."""
        _, found, expression = self._clustered(view)
        score = view.score
        which = {"fold": score.fold, "slide_id": score.slide_id, "patient": score.patient}
        which["below_floor"] = score.num_spots < MIN_SPOTS
        self.rows += [which | row for row in describe(found, expression)]

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Take over the rows of all ranks, in the order of the scores."""
        self.rows = gather_rows(team, self.rows, scores)

    def show(self, view: SlideView, evaluation: Evaluation) -> None:
        """Draw a slide's clusters."""
        slide, found, _ = self._clustered(view)
        self.pictures.append(draw(view.fold, self.cohort, slide, found, evaluation.folder))

    def finish(self, evaluation: Evaluation) -> Part:
        """The means over slides, and embeddings.csv."""
        table = pd.DataFrame(self.rows)
        table.to_csv(evaluation.folder / "embeddings.csv", index=False, float_format="%.6g")
        section = Section("Embeddings", TEXT, [summary_table(table)], self.pictures)
        return Part(sections=[section])

    def _clustered(self, view: SlideView) -> tuple[Slide, dict[str, Clustering], np.ndarray]:
        """Some spots of a slide, their clusters in each embedding, and their expression."""
        fold = view.fold
        if self.cohort.by_fold:
            self._features.clear()  # those of another fold may be there
        self._keep(view.slide.slide_id, view.slide.features)
        if fold.id not in self._pca:
            own = self.cohort.of_fold(fold.id)
            read = partial(self._read, own)
            self._pca[fold.id] = training_pca(view.model, read, fold)
        slide = sample_spots(only_genes(view.slide, view.score.hvg))
        expression = varying_expression(slide, self.target)
        embeddings = embeddings_of(view.model, self._pca[fold.id], slide, expression)
        return slide, cluster_all(embeddings), expression

    def _read(self, cohort: Cohort, slide_id: str) -> torch.Tensor:
        """Features of a training slide; folds share slides, so they are kept where they fit."""
        if slide_id in self._features:
            return self._features[slide_id]
        return self._keep(slide_id, cohort.load(slide_id, counts=False).features)

    def _keep(self, slide_id: str, features: torch.Tensor) -> torch.Tensor:
        held = sum(x.nbytes for x in self._features.values())
        if held + features.nbytes <= KEPT:
            self._features[slide_id] = features
        return features


def only_genes(slide: Slide, chosen: np.ndarray) -> Slide:
    """A slide with the counts of some of its genes; chosen: (G,) bool."""
    counts, measured = slide.counts[:, np.flatnonzero(chosen)], slide.measured[chosen]
    return dataclasses.replace(slide, counts=counts, measured=measured)


def sample_spots(slide: Slide) -> Slide:
    """A slide with SPOTS of its spots at most, drawn with a fixed seed."""
    rows = np.arange(len(slide.barcodes))
    if len(rows) <= SPOTS:
        return slide
    rows = np.sort(np.random.default_rng(SEED).choice(rows, SPOTS, replace=False))
    return dataclasses.replace(
        slide,
        barcodes=[slide.barcodes[i] for i in rows],
        centers=slide.centers[rows],
        features=slide.features[rows],
        counts=slide.counts[rows],
        library_size=slide.library_size[rows],
    )


def training_pca(model: BPBooster, read: Callable[[str], torch.Tensor], fold: Fold) -> PCA:
    """Principal components of a fold's training patches, as many as refined dimensions.

    Args:
        model: the model of the fold.
        read: gives the features (N, D) of a slide.
        fold: its training and validation slides take part.
    """
    split = fold.split
    members = list(split.loc[split["split"] != "test", "slide_id"])
    rng, each = np.random.default_rng(SEED), -(-PCA_SPOTS // len(members))
    parts = []
    for slide_id in members:
        x = model.standardizer(read(slide_id))
        parts.append(x[rng.permutation(len(x))[:each]].numpy())
    x = np.concatenate(parts)
    dimensions = model.prototypes.shape[1]
    return PCA(min(dimensions, len(x) - 1, x.shape[1]), random_state=SEED).fit(x)


def varying_expression(slide: Slide, target: str) -> np.ndarray:
    """Expression of the slide's genes that vary on it, each to mean 0 and variance 1: (N, K)."""
    y = normalize(slide.counts, slide.library_size, target).toarray().astype(np.float64)
    y = y[:, slide.measured & (y.std(axis=0) > 1e-6)]
    return (y - y.mean(axis=0)) / y.std(axis=0)


def embeddings_of(
    model: BPBooster, pca: PCA, slide: Slide, expression: np.ndarray
) -> dict[str, np.ndarray]:
    """The spots of a slide in every embedding, and by their expression where genes vary."""
    raw = model.standardizer(slide.features).numpy()
    components = pca.transform(raw)
    found = {
        RAW: raw,
        COMPONENTS: components,
        LEADING: components[:, :FEW],
        REFINED: model.embed(slide.features, slide.cancer, allow_unknown=True).numpy(),
        EXPRESSION: expression,
    }
    return {name: values.astype(np.float64) for name, values in found.items() if values.size}


def cluster_all(embeddings: Mapping[str, np.ndarray]) -> dict[str, Clustering]:
    """K-means in each embedding; a cluster bears the number of the raw one that it overlaps most.

    Values that are all alike are one cluster, whose silhouette is NaN.
    """
    found = {}
    for name, values in embeddings.items():
        clusters = min(CLUSTERS, max(2, len(values) // PER_CLUSTER))
        clusters = min(clusters, len(np.unique(values, axis=0)))
        labels = KMeans(clusters, n_init=10, random_state=SEED).fit_predict(values)
        if found:
            overlap = confusion_matrix(found[RAW].labels, labels)
            labels = linear_sum_assignment(-overlap.T)[1][labels]
        several = 1 < clusters < len(values)
        silhouette = silhouette_score(values, labels) if several else np.nan
        found[name] = Clustering(values, labels, float(silhouette))
    return found


def effective_dimensions(values: np.ndarray) -> float:
    """Participation ratio of the variances along the principal axes of (N, D) values."""
    centered = values - values.mean(axis=0)
    gram = centered @ centered.T if len(centered) < centered.shape[1] else centered.T @ centered
    squares = np.square(gram).sum()
    return float(np.trace(gram) ** 2 / squares) if squares > 0 else 0.0


def explained_variance(expression: np.ndarray, labels: np.ndarray) -> float:
    """Share of variance that lies between clusters (eta squared), the mean over genes.

    Args:
        expression: (N, K), each gene of mean 0 and variance 1.
        labels: (N,) int.
    """
    if not expression.size:
        return float("nan")
    member = labels == np.unique(labels)[:, None]
    sizes = member.sum(axis=1, keepdims=True)
    return float((np.square(member @ expression) / sizes).sum(axis=0).mean() / len(labels))


def describe(found: Mapping[str, Clustering], expression: np.ndarray) -> Iterator[dict]:
    """The row of embeddings.csv of each embedding of a slide."""
    for name, one in found.items():
        spots, clusters = len(one.labels), len(np.unique(one.labels))
        yield {
            "embedding": name,
            "dimensions": one.values.shape[1],
            "effective_dimensions": effective_dimensions(one.values),
            "spots": spots,
            "clusters": clusters,
            "silhouette": one.silhouette,
            "explained": explained_variance(expression, one.labels),
            "by_chance": (clusters - 1) / (spots - 1) if spots > 1 else np.nan,
        }


def summary_table(table: pd.DataFrame) -> Table:
    """A row an embedding, means over patients; a slide of several folds counts once."""
    columns = ["embedding", "dimensions", "effective", "silhouette", "variance explained"]
    columns += ["by chance", "above PCA"]
    table = averaged(table)
    if table.empty:
        return Table("", columns, [], f"No test slide has {MIN_SPOTS} spots.")
    patients = table.groupby("slide_id", sort=False)["patient"].first()
    slides = table.groupby(["embedding", "slide_id"], sort=False).mean(numeric_only=True)
    names = [name for name in NAMES if name in slides.index]
    slides = {name: slides.loc[name].reindex(patients.index) for name in names}
    units, against = units_of(patients), slides[COMPONENTS]["explained"]
    rows = [
        [NAMES[name], number(_over(own["dimensions"], units).value, 0),
         number(_over(own["effective_dimensions"], units).value, 1),
         _mean(own["silhouette"], units), _mean(own["explained"], units, 3),
         number(_over(own["by_chance"], units).value, 3),
         NONE if name == COMPONENTS else _mean(own["explained"] - against, units, 3)]
        for name, own in slides.items()
    ]  # fmt: skip
    found = _over(against, units)
    note = interval_note(found.unit, found.units, not np.isnan(found.low))
    note = f"{averaging(units.name)} The last column is paired by slide. {note}"
    return Table("", columns, rows, f"{note} Each slide is in embeddings.csv.")


def _mean(values: pd.Series, units: Units, digits: int = 2) -> str:
    """Mean over units with its interval."""
    found = _over(values, units)
    return with_interval(found.value, found.low, found.high, digits)


def _over(values: pd.Series, units: Units) -> Interval:
    return mean_interval(values.to_numpy(dtype=float), units)


def draw(
    fold: Fold, cohort: Cohort, slide: Slide, found: Mapping[str, Clustering], folder: Path
) -> Picture:
    """Draw a slide's clusters on the t-SNE of each image embedding and on the tissue."""
    maps = [
        ClusterMap(
            f"{NAMES[name]}\nsilhouette {number(found[name].silhouette)}",
            tsne(found[name].values),
            found[name].labels,
        )
        for name in DRAWN
    ]
    figure = cluster_maps(read_tissue(cohort, slide), maps, f"{slide.slide_id}: embeddings")
    path = picture_path(folder, "embeddings", fold, slide.slide_id)
    plots.save(figure, path)
    caption = (
        f"Slide {slide.slide_id}, fold {fold.name}: t-SNE of its spots and, below, the same "
        "clusters on the tissue. Clusters were found in each embedding, not on its t-SNE; like "
        "colors overlap most. Distances and sizes of groups in a t-SNE mean nothing."
    )
    return Picture(path, caption)


def tsne(values: np.ndarray) -> np.ndarray:
    """(N, D) to (N, 2) with a fixed seed; zeros where all values are alike."""
    if len(np.unique(values, axis=0)) < 3:
        return np.zeros((len(values), 2))
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(values)
