import time

import pytest

from histokit.core import progress


def work(count=5):
    for _ in progress.progress_bar(range(count), desc="slides", unit="slide"):
        time.sleep(0.02)


def test_a_log_gets_lines_with_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.01)
    work()
    lines = capsys.readouterr().err.splitlines()
    assert any("slides" in line and "slide/s" in line and "<00:0" in line for line in lines)
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize(("rank", "seconds"), [("0", 60.0), ("1", 0.01)])
def test_short_work_and_other_ranks_say_nothing(capsys, monkeypatch, rank, seconds):
    monkeypatch.setattr(progress, "LOG_SECONDS", seconds)
    monkeypatch.setenv("RANK", rank)
    work()
    assert capsys.readouterr().err == ""
