"""Every error of the core has its place in the one table."""

from __future__ import annotations

from typing import Any

import pytest

from service import errors
from service.api.problems import PROBLEMS, SLUG_OF, FieldError, ProblemError, document, problem_of

SERVICE_ERRORS = [kind for name in errors.__all__ if issubclass(kind := getattr(errors, name), errors.ServiceError)]


def scope(**more: Any) -> dict[str, Any]:
    return {"type": "http", "path": "/v1/generate", "state": {"request_id": "req_1"}, **more}


def test_every_service_error_has_a_row_of_its_own() -> None:
    assert set(SERVICE_ERRORS) == set(SLUG_OF)
    assert set(SLUG_OF.values()) <= set(PROBLEMS)


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (errors.UnknownModel("x"), 404, "not-found"),
        (errors.InvalidRequest("x", loc=("body",), code="c"), 422, "invalid-request"),
        (errors.QuotaExceeded("x", retry_after=1), 429, "quota-exceeded"),
        (errors.InferenceFailed("x"), 500, "inference-failed"),
        (errors.Overloaded("x"), 503, "overloaded"),
        (errors.NotReady("x"), 503, "not-ready"),
        (errors.Draining("x"), 503, "draining"),
        (errors.EngineLost("x"), 503, "engine-lost"),
        (errors.DeadlineExceeded("x"), 504, "deadline-exceeded"),
    ],
)
def test_an_error_becomes_its_status_and_type(error: errors.ServiceError, status: int, slug: str) -> None:
    body = document(scope(), problem_of(error))
    assert (body["status"], body["type"].rsplit("/", 1)[1], body["detail"]) == (status, slug, "x")


def test_a_subclass_without_a_row_takes_that_of_its_parent() -> None:
    class Special(errors.Overloaded):
        pass

    assert problem_of(Special("x")).slug == "overloaded"


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, shown: str) -> None:
    assert problem_of(errors.Overloaded("x", retry_after=seconds)).headers == {"Retry-After": shown}


def test_an_unknown_retry_after_is_left_out() -> None:
    assert problem_of(errors.NotReady("x")).headers == {}


def test_all_wrong_fields_are_listed_in_order() -> None:
    second = errors.InvalidRequest("two", loc=("body", "b", 3), code="c2")
    first = errors.InvalidRequest("one", loc=("body", "a"), code="c1", others=(second,))
    assert document(scope(), problem_of(first))["errors"] == [
        {"loc": ["body", "a"], "code": "c1", "message": "one"},
        {"loc": ["body", "b", 3], "code": "c2", "message": "two"},
    ]


def test_names_that_a_client_made_up_are_cut_and_made_printable() -> None:
    problem = ProblemError("invalid-request", "x", errors=[FieldError(("body", "\x1b[31m" + "k" * 1000), "c", "m")])
    (shown,) = [error["loc"][1] for error in document(scope(), problem)["errors"]]
    assert len(shown) == 64
    assert shown.isprintable()


def test_the_instance_is_the_path_as_a_valid_reference() -> None:
    body = document(scope(path='/v1/models/a b"<é>' + "x" * 2000), ProblemError("not-found", "x"))
    assert body["instance"].startswith("/v1/models/a%20b%22%3C%C3%A9%3Ex")
    assert len(body["instance"]) == 512
