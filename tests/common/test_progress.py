import sys

import pytest

from tsconvert.common import progress as module
from tsconvert.common.progress import at, progress


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)


def test_short_work_is_silent(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with progress("layers", 3) as step:
        for _ in range(3):
            clock.now_s += 0.5
            step("")
    assert capsys.readouterr() == ("", "")


def test_long_work_speaks_every_ten_seconds_and_at_the_end(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    with progress("layers", 30) as step:
        for i in range(30):
            clock.now_s += 1
            step(f"loss {i}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "layers 3/30, 3 s, loss 2",
        "layers 14/30, 14 s, loss 13",
        "layers 25/30, 25 s, loss 24",
        "layers 30/30, 30 s, loss 29",
    ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock(monkeypatch)
    with progress("layers", 2) as step:
        for _ in range(2):
            clock.now_s += 3
            step("going")
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err


def test_a_step_of_minutes_says_where_it_is(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    at("nothing to say it in")
    with progress("layers", 2) as step:
        for i in range(1, 41):
            clock.now_s += 1
            at(f"step {i} of 40")
        step("error 0.1")
    at("nothing to say it in")
    said = capsys.readouterr().err.splitlines()
    assert said == ["layers 0/2, 31 s, step 31 of 40", "layers 1/2, 40 s, error 0.1"]
