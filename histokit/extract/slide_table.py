"""slides.csv and the other tables of an extraction, a row a slide."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from histokit.core.files import atomic_path, read_json, turn, write_json
from histokit.core.tables import read_table
from histokit.data.sources import SlideSource


def note_listed(out: Path, source: str, slides: list[SlideSource], whole: bool) -> None:
    """Remember which slides a source lists, and take out of slides.csv what it lists no more.

    Args:
        out: folder of the extraction.
        source: as given.
        slides: those that are extracted now.
        whole: whether they are all that the source has.
    """
    place, path = str(Path(source).resolve()), out / "sources.json"
    names = [slide.slide_id for slide in slides]
    table = out / "slides.csv"
    with turn(out):
        known = read_json(path) if path.is_file() else {}
        known[place] = names if whole else list(dict.fromkeys([*known.get(place, []), *names]))
        write_json(path, known)
        rows = table_rows(table)
        gone = [
            name
            for name, row in rows.items()
            if whole and row.get("source") == place and name not in known[place]
        ]
        if not gone:
            return
        kept = [rows[name] for name in sorted(rows) if name not in gone]
        with atomic_path(table) as temporary:
            pd.DataFrame(kept, columns=list(rows[gone[0]])).to_csv(temporary, index=False)
    print(
        f"{len(gone)} slides that {source} lists no more are taken out of {table}, such as "
        f"{gone[0]}; their features stay in the folder"
    )


def table_rows(path: Path) -> dict[str, dict]:
    """Rows of a table by slide_id; none where the table is absent."""
    if not path.is_file():
        return {}
    table = read_table(path, ("slide_id",), "table of an extraction")
    return {row["slide_id"]: row for row in table.to_dict("records")}


def upsert_row(path: Path, row: dict) -> None:
    """Write one slide's row into a table, over the values that it had; sorted by slide_id.

    Ranks that extract together take turns.
    """
    new = {key: "" if value is None else value for key, value in row.items()}
    with turn(path.parent):
        rows = table_rows(path)
        rows[row["slide_id"]] = rows.get(row["slide_id"], {}) | new
        with atomic_path(path) as temporary:
            pd.DataFrame([rows[name] for name in sorted(rows)]).to_csv(temporary, index=False)
