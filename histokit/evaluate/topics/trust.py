"""The part of a report that says how far its figures can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from histokit.core.tables import read_table
from histokit.data.views import LABELS, SHUFFLED, draw_of
from histokit.evaluate.controls import MEANING
from histokit.evaluate.protocols import PROTOCOLS, Protocol, score_protocol
from histokit.evaluate.published import beside_published
from histokit.evaluate.runs import Run
from histokit.evaluate.summary import averaged, compare
from histokit.evaluate.tables import comparison_rows
from histokit.evaluate.verdict import no_interval, with_interval
from histokit.report.page import NONE, Section, Table, number, plural

_POOLS = 12  # rows by pool in a report; protocol.csv has all
_FINDINGS = 30


def control_parts(
    name: str, result: Mapping, controls: Mapping[str, Mapping]
) -> tuple[list[str], Table]:
    """Sentences on what a run's controls say, and the table that holds them beside it.

    Args:
        name: of the run.
        result: of ``histokit.evaluate.run.evaluate``.
        controls: results of its controls, by name; not empty.
    """
    table = compare({name: result, **controls})
    rows = table[table["by"] == "all"].reset_index(drop=True)
    full = comparison_rows(rows, int(result["slides"]["hvgs"].max()), "")
    names = ["this run", *(controls[name]["control"] for name in rows["run"].iloc[1:])]
    draws = [NONE, *(_draws(controls[name]["slides"]) for name in rows["run"].iloc[1:])]
    cells = [[first, *row[3:], drawn]
             for first, row, drawn in zip(names, full.rows, draws, strict=True)]  # fmt: skip
    columns = ["", *full.columns[3:-1], "to this run", "PCC of the draws"]
    shown = Table("", columns, cells, full.note)
    own = rows["pcc_hvg"].iloc[0]
    sentences = []
    for row in rows.iloc[1:].to_dict("records"):
        if math.isnan(row["pcc_hvg"]) or math.isnan(own):
            continue
        figure = with_interval(row["pcc_hvg"], row["pcc_hvg_low"], row["pcc_hvg_high"])
        if controls[row["run"]]["control"] == LABELS[SHUFFLED]:
            drawn = _draws(controls[row["run"]]["slides"])
            said = f"Trained on shuffled spots, the same model has a mean PCC of {figure}"
            said += "" if drawn == NONE else f" ({drawn})"
            end = ": that is chance, and the run is above it."
            unclear = ": these slides do not tell the run from chance."
        else:
            said = f"A line on each spot's library size, without any image, has {figure}"
            end = ", less than the run."
            unclear = ": so much of the PCC may be how many molecules were caught."
        if math.isnan(row["difference_low"]):
            end = unclear = (
                f"; no interval of the difference: {no_interval(row['unit'], row['units'])}."
            )
        sentences.append(said + (end if row["difference_high"] < 0 else unclear))
    return sentences, shown


def _draws(slides: pd.DataFrame) -> str:
    """Range over the draws of a control of the mean PCC over slides; a dash with a single one."""
    draw = slides["fold"].map(draw_of)
    means = averaged(slides)["pcc_hvg"].groupby(draw).mean().dropna()
    if draw.nunique() < 2 or means.empty:
        return NONE
    return f"{draw.nunique()} draws from {number(means.min())} to {number(means.max())}"


def control_section(table: Table) -> Section:
    """The table of controls with what they are."""
    return Section("Against controls", MEANING, [table])


def audit_parts(run: Run) -> tuple[list[str], list[Section]]:
    """A sentence on errors of the audit that training wrote, and the section of its findings."""
    folder = run.folder / "audit"
    if not (folder / "audit.json").is_file():
        return [], []
    columns = ("severity", "where", "finding")
    findings = read_table(folder / "findings.csv", columns, "table of the audit")
    slides = read_table(folder / "slides.csv", ("slide_id",), "table of the audit")
    figures = slides.columns.drop("slide_id")
    slides[figures] = slides[figures].apply(pd.to_numeric, errors="coerce")
    errors = findings[findings["severity"] == "error"]
    said = []
    if len(errors):
        first = errors.iloc[0]
        found = f"{plural(len(errors), 'error')}{', such as' if len(errors) > 1 else ''}"
        said = [f"The audit found {found}: in {first['where']}, {first['finding']}."]
    order = findings["severity"].map({"error": 0, "warning": 1, "note": 2})
    rows = findings.loc[order.sort_values(kind="stable").index, ["severity", "where", "finding"]]
    note = f"The gravest {_FINDINGS} of {len(rows)}; audit/findings.csv has all."
    tables = [
        Table(
            "",
            ["", "where", "finding"],
            rows.head(_FINDINGS).to_numpy().tolist(),
            note if len(rows) > _FINDINGS else "",
            3,
        ),
        _audited(slides),
    ]
    text = (
        "Errors make scores untrue; warnings may; notes are worth knowing. Library size is the "
        "number of molecules caught at a spot; zeros are those among measured targets; a cosine "
        "near 1 means that all patches of a slide look the same to the encoder."
    )
    return said, [Section("What to distrust", text, tables if len(rows) else tables[1:])]


def _audited(slides: pd.DataFrame) -> Table:
    columns = ["slide", "spots", "dropped", "panel measured", "zeros", "constant genes"]
    columns += ["library: least, median, most", "um per px", "pitch, um", "cosine", "repeated"]
    rows = []
    for s in slides.head(_FINDINGS).itertuples():
        dropped = NONE if math.isnan(s.spots_dropped) else int(s.spots_dropped)
        row = [s.slide_id, int(s.spots), dropped]
        if s.features_bad:
            rows.append(row + [NONE] * (len(columns) - len(row)))
            continue
        library = f"{s.library_min:,.0f}, {s.library_median:,.0f}, {s.library_max:,.0f}"
        row += [f"{s.panel_measured:,.0f} of {s.panel:,}", f"{s.zeros:.0%}", int(s.genes_constant)]
        row += [library, number(float(s.mpp), 3), number(float(s.pitch_um), 0)]
        rows.append([*row, float(s.features_cosine), f"{s.features_duplicated:.0%}"])
    more = len(slides) - len(rows)
    note = f"{plural(more, 'more slide')} in audit/slides.csv." if more else ""
    return Table("Slides", columns, rows, note)


def protocol_parts(
    run: Run, cohort, name: str, listed: list[str] | None, task: str | None, folder: Path
) -> tuple[pd.DataFrame, list[Section]]:
    """Figures of a run under a published protocol and beside published ones, written and shown.

    Args:
        run: the run.
        cohort: its slides.
        name: of the protocol; ``histokit`` has its figures elsewhere.
        listed: a gene list in place of the protocol's rule.
        task: whose published rows to set beside, or None.
        folder: takes protocol.csv and published.csv.
    """
    protocol, figures, sections = PROTOCOLS[name], pd.DataFrame(), []
    if name != "histokit":
        figures = score_protocol(run, cohort, protocol, listed)
        figures.to_csv(folder / "protocol.csv", index=False)
        sections.append(_protocol_section(protocol, figures))
    if task is not None:
        rows = beside_published(run, task, name, figures, listed is not None)
        rows.to_csv(folder / "published.csv", index=False)
        sections.append(_published_section(task, rows))
    return figures, sections


def _protocol_section(protocol: Protocol, figures: pd.DataFrame) -> Section:
    columns = ["figure", "of", "value", "deviation", "genes", "undefined", "pools of spots"]
    keys = ["figure", "group", "value", "deviation", "genes", "genes_undefined", "pools"]
    whole = figures["group"] == "all"
    parts = figures[~whole]
    rows = pd.concat([figures[whole], parts if len(parts) <= _POOLS else parts.iloc[:0]])
    cells = [[*row[:2], *(number(float(v), 4) for v in row[2:4]), *row[4:]]
             for row in rows[keys].astype(object).to_numpy().tolist()]  # fmt: skip
    first = figures.iloc[0]
    knobs = [
        ["target", first["target"]],
        ["genes", first["gene_rule"]],
        ["spots behind one correlation", f"all of a {protocol.pooling}"],
        ["average", protocol.average],
        [
            "undefined correlations",
            "left out and counted" if protocol.nan == "skip" else "spoil the mean, as there",
        ],
        ["regression of the protocol", protocol.regressor],
        ["regression of this run", first["regressor"]],
        ["source", protocol.source],
    ]
    return Section(
        f"Under the protocol {protocol.name}",
        f"{protocol.meaning} {protocol.warning}",
        [
            Table("", columns, cells, text_columns=2),
            Table("Its choices", ["choice", "here"], knobs, "", 2),
        ],
    )


def _published_section(task: str, rows: pd.DataFrame) -> Section:
    rows = rows.sort_values(["comparable", "metric", "value"], ascending=[False, True, False])
    cells = [
        [r.model, r.encoder or NONE, r.source, r.note, r.metric, number(r.value, 4),
         number(r.run, 4), "yes" if r.comparable else "no"]
        for r in rows.itertuples()
    ]  # fmt: skip
    reasons = "; ".join(dict.fromkeys(r for row in rows["reason"] if row for r in row.split("; ")))
    columns = ["model", "encoder", "source", "note", "figure"]
    table = Table("", [*columns, "published", "this run", "comparable"], cells, "", 5)
    said = f"What sets them apart from this run: {reasons}; published.csv says which by row."
    text = f"Figures that papers print for {task}. {said if reasons else ''}".strip()
    return Section(f"Beside published figures: {task}", text, [table])


def protocol_comparison(results: Mapping[str, Mapping], name: str, folder: Path) -> list[Section]:
    """The figures of several runs under one published protocol, in protocol.csv and a section."""
    protocol = PROTOCOLS[name]
    tables = {run: r["protocol"] for run, r in results.items() if len(r["protocol"])}
    if not tables:
        return []
    whole = pd.concat(
        [t[t["group"] == "all"].assign(run=run) for run, t in tables.items()], ignore_index=True
    )
    whole.to_csv(folder / "protocol.csv", index=False)
    wide = whole.pivot(index="run", columns="figure", values="value").loc[list(tables)]
    wide = wide[list(dict.fromkeys(whole["figure"]))]
    rows = [[run, *(number(float(v), 4) for v in row)] for run, row in wide.iterrows()]
    title = f"Under the protocol {name}"
    text = f"{protocol.meaning} {protocol.warning}"
    return [Section(title, text, [Table(title, ["run", *wide.columns], rows)])]
