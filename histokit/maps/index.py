"""One page that lists the maps of several slides."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from histokit.core.files import atomic_path, read_json
from histokit.evaluate.folders import MANIFEST
from histokit.maps.writing import RECORD, THUMBNAIL
from histokit.report.page import templates

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Maps of predicted expression</title>
<style>
body { font: 16px/1.5 "DejaVu Sans", "Segoe UI", Helvetica, Arial, sans-serif; color: #1f2328;
  max-width: 1100px; margin: 24px auto; padding: 0 16px; }
li { display: flex; gap: 20px; border-top: 1px solid #d0d7de; padding: 16px 0; }
ul { list-style: none; padding: 0; }
img { width: 220px; height: 160px; object-fit: contain; background: #f6f8fa; }
h2 { margin: 0 0 4px; font-size: 19px; }
p { margin: 0 0 6px; color: #57606a; }
</style>
<h1>Maps of predicted expression</h1>
<ul>
{% for slide in slides %}
<li>
  {% if slide.picture %}<img src="{{ slide.picture }}" alt="tissue of {{ slide.name }}">{% endif %}
  <div>
    <h2>{% if slide.page %}<a href="{{ slide.page }}">{{ slide.name }}</a>
      {% else %}{{ slide.name }}{% endif %}</h2>
    <p>{{ slide.patches }} patches, {{ slide.genes }} genes</p>
    {% for sentence in slide.said %}<p>{{ sentence }}</p>{% endfor %}
  </div>
</li>
{% endfor %}
</ul>
</html>
"""


def write_index(out: Path) -> Path:
    """Write ``index.html`` over all folders of slides that lie beside it, sorted by name.

    Args:
        out: the folder that holds a folder for each slide, of this and of earlier calls.

    Returns:
        The page.
    """
    slides = [_entry(folder) for folder in _mapped(out)]
    html = templates("histokit.maps").from_string(_TEMPLATE).render(slides=slides)
    with atomic_path(out / "index.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out / "index.html"


def _mapped(out: Path) -> list[Path]:
    """Finished folders of slides; one that is being written has a dot before its name."""
    records = sorted(out.glob(f"[!.]*/{RECORD}"))
    return [record.parent for record in records if (record.parent / MANIFEST).is_file()]


def _entry(folder: Path) -> dict:
    """What the page says of a slide."""
    record = read_json(folder / RECORD)

    def link(name: str) -> str:
        return quote(f"{folder.name}/{name}") if (folder / name).is_file() else ""

    return {
        "name": folder.name,
        "page": link("page/index.html"),
        "picture": link(THUMBNAIL),
        "patches": f"{record['patches']:,}",
        "genes": f"{record['genes']:,}",
        "said": record["said"],
    }
