"""Stop strings that come in pieces."""

import pytest

from tsconvert.runner.stops import StopStrings


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("strings", "text", "shown", "found"),
    [
        (["###"], "a # b ## c ### d", "a # b ## c ", "###"),
        (["aab"], "xaaab", "xa", "aab"),
        (["User:", "\n\n"], "one\ntwo\n\nUser: x", "one\ntwo", "\n\n"),
        (["ab", "abc"], "xabc", "x", None),
        (["end"], "never en", "never en", ""),
        ([], "all of it", "all of it", ""),
        (["", "z"], "no empty ones", "no empty ones", ""),
    ],
)
def test_the_text_ends_before_the_first_stop(size: int, strings: list, text: str, shown: str, found: str | None):
    stops = StopStrings(strings)
    parts = [stops.push(text[i : i + size]) for i in range(0, len(text), size)]
    assert "".join(parts) + stops.flush() == shown
    if found is None:  # the shorter one is complete sooner, unless both come at once
        assert stops.found in ("ab", "abc")
    else:
        assert stops.found == (found or None)


def test_only_what_may_become_a_stop_is_held_back():
    stops = StopStrings(["</answer>"])
    assert [stops.push(part) for part in ("2 < 3 ", "<", "/ans", "wer? ", "</answer> more")] == [
        "2 < 3 ", "", "", "</answer? ", "",
    ]  # fmt: skip
    assert stops.flush() == ""
