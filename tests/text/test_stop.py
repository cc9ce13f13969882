"""Stop strings and regular expressions over text in pieces."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgjax.text.stop import REGEX_HELD_CHARS, StopMatcher
from sgjax.types import RequestError

LETTERS = st.text("ab", min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """By brute force: the stop that ends first; of those that end together, the longest."""
    ends = [(end, end - len(s)) for s in stops for end in range(len(text) + 1) if text[:end].endswith(s)]
    return min(((start, end) for end, start in ends), key=lambda span: (span[1], span[0]), default=None)


@given(pieces=st.lists(st.text("abc", max_size=5), max_size=12), stops=st.lists(LETTERS, min_size=1, max_size=3))
def test_strings_match_wherever_the_text_is_cut(pieces: list[str], stops: list[str]):
    expected = first_stop("".join(pieces), stops)
    matcher, fed = StopMatcher(stops, ()), 0
    for piece in pieces:
        match = matcher.feed(piece)
        fed += len(piece)
        if match is not None:
            assert (fed - match.start, fed - match.end) == expected
            assert match.stop in stops
            return
        text = "".join(pieces)[:fed]
        prefixes = {s[:n] for s in stops for n in range(len(s))}
        assert matcher.held == max(len(p) for p in prefixes if text.endswith(p))
    assert expected is None


@given(text=st.text("ab12 ", max_size=20), cuts=st.lists(st.integers(0, 20), max_size=6))
def test_regexes_match_wherever_the_text_is_cut(text: str, cuts: list[int]):
    """For a pattern of one length, as searching the whole text."""
    pattern = r"a1[ab]2"
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    matcher, shown = StopMatcher((), [pattern]), ""
    tail = ""
    for start, end in itertools.pairwise(bounds):
        match = matcher.feed(text[start:end])
        tail += text[start:end]
        if match is not None:
            shown += tail[: len(tail) - match.start]
            break
        shown += tail[: len(tail) - matcher.held]
        tail = tail[len(tail) - matcher.held :]
    found = re.search(pattern, text)
    assert shown == (text[: found.start()] if found else text[: len(text) - len(tail)])


def feed_all(matcher: StopMatcher, text: str) -> tuple[int, str] | None:
    """Feeds characters; the number fed when the match came, and the matched text."""
    for i, char in enumerate(text, 1):
        if (match := matcher.feed(char)) is not None:
            return i, match.stop
    return None


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"\d{3}", "ab12c345", (8, "345")),
        (r"^ab", "xab", None),
        (r"^ab", "ab", (2, "ab")),
        (r"\n\n", "a\nb\n\n", (5, "\n\n")),
        (r"(?<=x)y", "yxy", (3, "y")),
        (r"(?i)stop", "please STOP", (11, "STOP")),
        (r"</?tool>", "<tooth> </tool>", (15, "</tool>")),
    ],
)
def test_regexes(pattern: str, text: str, expected: tuple[int, str] | None):
    assert feed_all(StopMatcher((), [pattern]), text) == expected


def test_a_caret_never_matches_after_the_start_of_a_long_text():
    assert feed_all(StopMatcher((), [r"^a"]), "b" * 2000 + "a" * 10) is None


def test_what_a_regex_holds_back_is_bounded():
    matcher = StopMatcher((), [r"(?s)<.*>"])
    assert matcher.feed("text <" + "x" * 50) is None
    assert matcher.held == 51
    assert matcher.feed("y" * 5000) is None
    assert matcher.held == REGEX_HELD_CHARS


def test_strings_and_regexes_together():
    assert feed_all(StopMatcher(["bb"], [r"b\d"]), "ab1bb") == (3, "b1")
    assert feed_all(StopMatcher(["bb"], [r"b\d"]), "abb1") == (3, "bb")


def test_endless_backtracking_is_refused():
    matcher = StopMatcher((), [r"(\w|\w\w)+!\d"])
    began = time.monotonic()
    with pytest.raises(RequestError, match="stop_regex"):
        matcher.feed("x" * 60 + "!a")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "a*", "^", "$", "(?:x|)", "(?:){99999999}"),
        *(
            "(a{1000}){1000}",
            "((((a|b|){30}){30}){30}){30}c",
            "(?=(a{99}){99})",
            "(?>a{40}b{0,40}){40}",
            "(a{40,}|b){40}",
        ),
    ],
)
def test_a_pattern_that_stops_at_once_or_is_too_large_is_refused(pattern: str):
    with pytest.raises(RequestError, match="stop_regex"):
        StopMatcher((), [pattern])


@pytest.mark.parametrize(
    "pattern", [r"(?<=a)", r"\b", r"[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}", "(a*b+?)*?c{200}", "(?i:x)"]
)
def test_a_pattern_that_may_match_later_is_taken(pattern: str):
    StopMatcher((), [pattern])


def test_a_pattern_that_regex_refuses_names_its_field():
    with pytest.raises(RequestError, match="stop_regex"):
        StopMatcher((), ["(?P<a>x)("])
