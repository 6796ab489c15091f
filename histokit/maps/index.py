"""One page that lists the maps of several slides."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from histokit.core.files import atomic_path, read_json
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
  <img src="{{ slide.picture }}" alt="tissue of {{ slide.name }}">
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


def write_index(out: Path, thumbnails: Path, slide_ids: list[str]) -> Path:
    """Write ``index.html`` over the folders of slides that lie beside it.

    Args:
        out: the folder that holds a folder for each slide.
        thumbnails: the folder of the slides' pictures.
        slide_ids: the slides, in their order.

    Returns:
        The page.
    """
    slides = []
    for slide_id in slide_ids:
        record = read_json(out / slide_id / "prediction.json")
        page = out / slide_id / "page" / "index.html"
        picture = os.path.relpath(thumbnails / f"{slide_id}.jpg", out)
        slides.append(
            {
                "name": slide_id,
                "page": quote(f"{slide_id}/page/index.html") if page.is_file() else "",
                "picture": quote(picture),
                "patches": f"{record['patches']:,}",
                "genes": f"{record['genes']:,}",
                "said": record["said"],
            }
        )
    html = templates("histokit.maps").from_string(_TEMPLATE).render(slides=slides)
    with atomic_path(out / "index.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out / "index.html"
