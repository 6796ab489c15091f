"""Do clusters of predicted expression follow cancer types (section 4.4 of HistoPrism)?

The paper gives neither algorithm nor level nor resolution, so each is named beside its figures.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histokit.core.distributed import Team
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.topics.base import Part, Topic
from histokit.evaluate.views import SlideView, Views
from histokit.models.outputs import Outputs
from histokit.report.page import Section, Table, number

COMPONENTS = 50
SEEDS = 5
NEIGHBORS = 15
# Predicted rows in memory at once. An incremental PCA costs least when a batch is a few times as
# large as the number of components; 256 rows of 38,982 genes are 40 MB.
ROWS = 256


@dataclasses.dataclass(frozen=True)
class Block:
    """Predicted expression (n, G) float32 of some spots of one slide."""

    slide_id: str
    cancer: str
    prediction: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """A test slide before the head: (N, d) float32, and the fold whose head it takes."""

    slide_id: str
    cancer: str
    fold: str
    hidden: np.ndarray


class ClusterTopic(Topic):
    """Clusters of predicted expression; keeps the head's input of each spot, (N, d), in memory.

    A slide of several folds takes part once; those without a cancer code are left out.
    """

    def __init__(self, views: Views):
        self.views = views
        self._slides: dict[str, _Embedded] = {}

    def add(self, view: SlideView) -> None:
        """Keep the head's input of a slide."""
        slide = view.slide
        if slide.cancer and slide.slide_id not in self._slides:
            hidden = view.prediction.hidden.float().numpy()
            self._slides[slide.slide_id] = _Embedded(
                slide.slide_id, slide.cancer, view.fold.id, hidden
            )

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Take over the slides of all ranks, each from the first of its folds."""
        order = {(fold.id, slide_id): i for i, (fold, slide_id) in enumerate(self.views.work)}
        found = [one for part in team.gather(self._slides) for one in part.values()]
        found.sort(key=lambda one: order[one.fold, one.slide_id])
        self._slides = {}
        for one in found:
            self._slides.setdefault(one.slide_id, one)

    def finish(self, evaluation: Evaluation) -> Part:
        """AMI and ARI, written to clusters.csv; nothing to score where all slides have one code."""
        slides = list(self._slides.values())
        if len({one.cancer for one in slides}) < 2:
            return Part(sections=[cluster_section(None)])
        table = evaluation.clusters = score_clusters(lambda: self._blocks(slides))
        table.to_csv(evaluation.folder / "clusters.csv", index=False, float_format="%.6g")
        return Part(sections=[cluster_section(table)])

    def _blocks(self, slides: Sequence[_Embedded]) -> Iterator[Block]:
        """Predictions of the genes that all folds predict, a few spots at a time."""
        folds = {fold.id: fold for fold, _ in self.views.work}
        shared = pd.Index(next(iter(folds.values())).genes["gene"])
        for fold in folds.values():
            shared = shared[shared.isin(fold.genes["gene"])]
        for one in slides:
            fold = folds[one.fold]
            columns = torch.from_numpy(pd.Index(fold.genes["gene"]).get_indexer(shared))
            outputs = Outputs.of(self.views.model(fold).head)[columns]
            outputs = outputs.silencing(torch.from_numpy(fold.learned)[columns])
            for part in torch.from_numpy(one.hidden).split(ROWS):
                yield Block(one.slide_id, one.cancer, outputs(part).float().numpy())


def score_clusters(
    blocks: Callable[[], Iterable[Block]], components: int = COMPONENTS, seeds: int = SEEDS
) -> pd.DataFrame:
    """Cluster predicted expression over all genes and compare with the cancer types.

    Args:
        blocks: called twice, yields the same predictions both times; memory is one batch of
            spots, the mean of each slide and the principal components of each spot.
        components: the components of the PCA, fewer where there are fewer spots or slides.
        seeds: the seeds of the clusterings, whose scores are averaged.

    Returns:
        One row for each ``level`` (``slide``, its mean prediction; ``spot``) and ``method``
        (``k-means`` with as many clusters as cancer types; ``leiden`` of the graph of 15 nearest
        neighbors at resolution 1): ``items`` clustered, ``cancers``, ``clusters`` on average,
        ``ami``, ``ami_sd``, ``ari``, ``ari_sd`` over seeds.

    Raises:
        ValueError: fewer than two cancer types, which no clustering can agree with.
    """
    slides, pca = _first_pass(blocks(), components)
    labels = np.array([cancer for cancer, _, _ in slides.values()])
    if len(set(labels)) < 2:
        raise ValueError("score_clusters: blocks must hold slides of at least two cancer types")
    means = np.stack([total / count for _, count, total in slides.values()])
    slide_pca = StreamingPCA(components)
    slide_pca.update(means.astype(np.float32))
    points = slide_pca.transform(means.astype(np.float32))
    rows = _level("slide", points, labels, seeds)
    spots, owners = [], []
    for block in blocks():
        spots.append(pca.transform(block.prediction))
        owners += [block.cancer] * len(block.prediction)
    rows += _level("spot", np.concatenate(spots), np.array(owners), seeds)
    return pd.DataFrame(rows)


class StreamingPCA:
    """Principal components of rows that come in batches; memory is that of one batch.

    The update of Ross et al., "Incremental learning for robust visual tracking" (2008), as in
    scikit-learn's IncrementalPCA, but from the batch's Gram matrix instead of an SVD over genes:
    over ten times as fast with 38,982 genes, and float32 suffices for the leading components.
    """

    def __init__(self, components: int):
        self.components = components
        self.count = 0

    def update(self, rows: np.ndarray) -> None:
        """Add rows (n, G) float32."""
        mean = rows.mean(axis=0, dtype=np.float64)
        parts = [rows - mean.astype(np.float32)]
        total = self.count + len(rows)
        if self.count:
            step = self.mean - mean
            weight = np.sqrt(self.count * len(rows) / total)
            parts += [self.scaled, (weight * step).astype(np.float32)[None]]
            mean = mean + step * (self.count / total)
        stack = np.concatenate(parts)
        values, vectors = np.linalg.eigh((stack @ stack.T).astype(np.float64))
        leading = vectors[:, ::-1][:, : self.components].astype(np.float32)
        self.values = np.maximum(values[::-1][: self.components], 0)
        self.scaled = leading.T @ stack  # (K, G), each component times its singular value
        self.mean, self.count = mean, total

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Scores (n, K) float32 of rows (n, G); 0 for components that nothing varies along."""
        size = np.sqrt(self.values)
        alive = size > 1e-4 * max(size.max(), np.abs(self.mean).max() * 1e-2, 1e-30)
        scale = np.where(alive, 1 / np.where(alive, size, 1), 0).astype(np.float32)
        return (rows - self.mean.astype(np.float32)) @ self.scaled.T * scale


def _first_pass(blocks: Iterable[Block], components: int):
    """Per slide (cancer, spots, sum of predictions), and the PCA of all spots."""
    slides: dict[str, tuple[str, int, np.ndarray]] = {}
    pca, waiting = StreamingPCA(components), []
    for block in blocks:
        _, count, total = slides.get(block.slide_id, ("", 0, 0.0))
        total = total + block.prediction.sum(axis=0, dtype=np.float64)
        slides[block.slide_id] = (block.cancer, count + len(block.prediction), total)
        waiting.append(block.prediction)
        if sum(map(len, waiting)) >= ROWS:
            pca.update(np.concatenate(waiting))
            waiting = []
    if waiting:
        pca.update(np.concatenate(waiting))
    return slides, pca


def _level(level: str, points: np.ndarray, cancers: np.ndarray, seeds: int) -> list[dict]:
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

    rows = []
    for method, cluster in (("k-means", _k_means), ("leiden", _leiden)):
        found = [cluster(points, len(set(cancers)), seed) for seed in range(seeds)]
        ami = [adjusted_mutual_info_score(cancers, labels) for labels in found]
        ari = [adjusted_rand_score(cancers, labels) for labels in found]
        rows.append(
            {
                "level": level,
                "method": method,
                "items": len(points),
                "cancers": len(set(cancers)),
                "clusters": float(np.mean([len(set(labels)) for labels in found])),
                "ami": float(np.mean(ami)),
                "ami_sd": float(np.std(ami)),
                "ari": float(np.mean(ari)),
                "ari_sd": float(np.std(ari)),
            }
        )
    return rows


def _k_means(points: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # fewer distinct points than clusters are an answer too
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(num_clusters, n_init=3, random_state=seed).fit_predict(points)


def _leiden(points: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Labels from the graph of nearest neighbors; the number of clusters is the method's own."""
    import anndata
    import scanpy
    from sklearn.neighbors import KNeighborsTransformer

    data = anndata.AnnData(points)
    near = min(NEIGHBORS, len(points) - 1)
    # Exact neighbors at every size: from 4,096 points on scanpy would take approximate ones.
    exact = KNeighborsTransformer(n_neighbors=near, algorithm="brute")
    scanpy.pp.neighbors(data, n_neighbors=near, use_rep="X", random_state=seed, transformer=exact)
    scanpy.tl.leiden(
        data, flavor="igraph", n_iterations=2, directed=False, random_state=seed, resolution=1.0
    )
    return data.obs["leiden"].to_numpy()


CLUSTER_TITLE = "Clusters against cancer types"
CLUSTER_COLUMNS = ["clustered", "method", "items", "cancers", "clusters", "AMI", "ARI"]
CLUSTER_NOTE = (
    "Mean and deviation over 5 seeds. Slides by their mean prediction; k-means with as many "
    "clusters as cancers; Leiden on 15 nearest neighbors at resolution 1; both on 50 principal "
    "components of all genes."
)
CLUSTER_TEXT = (
    "Predicted expression over all genes is clustered without labels and the clusters compared "
    "with the cancer types: 1 is the same partition, 0 what chance gives. AMI is the safer figure "
    "where cancers have unequal numbers of slides. High values do not prove good expression: "
    "cancers often come from different laboratories, a model that is told the cancer type "
    "can write it into its prediction, and the models of different folds differ by themselves."
)


def cluster_section(table: pd.DataFrame | None) -> Section:
    """AMI and ARI, or why there are none."""
    if table is None:
        text = (
            "Cannot be scored: all test slides with a cancer code are of one cancer, and clusters "
            "can only be compared with at least two."
        )
        return Section(CLUSTER_TITLE, text)
    shown = Table("", CLUSTER_COLUMNS, _shown(table), CLUSTER_NOTE, text_columns=2)
    return Section(CLUSTER_TITLE, CLUSTER_TEXT, [shown])


def cluster_comparison(results: Mapping[str, Evaluation], folder: Path) -> list[Section]:
    """AMI and ARI of several runs, in clusters.csv of a folder and a section; or why not."""
    tables = {name: r.clusters for name, r in results.items() if len(r.clusters)}
    if not tables:
        return [cluster_section(None)]
    whole = pd.concat([table.assign(run=name) for name, table in tables.items()])
    whole.to_csv(folder / "clusters.csv", index=False, float_format="%.6g")
    rows = [[name, *row] for name, table in tables.items() for row in _shown(table)]
    shown = Table("", ["run", *CLUSTER_COLUMNS], rows, CLUSTER_NOTE, text_columns=3)
    return [Section(CLUSTER_TITLE, CLUSTER_TEXT, [shown])]


def _shown(table: pd.DataFrame) -> list[list]:
    return [
        [row.level, row.method, row.items, row.cancers, number(row.clusters, 1),
         f"{number(row.ami)} ± {number(row.ami_sd)}", f"{number(row.ari)} ± {number(row.ari_sd)}"]
        for row in table.itertuples()
    ]  # fmt: skip
