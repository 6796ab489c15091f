"""The notebook runs from its first cell to its last."""

from pathlib import Path

import pytest

import histokit

NOTEBOOK = Path(histokit.__file__).parents[1] / "docs" / "new_slide.ipynb"


def output(cell) -> str:
    """What a cell printed, and its value."""
    texts = [o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell["outputs"]]
    return "".join(texts)


def test_the_notebook_goes_from_a_slide_to_its_map(monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.chdir(NOTEBOOK.parent)
    notebook = nbformat.read(NOTEBOOK, 4)
    stored = [output(cell) for cell in notebook.cells if cell["cell_type"] == "code"]
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    made = [output(cell) for cell in notebook.cells if cell["cell_type"] == "code"]
    shown, counted = (
        int(next(text for text in texts if "genes are trusted" in text).split()[0])
        for texts in (stored, made)
    )
    assert counted > 50
    assert shown == pytest.approx(counted, rel=0.05)  # what it shows is what it computes
    assert not [text for text in stored if "/tmp" in text or "Warning" in text]
