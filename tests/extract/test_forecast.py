"""What an extraction says it will take, before most of it is done."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_slides import SIDE, counts_table, spots_table, write_cohort

import run_extract
from histokit.data.layouts import read_source
from histokit.extract import forecast
from histokit.extract.forecast import Measured, estimate
from histokit.extract.placing import count_patches
from histokit.extract.writer import write_picture

FIRST = Measured("a", 100, 2.0, 0.5, 4000, 50_000, 300_000, 10_000_000)


def test_an_estimate_is_the_sum_over_slides():
    whole = estimate(FIRST, [100, 300])
    assert (whole.slides, whole.patches) == (2, 400)
    assert whole.seconds == 2 * 2.0 + 400 * 0.5
    assert whole.disk == 400 * (4000 + 500) + 2 * 300_000
    # without the first slide's 450,000, and with the largest one's, whose file is there twice more
    assert whole.memory == 10_000_000 - 100 * 4500 + 300 * (4500 + 2 * 4000)
    assert str(whole) == (
        "2 slides to extract, about 400 patches: about 3 min, 2.4 MB on the disk, 13 MB of memory "
        "at most"
    )


def test_processes_share_the_time_and_not_more_than_slides():
    alone = estimate(FIRST, [100] * 3).seconds
    assert estimate(FIRST, [100] * 3, 2).seconds == alone / 2
    assert estimate(FIRST, [100] * 3, 8).seconds == alone / 3


def test_memory_is_left_out_where_nobody_knows_it():
    assert "memory" not in str(estimate(replace(FIRST, memory=0), [100]))
    assert str(estimate(FIRST, [100])).startswith("1 slide to extract")


def test_the_memory_of_a_process_is_what_it_holds():
    # in a process of its own: what other tests held is given back at any time
    code = (
        "import numpy as np; from histokit.core.memory import process_memory as held\n"
        "before = held(); some = np.ones(100_000_000, np.uint8)\n"
        "print(held() - before, held('VmHWM') - held())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, above = map(int, done.stdout.split())
    assert 90e6 < grown < 130e6
    assert above >= 0


@pytest.fixture
def source(tmp_path):
    """Three slides: twelve spots, twelve, and forty, of which ten are off the image."""
    folder = write_cohort(tmp_path / "in", ("c", "a", "b"), spots_table(40), counts_table(40))
    table = spots_table(40)
    table.loc[:9, "x"] = SIDE + 50.0
    table.to_csv(folder / "c-spots.csv", index=False)
    return folder


def extract(source, out, call, *options):
    done = call(run_extract, "--source", source, "--out", out, "--encoder", "hed", *options)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if " to extract, about " in line]


def test_it_is_said_once_of_what_is_left(source, tmp_path, call):
    out = tmp_path / "out"
    (line,) = extract(source, out, call, "--allow-misfit")
    assert line.startswith("3 slides to extract, about 54 patches: about ")
    assert extract(source, out, call, "--allow-misfit") == []
    (out / "features/hed/b.h5").unlink()
    (line,) = extract(source, out, call, "--allow-misfit")
    assert line.startswith("1 slide to extract, about 12 patches: about ")


def test_the_disk_is_what_is_written(tmp_path, call):
    """Features, counts and pictures of six slides; what describes them is small."""
    slides = [f"s{i}" for i in range(6)]
    source, out = write_cohort(tmp_path / "in", slides), tmp_path / "out"
    (line,) = extract(source, out, call)
    said = float(re.search(r"([\d.]+) MB on the disk", line)[1])
    pictures = sum(f.stat().st_size for f in out.rglob("*.jpg")) / 1e6
    written = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    assert 0.8 * pictures < said < written * 1.2


def test_patches_are_counted_as_they_are_placed(source, tmp_path):
    slides = {s.slide_id: s for s in read_source(str(source), "IDC", [], None, None, 112.0)}
    assert {name: count_patches(s, 56, None, True) for name, s in slides.items()} == {
        "a": 12, "b": 12, "c": 30,
    }  # fmt: skip
    bare = replace(slides["a"], load_spots=None, load_counts=None)
    assert count_patches(bare, 100, None, False) == (SIDE // 100) ** 2


def test_of_many_slides_some_are_counted(source, monkeypatch):
    slides = read_source(str(source), "IDC", [], None, None, 112.0)
    plan = run_extract.make_plan(run_extract.Options(source=str(source), out="", encoder="hed"), [])
    a = next(s for s in slides if s.slide_id == "a")
    unreadable = replace(a, image=a.image.with_name("none.png"))
    counts = forecast._counts([a, unreadable, *slides], plan, 5)
    assert counts[0] == 12
    assert counts[1] == round(np.mean([12, 12, 12, 30]))
    assert forecast._counts([unreadable], plan, 5) == [5]
    monkeypatch.setattr(forecast, "COUNTED", 2)
    begun = []
    monkeypatch.setattr(forecast, "_patches", lambda slide, plan: begun.append(slide) or 10)
    assert forecast._counts([a] * 9, plan, 5) == [10] * 9
    assert len(begun) == 2


def test_pictures_are_as_large_as_their_files(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))
    write_picture(tmp_path / "a.jpg", picture)
    assert forecast._jpeg_bytes(picture) == (tmp_path / "a.jpg").stat().st_size
