"""The figures of a run under a protocol, collected slide by slide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch

from histokit.core.distributed import Team
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.gene_lists import GeneLists
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.protocol_genes import choose_genes
from histokit.evaluate.protocols import Protocol, check_protocol
from histokit.evaluate.runs import Fold, Run
from histokit.evaluate.views import SlideView, Views
from histokit.models.registry import MODELS
from histokit.ops import StreamingPearson

_SPOTS = 1024


@dataclasses.dataclass
class Pool:
    """Moments of one pool of spots, as they grow; ``chosen`` as of ``Unit``, missing (G,) bool."""

    moments: StreamingPearson
    missing: np.ndarray
    chosen: np.ndarray
    cancer: str


@dataclasses.dataclass(frozen=True)
class Unit:
    """Correlations of one pool of spots.

    Attributes:
        name: the name of the slide, fold or cancer.
        fold: the fold of a slide, else empty.
        cancer: the cancer of its slides.
        chosen: (G,) bool, genes of the protocol's list.
        pcc: (G,), NaN where undefined.
        mse: (G,), NaN where not measured.
        variance: (G,) of the target over the pool's spots, NaN where ``mse`` is: the error of a
            constant that knew each gene's mean there.
    """

    name: str
    fold: str
    cancer: str
    chosen: np.ndarray
    pcc: np.ndarray
    mse: np.ndarray
    variance: np.ndarray


class ProtocolScores:
    """The correlations of a run under a protocol, collected slide by slide.

    Args:
        run: a finished run.
        protocol: not ``histokit``, whose figures ``histokit.evaluate.summary.summarize`` gives.
        lists: the genes that are scored.
        rule: how they were chosen, in words; empty where the protocol's own rule was followed.

    Raises:
        InputError: as ``check_protocol``.
    """

    def __init__(self, run: Run, protocol: Protocol, lists: GeneLists, rule: str = ""):
        check_protocol(run, protocol)
        self.run, self.protocol, self.lists, self.rule = run, protocol, lists, rule
        self.pools: dict[tuple[str, str], Pool] = {}

    def add(self, view: SlideView) -> None:
        """Add a slide's spots to their pool."""
        fold, slide, protocol = view.fold, view.slide, self.protocol
        names = {"slide": slide.slide_id, "fold": fold.name, "cancer": slide.cancer}
        chosen = _positions(fold, protocol, self.lists.of(slide.cancer))
        if protocol.name == "histoprism":
            columns = np.arange(len(fold.genes))
            flags = np.isin(columns, chosen)
        else:
            columns, flags = chosen, np.ones(len(chosen), bool)
        # a slide tested in several folds counts once in each
        key = (fold.name if protocol.pooling == "slide" else "", names[protocol.pooling])
        if key not in self.pools:
            missing = np.zeros(len(columns), bool)
            moments = StreamingPearson(len(columns))
            self.pools[key] = Pool(moments, missing, flags, slide.cancer)
        pool = self.pools[key]
        pool.missing |= ~(slide.measured & fold.learned)[columns]
        target = view.target[:, columns]
        hidden, outputs = view.prediction.hidden, view.prediction.outputs[torch.from_numpy(columns)]
        for start in range(0, len(hidden), _SPOTS):
            rows = slice(start, start + _SPOTS)
            pool.moments.update(outputs(hidden[rows]), torch.from_numpy(target[rows].toarray()))

    def gather(self, team: Team) -> None:
        """Join the pools of all ranks, in the order of the run's folds and slides."""
        if team.size == 1:
            return
        joined: dict[tuple[str, str], Pool] = {}
        for pools in team.gather(self.pools):
            for key, pool in pools.items():
                if key not in joined:
                    joined[key] = pool
                    continue
                joined[key].moments.merge(pool.moments)
                joined[key].missing |= pool.missing
        self.pools = dict(sorted(joined.items(), key=lambda item: self._place(item[0])))

    def _place(self, key: tuple[str, str]) -> int:
        """Where a pool's first slide stands among the run's test slides."""
        fold_name, name = key
        tests = [
            (fold.name, slide_id, fold.cancer(slide_id))
            for fold in self.run.folds
            for slide_id in fold.split.loc[fold.split["split"] == "test", "slide_id"]
        ]
        return next(
            i for i, (fold, slide_id, cancer) in enumerate(tests)
            if fold_name in ("", fold) and name in (fold, slide_id, cancer)
        )  # fmt: skip

    def table(self) -> pd.DataFrame:
        """One row a figure.

        figure, group (all, or the fold, slide or cancer), value, deviation, genes,
        genes_undefined, pools (how many pools of spots), and every knob.
        """
        units = []
        for (fold, name), pool in self.pools.items():
            moments = pool.moments
            found = (moments.compute(), moments.mse(), moments.target_variance())
            values = (np.where(pool.missing, np.nan, value[0].numpy()) for value in found)
            units.append(Unit(name, fold, pool.cancer, pool.chosen, *values))
        options = self.run.config["options"]
        knobs = self.protocol.knobs() | {"target": options["target"]}
        if self.rule:
            knobs["gene_rule"] = self.rule
        regressor = MODELS[options["model"]].regressor
        knobs |= {"model": options["model"], "regressor": regressor}
        columns = ["figure", "group", "value", "deviation", "genes", "genes_undefined", "pools"]
        return pd.DataFrame(_figures(self.protocol, units), columns=columns).assign(**knobs)


def score_protocol(
    run: Run, cohort: Cohort, protocol: Protocol, listed: list[str] | None = None
) -> pd.DataFrame:
    """The figures of a run under a protocol, as ``ProtocolScores.table``.

    Args:
        run: a finished run.
        cohort: its slides.
        protocol: not ``histokit``.
        listed: a published gene list in place of the protocol's rule on these slides.
    """
    given = GeneLists({"": listed}) if listed is not None else None
    lists = given or choose_genes(run, cohort, protocol.name)
    scores = ProtocolScores(run, protocol, lists, str(given or ""))
    for view in Views(run, cohort).of():
        scores.add(view)
    return scores.table()


def _positions(fold: Fold, protocol: Protocol, genes: list[str]) -> np.ndarray:
    """Columns of the model, in the order of the protocol's list."""
    wanted = pd.Index(genes)
    names = fold.genes[["gene", "gene_id", "symbol"]]
    places = np.full(len(wanted), -1)
    for column in names:
        known = pd.Index(names[column])
        first = pd.Series(np.arange(len(known)), index=known)[~known.duplicated()]
        places = np.where(places >= 0, places, first.reindex(wanted).fillna(-1).astype(int))
    if (places < 0).any():
        lost = wanted[places < 0]
        raise InputError(
            f"the model of fold {fold.name} does not predict {len(lost)} of the {len(wanted)} "
            f"genes that the protocol {protocol.name} scores, such as {lost[0]}; train with "
            "--panel union or a panel that holds them"
        )
    return places


def _figures(protocol: Protocol, units: list[Unit]) -> list[tuple]:
    if protocol.name == "stem-topk":
        return _top_figures(protocol, units)
    figures = {"pcc": lambda u: u.chosen}
    if protocol.name == "histoprism":
        figures = {"pcc-top50": lambda u: u.chosen, "pcc-all": lambda u: np.ones_like(u.chosen)}
    rows = []
    for figure, choose in figures.items():
        values = [_mean(u.pcc[choose(u)], protocol.nan) for u in units]
        genes = [int(choose(u).sum()) for u in units]
        undefined = [int(np.isnan(u.pcc[choose(u)]).sum()) for u in units]
        spread = float(np.std(values)) if protocol.pooling == "fold" else np.nan
        if protocol.name == "histoprism":
            by_cancer = _by_cancer(units, values)
            head = [("macro", mean_or_nan(by_cancer)), ("micro", mean_or_nan(values))]
        else:
            head = [("", float(np.mean(values)))]
        for suffix, value in head:
            name = f"{figure}-{suffix}" if suffix else figure
            rows.append((name, "all", value, spread, max(genes), sum(undefined), len(units)))
        for cancer, value in by_cancer.items() if protocol.name == "histoprism" else ():
            own = [i for i, u in enumerate(units) if u.cancer == cancer]
            most, lost = max(genes[i] for i in own), sum(undefined[i] for i in own)
            rows.append((f"{figure}-cancer", cancer, value, np.nan, most, lost, len(own)))
            slides = mean_or_nan([values[i] for i in own])
            rows.append((f"{figure}-cancer-micro", cancer, slides, np.nan, most, lost, len(own)))
        for unit, *row in zip(units, values, genes, undefined, strict=True):
            own = float(np.std(unit.pcc[choose(unit)])) if protocol.name == "stpath" else np.nan
            rows.append((figure, unit.name, row[0], own, *row[1:], 1))
    return rows + (_errors(protocol, units) if protocol.name == "hest-bench" else [])


def _errors(protocol: Protocol, units: list[Unit]) -> list[tuple]:
    """The MSE over the pools of spots, and the targets' variance by which to judge it."""
    rows = []
    for figure, own in (
        ("mse", [u.mse for u in units]),
        ("target_variance", [u.variance for u in units]),
    ):
        means = [_mean(values, protocol.nan) for values in own]
        spread = float(np.std(means)) if protocol.pooling == "fold" else np.nan
        lost = sum(int(np.isnan(values).sum()) for values in own)
        value = _mean(np.array(means), protocol.nan)
        rows.append((figure, "all", value, spread, len(own[0]), lost, len(units)))
    return rows


def _by_cancer(units: list[Unit], values: list[float]) -> pd.Series:
    """HistoPrism's figure of a cancer: mean over the slides of a split, then over the splits."""
    keys = [[u.cancer for u in units], [u.fold for u in units]]
    return pd.Series(values, dtype=float).groupby(keys).mean().groupby(level=0).mean()


def _top_figures(protocol: Protocol, units: list[Unit]) -> list[tuple]:
    rows = []
    for k in protocol.top:
        best = [np.sort(u.pcc[~np.isnan(u.pcc)])[::-1][:k] for u in units]
        values = [mean_or_nan(b) for b in best]
        undefined = [int(np.isnan(u.pcc).sum()) for u in units]
        head = (mean_or_nan(values), np.nan, max(map(len, best)), sum(undefined), len(units))
        rows.append((f"pcc-{k}", "all", *head))
        for unit, value, taken, lost in zip(units, values, best, undefined, strict=True):
            rows.append((f"pcc-{k}", unit.name, value, np.nan, len(taken), lost, 1))
    return rows + _errors(protocol, units)


def _mean(values: np.ndarray, nan: str) -> float:
    return float(np.mean(values)) if nan == "propagate" else mean_or_nan(values)
