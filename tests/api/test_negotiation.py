"""The form of an answer is what Accept asks for."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.negotiation import AnswerForm, Choice, NotAcceptable, OutputFormat, negotiate

JSON, IMAGE, MULTIPART, ZIP, NPY, EVENTS = (
    AnswerForm.JSON,
    AnswerForm.IMAGE,
    AnswerForm.MULTIPART,
    AnswerForm.ZIP,
    AnswerForm.NPY,
    AnswerForm.EVENTS,
)

CHROME_IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
CHROME_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
OLD_JAVA = "text/html, image/gif, *; q=.2, */*; q=.2"


@pytest.mark.parametrize(
    ("accept", "output_format", "form", "encoding"),
    [
        (None, None, JSON, "png"),
        ("", "jpeg", JSON, "jpeg"),
        ("  ", None, JSON, "png"),
        ("*/*", "webp", JSON, "webp"),
        ("application/json", None, JSON, "png"),
        ("APPLICATION/Json; charset=utf-8", None, JSON, "png"),
        ("application/*", None, JSON, "png"),
        ("image/*", None, IMAGE, "png"),
        ("image/*", "webp", IMAGE, "webp"),
        ("image/png", None, IMAGE, "png"),
        ("image/jpeg", None, IMAGE, "jpeg"),
        ("image/jpeg", "jpeg", IMAGE, "jpeg"),
        ("image/webp, image/jpeg;q=0.9", None, IMAGE, "webp"),
        ("image/webp, image/jpeg", None, IMAGE, "jpeg"),  # among equals the order of the table
        ("image/png, image/*;q=0.5", None, IMAGE, "png"),
        ("image/png;q=0.1, image/*;q=0.5", None, IMAGE, "jpeg"),  # the most specific range decides
        ("image/png, image/jpeg", "jpeg", IMAGE, "jpeg"),
        (
            "image/png, application/json",
            "jpeg",
            JSON,
            "jpeg",
        ),  # a contradicting type does not fit, another does
        ("multipart/mixed", None, MULTIPART, "png"),
        ("multipart/*", None, MULTIPART, "png"),
        ("application/zip", "jpeg", ZIP, "jpeg"),
        ("application/x-npy", None, NPY, "png"),
        ("text/event-stream", None, EVENTS, "png"),
        ("text/event-stream, application/x-npy", None, NPY, "png"),
        ("text/event-stream, */*;q=0.1", "jpeg", EVENTS, "jpeg"),
        ("application/x-npy, application/zip", None, ZIP, "png"),
        ("application/json;q=0.5, application/zip", None, ZIP, "png"),
        ("application/json;q=0, */*", None, IMAGE, "png"),
        ("application/json;q=0, image/png;q=0, */*;q=0.1", None, IMAGE, "jpeg"),
        ("*/*;q=0.5, application/x-npy;q=0.6", None, NPY, "png"),
        ("text/html, application/zip;q=0.3", None, ZIP, "png"),
        ("image/png, */*", None, JSON, "png"),
        (CHROME_IMG, None, IMAGE, "png"),
        (CHROME_IMG, "png", IMAGE, "png"),
        (CHROME_PAGE, None, IMAGE, "webp"),
        (OLD_JAVA, None, JSON, "png"),
        (",,application/zip,,", None, ZIP, "png"),
        ("nonsense, application/zip", None, ZIP, "png"),
        ("application/zip;q=abc, image/png", None, IMAGE, "png"),
        ("application/zip;q=1.5, image/png;q=0.2", None, IMAGE, "png"),
        ('application/zip;note="a,b;q=0", image/png;q=0.2', None, ZIP, "png"),
    ],
)
def test_accept_decides(
    accept: str | None, output_format: OutputFormat | None, form: AnswerForm, encoding: OutputFormat
) -> None:
    """Highest q first, most specific range per type, then the order of the table."""
    assert negotiate(accept, output_format) == Choice(form, encoding)


@pytest.mark.parametrize(
    ("accept", "output_format"),
    [
        ("text/html", None),
        ("image/gif", None),
        ("text/csv", None),
        ("image/png", "jpeg"),
        ("image/webp, image/png", "jpeg"),
        ("*/*;q=0", None),
        ("application/json;q=0", None),
        ("nonsense", None),
        ("*/png", None),
        ("application/json;q=2", None),
        (",", None),
    ],
)
def test_nothing_fits(accept: str, output_format: OutputFormat | None) -> None:
    """What cannot be given is refused, with the list of what can."""
    with pytest.raises(NotAcceptable) as caught:
        negotiate(accept, output_format)
    assert "application/json" in caught.value.available


def test_fewer_forms() -> None:
    """A route may offer fewer forms."""
    assert negotiate("*/*", None, [IMAGE]) == Choice(IMAGE, "png")
    with pytest.raises(NotAcceptable):
        negotiate("application/json", None, [IMAGE])


@pytest.mark.parametrize(
    "hostile",
    ['"' * 60_000, '"\\' * 30_000, "a/b;" + " ;" * 30_000 + "\x00", "*/*," * 15_000, "a/b;q=" + "0" * 60_000],
)
def test_long_headers_are_cheap(hostile: str) -> None:
    """A header made to be slow to parse takes linear time."""
    start = time.perf_counter()
    with contextlib.suppress(NotAcceptable):
        negotiate(hostile, None)
    assert time.perf_counter() - start < 0.2


TYPES = ["application/json", "image/png", "image/jpeg", "image/webp", "image/*", "*/*", "application/*"]
TYPES += ["multipart/mixed", "application/zip", "application/x-npy", "text/html", "text/*"]
ELEMENTS = st.tuples(st.sampled_from(TYPES), st.integers(0, 1000)).map(lambda e: f"{e[0]};q={e[1] / 1000:.3f}")
FORMATS = st.sampled_from([None, "png", "jpeg", "webp"])


@given(st.lists(st.one_of(ELEMENTS, st.text(max_size=20)), max_size=8).map(",".join), FORMATS)
def test_any_header_is_answered(accept: str, output_format: OutputFormat | None) -> None:
    """Any header gives a form or NotAcceptable, and never another format than the one asked for."""
    try:
        choice = negotiate(accept, output_format)
    except NotAcceptable:
        return
    assert output_format in (None, choice.output_format)


@given(st.lists(ELEMENTS, max_size=6), st.data())
def test_the_order_in_the_header_is_of_no_account(elements: list[str], data: st.DataObject) -> None:
    """Ranges may come in any order, as long as no type is listed twice."""
    unique = list({element.split(";")[0]: element for element in elements}.values())
    shuffled = data.draw(st.permutations(unique))

    def outcome(header: list[str]) -> Choice | None:
        try:
            return negotiate(",".join(header), None)
        except NotAcceptable:
            return None

    assert outcome(unique) == outcome(shuffled)


def test_of_two_weights_of_a_range_the_greater_counts() -> None:
    accept = "application/json;q=0.5, image/png;q=0.9, image/png;q=0.1"
    assert negotiate(accept, None).form is AnswerForm.IMAGE
