"""The page over several slides."""

import json
from urllib.parse import unquote

from histokit.maps.index import write_index


def test_every_slide_is_listed_with_its_page_and_words(tmp_path):
    for name in ("S 1", "S<2>"):
        page = tmp_path / name / "page" / "index.html"
        page.parent.mkdir(parents=True)
        page.touch()
        record = {"patches": 1234, "genes": 5, "said": ["Looks <odd>."]}
        (tmp_path / name / "prediction.json").write_text(json.dumps(record))
    html = write_index(tmp_path, tmp_path / "data" / "thumbnails", ["S 1", "S<2>"]).read_text()
    assert "1,234 patches, 5 genes" in html
    assert 'src="data/thumbnails/S%201.jpg"' in html
    assert "Looks &lt;odd&gt;." in html
    assert "S<2>" not in html
    links = [unquote(part.split('"')[0]) for part in html.split('href="')[1:]]
    assert [(tmp_path / link).is_file() for link in links] == [True, True]
