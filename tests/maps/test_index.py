"""The page over several slides."""

import json
from urllib.parse import unquote

from histokit.maps.index import write_index


def finished(out, name, *files):
    """A slide's folder as run_predict.py leaves it."""
    folder = out / name
    for file in (*files, "manifest.json"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    record = {"patches": 1234, "genes": 5, "said": ["Looks <odd>."]}
    (folder / "prediction.json").write_text(json.dumps(record))


def test_every_slide_is_listed_with_its_page_and_words(tmp_path):
    for name in ("S 1", "S<2>"):
        finished(tmp_path, name, "page/index.html", "thumbnail.jpg")
    html = write_index(tmp_path).read_text()
    assert "1,234 patches, 5 genes" in html
    assert 'src="S%201/thumbnail.jpg"' in html
    assert "Looks &lt;odd&gt;." in html
    assert "S<2>" not in html
    links = [unquote(part.split('"')[0]) for part in html.split('href="')[1:]]
    assert links == ["S 1/page/index.html", "S<2>/page/index.html"]


def test_what_is_not_there_is_not_linked(tmp_path):
    finished(tmp_path, "bare")
    html = write_index(tmp_path).read_text()
    assert "<h2>bare" in html.replace("\n", "").replace(" ", "")
    assert "<a" not in html
    assert "<img" not in html


def test_folders_that_are_no_finished_map_are_left_out(tmp_path):
    finished(tmp_path, "A1")
    finished(tmp_path, ".A2.host-1.tmp")
    finished(tmp_path, "other")
    (tmp_path / "other" / "manifest.json").unlink()
    (tmp_path / "data").mkdir()
    assert write_index(tmp_path).read_text().count("<li>") == 1
