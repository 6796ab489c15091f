"""One self-contained HTML file that says how good a prediction is, and what each number means."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from PIL import Image

from histokit.core.files import atomic_path

NONE = "\u2013"  # a dash where there is no number
# A picture over this many bytes is tissue; as JPEG it takes a fifth of the room.
_PHOTO = 400_000


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        columns: headings.
        rows: cells are text, or numbers that are shown with two decimals.
        note: small print under it.
        text_columns: so many columns from the left are words and not figures.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence]
    note: str = ""
    text_columns: int = 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a report, the sentence under it, and its width in percent of the page."""

    path: Path
    caption: str
    width: int = 100


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with text, tables and pictures under it."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def number(value, digits: int = 2) -> str:
    """A number for people: ``0.31``, ``1,234``, and a dash where there is none."""
    if isinstance(value, float):
        text = NONE if math.isnan(value) else f"{value:z.{digits}f}"  # z: no minus before 0.00
        return text.replace("-", "\u2212")
    return f"{value:,}" if isinstance(value, numbers.Integral) else str(value)


def plural(count: int, noun: str) -> str:
    """``1 slide``, ``2 slides``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclasses.dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: its heading.
        subtitle: one line under it.
        verdict: the answer, a sentence or two each.
        sections: tables and pictures in order.
        configuration: name and value of every option and version.
        glossary: terms and what they mean.
    """

    title: str
    subtitle: str
    verdict: Sequence[str]
    sections: Sequence[Section]
    configuration: Mapping[str, object]
    glossary: Sequence[tuple[str, str]] = ()


def templates(package: str) -> jinja2.Environment:
    """Templates of a package, in which text is escaped and a name that is not given an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(path: Path, page: Page) -> None:
    """Write a report as one HTML file: styles and pictures inside, no script, nothing fetched."""
    environment = templates("histokit.report")
    environment.filters |= {"number": number, "data_uri": _data_uri}
    html = environment.get_template("report.html.j2").render(
        vars(page) | {"configuration": flatten(page.configuration)}
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def flatten(value: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested names joined by dots, values as text."""
    flat = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        elif isinstance(inner, (list, tuple)):
            flat[f"{prefix}{key}"] = ", ".join(map(str, inner))
        else:
            flat[f"{prefix}{key}"] = NONE if inner is None else str(inner)
    return flat


def _data_uri(path: Path) -> str:
    data, kind = Path(path).read_bytes(), "png"
    if len(data) > _PHOTO:
        buffer, kind = io.BytesIO(), "jpeg"
        Image.open(path).convert("RGB").save(buffer, "JPEG", quality=88)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
