"""What a JSON body may be."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.problems import PROBLEMS, ProblemError
from service.api.strict_json import MAX_DEPTH, MAX_ELEMENTS, parse_object, require_json
from service.errors import InvalidRequest


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n\t",
        b"{",
        b"{} {}",
        b"nonsense",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":.5}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":"\x00"}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',  # half a surrogate pair, encoded
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32"),
        b'{"a":"\\',
        b"\\" * 100_000,
    ],
)
def test_what_is_no_json_in_utf8_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_object(body)
    assert PROBLEMS[caught.value.slug][0] == 400


@pytest.mark.parametrize(
    ("body", "loc", "code"),
    [
        (b"[]", ("body",), "object_expected"),
        (b"null", ("body",), "object_expected"),
        (b'"text"', ("body",), "object_expected"),
        (b'{"seed":1,"x":{},"seed":2}', ("body", "seed"), "duplicate_key"),
        (b'{"a":[0,{"b":1,"\\u0062":2}]}', ("body", "a", 1, "b"), "duplicate_key"),
        (b'{"a":1e400}', ("body", "a"), "number_too_large"),
        (b'{"a":[1,-1e999]}', ("body", "a", 1), "number_too_large"),
        (b'{"a":' + b"9" * 33 + b"}", ("body", "a"), "number_too_large"),
        (b'{"a":[1,' + b"9" * 5000 + b"]}", ("body", "a", 1), "number_too_large"),
        (b'{"a":"\\ud800"}', ("body", "a"), "lone_surrogate"),
        (b'{"a":["\\udc00\\ud800"]}', ("body", "a", 0), "lone_surrogate"),
        (b'{"\\ud800":1}', ("body",), "lone_surrogate"),
        (b'{"a":' + b"[" * 16 + b"]" * 16 + b"}", ("body",), "too_deep"),
        (b"[" * 2000 + b"]" * 2000, ("body",), "too_deep"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, ("body",), "too_deep"),
    ],
)
def test_json_that_is_not_acceptable_is_named_by_its_place(body: bytes, loc: tuple[str | int, ...], code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(body)
    assert (caught.value.loc, caught.value.code) == (loc, code)


def test_nesting_up_to_the_limit_and_surrogate_pairs_are_taken() -> None:
    depth = MAX_DEPTH - 1
    body = b'{"a":' + b"[" * depth + b'"\\ud83d\\ude00"' + b"]" * depth + b"}"
    assert json.loads(body) == parse_object(body)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), plain, max_size=5))
def test_every_plain_object_comes_back_as_it_was(value: dict[str, Any]) -> None:
    assert parse_object(json.dumps(value).encode()) == value
    assert parse_object(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=60) | st.text('{}[]":,\\u0123456789eE+-.dDaNInfty ', max_size=60).map(str.encode))
def test_no_body_raises_anything_but_a_refusal(body: bytes) -> None:
    try:
        assert isinstance(parse_object(body), dict)
    except (InvalidRequest, ProblemError) as error:
        str(error).encode()


HOSTILE = {
    "nested arrays": (b"[" + b" " * 18) * 250_000,
    "nested arrays in an object": b'{"a":' + b"[" * 250_000 + b" " * 4_500_000 + b"]" * 250_000 + b"}",
    "flat arrays": b'{"a":[' + b"[]," * 1_600_000 + b"1]}",
    "objects": b'{"a":' * 800_000,
    "as many elements as are taken": b'{"a":[' + b"{}," * (MAX_ELEMENTS // 2 - 8) + b"1]}",
    "long integers": b'{"a":[' + b",".join([b"9" * 4000] * 1200) + b"]}",
    "one long integer": b'{"a":' + b"9" * 5_000_000 + b"}",
    "spaces": b" " * 5_000_000,
    "an honest string": b'{"a":"' + b"A" * 5_000_000 + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_five_hostile_megabytes_cost_less_than_50_ms(name: str) -> None:
    """Measured in processor time of this thread: the event loop stands still that long."""
    body = HOSTILE[name]
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        with contextlib.suppress(InvalidRequest, ProblemError):
            parse_object(body)
        best = min(best, time.thread_time() - began)
    assert best < 0.05


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON ; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_is_json_with_or_without_its_charset(content_type: str) -> None:
    require_json([content_type])


@pytest.mark.parametrize(
    "content_types",
    [
        [],
        [""],
        ["text/plain"],
        ["application/problem+json"],
        ["application/json; charset=utf-16"],
        ["application/json; charset=latin-1"],
        ["application/json", "application/json"],
        ["application/x-www-form-urlencoded"],
    ],
)
def test_other_content_types_are_unsupported(content_types: list[str]) -> None:
    with pytest.raises(ProblemError) as caught:
        require_json(content_types)
    assert caught.value.slug == "unsupported-media-type"
