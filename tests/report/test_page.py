import base64
import re

import numpy as np
import pandas as pd
import pytest
from chromium import Chromium, executable
from PIL import Image

from histokit.evaluate.intervals import row_intervals
from histokit.evaluate.summary import pick, summarize
from histokit.evaluate.tables import result_table, text_table
from histokit.evaluate.verdict import GLOSSARY, verdict, with_interval
from histokit.report.page import Page, Picture, Section, Table, number, render


def slides(**columns):
    frame = pd.DataFrame(
        {
            "fold": "0",
            "slide_id": ["A", "B", "C"],
            "cancer": "IDC",
            "patient": ["p", "p", "q"],
            "patient_seen": ["yes", "yes", "no"],
            "cancer_known": "yes",
            "below_floor": False,
            "hvgs": 50,
            "pcc_hvg": [0.3, 0.5, 0.1],
            "pcc_all": [0.1, 0.2, 0.0],
            "mse": [0.3, 0.3, 0.6],
            "target_variance": 0.35,
        }
    )
    return frame.assign(**columns)


def said(frame, transform="counts10k-log1p"):
    return " ".join(verdict(frame, summarize(frame), transform))


def test_verdict_gives_the_answer_and_separates_new_patients():
    text = said(slides())
    assert text.startswith(
        "On 3 test slides of 2 patients, measured and predicted expression of the 50 most variable "
        "genes correlate with a mean PCC of 0.25 (no interval: 2 patients cannot show how others "
        "vary). "
    )
    assert "about 6% of how such a gene varies" in text
    assert "Mean over the slides of a patient, then over patients." in text
    assert "0.10 on 1 slide of new patients and 0.40 on 2 slides of patients" in text
    assert "Only the first tells" in text
    assert "0.450 on the scale log(1 + counts per 10,000)" in text
    assert "would have 0.350" in text


@pytest.mark.parametrize(
    ("patients", "over"),
    [
        (["p", "q", "r"], "95 % interval over 3 patients"),
        (["", "", ""], "95 % interval over 3 slides of unknown patients"),
        (["p", "p", "p"], "95 % interval over 3 sections of one patient"),
        (["p", "q", ""], "95 % interval over 3 patients, slides where unknown"),
    ],
)
def test_verdict_says_what_its_interval_is_over(patients, over):
    text = said(slides(patient=patients))
    low, high = row_intervals(np.array([[0.3, 0.5, 0.1]]), np.arange(3), (-1, 1))
    shown = with_interval(0.3, float(low[0]), float(high[0]))
    assert f"a mean PCC of {shown} ({over})" in text


def test_a_slide_of_two_spots_is_named_and_in_no_average():
    frame = slides(patient=["p", "q", "r"], below_floor=[False, False, True])
    text = said(frame)
    assert text.startswith("On 2 test slides of 2 patients")
    assert "mean PCC of 0.40 (no interval" in text
    assert (
        "1 slide has fewer than 20 spots, over which a correlation is mostly chance, and is listed "
        "but in no average: C." in text
    )
    assert "0.300 on the scale" in text
    summary = summarize(frame)
    assert pick(summary, "pcc_hvg")["slides_below_floor"] == 1
    assert pick(summary, "pcc_hvg", "cancer", "IDC")["value"] == pytest.approx(0.4)
    shown = text_table(result_table(summary, 50))
    assert "none: 2 patients" in shown
    table = result_table(summary, 50)
    assert "1 slide of fewer than 20 spots left out" in table.note
    nothing = said(slides(below_floor=True))
    assert nothing.startswith("No test slide has the 20 spots that an average takes.")
    assert "A, B, C." in nothing


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ("yes", "Such scores flatter"),
        ("no", "this is what to expect on a new patient"),
        ("unknown", "names no patients"),
    ],
)
def test_verdict_says_what_the_patients_mean(seen, expected):
    assert expected in said(slides(patient_seen=seen))


def test_verdict_of_undefined_and_of_raw_counts():
    assert "have no correlation with their prediction" in said(slides(pcc_hvg=np.nan))
    assert "explains nothing of" in said(slides(pcc_hvg=-0.1))
    assert "molecules were caught" in said(slides(), "log1p")
    assert "explains" not in said(slides(), "log1p")
    assert "molecules were caught" not in said(slides())


def test_numbers_for_people():
    assert number(0.314159) == "0.31"
    assert number(-0.5, 1) == "\u22120.5"
    assert number(float("nan")) == "\u2013"
    assert number(-0.004) == number(-0.0) == "0.00"
    assert number(-0.005001) == "\u22120.01"
    assert with_interval(-0.001, -0.2, 0.1) == "0.00 [\u22120.20, 0.10]"
    assert number(np.int64(12345)) == "12,345"
    assert number("text") == "text"
    assert with_interval(0.2, float("nan"), float("nan")) == "0.20"
    assert with_interval(0.2, 0.1, 0.3) == "0.20 [0.10, 0.30]"


def test_report_is_one_file_with_everything_in_it(tmp_path):
    color = (1, 200, 3)
    Image.new("RGB", (30, 20), color).save(tmp_path / "p.png")
    noise = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    sections = [
        Section(
            "Results",
            "words",
            [Table("scores", ["slide", "PCC"], [["<b>S1</b>", 0.25]], "a note")],
            [Picture(tmp_path / "p.png", "a < b"), Picture(tmp_path / "photo.png", "photo")],
        )
    ]
    path = tmp_path / "report.html"
    configuration = {"a": {"b": [1, 2]}, "c": None}
    page = Page("Title & all", "subtitle", ["Well."], sections, configuration, GLOSSARY)
    render(path, page)
    html = path.read_text()
    assert "<script" not in html
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    assert "url(" not in html
    assert "&lt;b&gt;S1&lt;/b&gt;" in html
    assert "<b>S1" not in html
    assert "a &lt; b" in html
    assert "Title &amp; all" in html
    assert "0.25" in html
    assert re.search(r"<td>a\.b</td><td>1, 2</td>", html)
    kinds = re.findall(r"data:image/(\w+);base64,([A-Za-z0-9+/=]+)", html)
    assert [kind for kind, _ in kinds] == ["png", "jpeg"]
    (tmp_path / "back.png").write_bytes(base64.b64decode(kinds[0][1]))
    assert Image.open(tmp_path / "back.png").getpixel((3, 3)) == color
    assert "must not be compared" in html
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_a_table_called_as_its_section_repeats_no_heading(tmp_path):
    tables = [Table(title, ["slide"], [["S1"]]) for title in ("Scores", "By slide")]
    page = Page("Title", "subtitle", [], [Section("Scores", "", tables)], {}, [])
    render(tmp_path / "report.html", page)
    html = (tmp_path / "report.html").read_text()
    assert re.findall(r"<h([23])>(.*)</h", html) == [
        ("2", "Scores"),
        ("3", "By slide"),
        ("2", "What the numbers mean"),
        ("2", "Configuration"),
    ]


@pytest.mark.skipif(executable() is None, reason="no Chromium")
def test_wide_tables_fit_a_page_of_1200_pixels(tmp_path):
    figures = ["0.31 [0.25, 0.36]", "0.12 [\u22120.08, 0.17]", "0.203 [0.181, 0.224]", "0.211"]
    heads = ["PCC, top 50 HVGs", "PCC, all genes", "MSE", "target variance"]
    run = ["patients-new, shuffled spots", "ridge-low-rank", "efficientnet-lite0-stages-8views"]
    genes = ", ".join(f"GENE{i} (ENSG{i:011d})" for i in range(8))
    tables = [
        Table("", ["", "slides", *heads, "by"], [["all", 12, *figures, "6 patients, or slides"]]),
        Table("", ["run", "model", "encoder", *heads, "to best"], [[*run, *figures, figures[1]]],
              text_columns=3),
        Table("", ["prototype", "raises", "gate"], [["prototype 3", genes, 0.5]], text_columns=2),
    ]  # fmt: skip
    render(tmp_path / "report.html", Page("Title", "", [], [Section("A", "", tables)], {}, []))
    browser = Chromium()
    try:
        browser.open(tmp_path / "report.html", width=1200)
        boxes = "[...document.querySelectorAll('.scroll')]"
        assert browser.run(f"{boxes}.every(box => box.scrollWidth <= box.clientWidth)")
    finally:
        browser.close()
