"""The load generator's connections, against servers that behave well and badly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

import pytest

from service.bench.connection import Answer, Broken, Pool
from tests.bench_servers import Asked, SmallServer, response
from tests.conftest import free_port

T = TypeVar("T")


def with_pool(url: str, use: Callable[[Pool], Coroutine[None, None, T]], api_key: str | None = None) -> T:
    async def main() -> T:
        pool = Pool(url, api_key)
        try:
            async with asyncio.timeout(30):
                return await use(pool)
        finally:
            pool.close()

    return asyncio.run(main())


async def four_in_turn(pool: Pool) -> list[Answer]:
    return [await pool.request("POST", "/v1/generate", b"%d" % number) for number in range(4)]


async def one(pool: Pool) -> Answer:
    return await pool.request("GET", "/")


async def echo(asked: Asked) -> bytes:
    return response(asked.body)


def test_requests_in_turn_share_a_connection() -> None:
    with SmallServer(echo) as server:
        answers = with_pool(server.url, four_in_turn)
    assert [answer.body for answer in answers] == [b"0", b"1", b"2", b"3"]
    assert server.connections == 1


def test_requests_at_a_time_have_a_connection_each_and_leave_them_to_the_next() -> None:
    async def twice_four_at_a_time(pool: Pool) -> None:
        for _ in range(2):
            await asyncio.gather(*(pool.request("POST", "/", b"x") for _ in range(4)))

    with SmallServer(echo) as server:
        with_pool(server.url, twice_four_at_a_time)
    assert (server.connections, len(server.asked)) == (4, 8)


def test_a_connection_that_the_server_closed_unasked_is_replaced() -> None:
    """Also when that shows only after the next request was written."""

    async def closes_at_the_second(asked: Asked) -> bytes:
        return response(asked.body) if asked.number == 0 else b""

    with SmallServer(closes_at_the_second) as server:
        answers = with_pool(server.url, four_in_turn)
    assert [answer.body for answer in answers] == [b"0", b"1", b"2", b"3"]
    assert server.connections == 4


def test_a_server_that_keeps_no_connection_open_is_asked_all_the_same() -> None:
    with SmallServer(echo, closes=True) as server:
        answers = with_pool(server.url, four_in_turn)
    assert [answer.status for answer in answers] == [200] * 4
    assert server.connections == 4


def test_connection_close_is_obeyed() -> None:
    async def says_so(asked: Asked) -> bytes:
        return response(asked.body, headers={"Connection": "close"})

    with SmallServer(says_so) as server:
        with_pool(server.url, four_in_turn)
    assert (server.connections, {asked.number for asked in server.asked}) == (4, {0})


def test_half_an_answer_is_broken_and_not_asked_for_again() -> None:
    async def halves(asked: Asked) -> bytes:
        return response(b"whole")[:-2]

    with SmallServer(halves, closes=True) as server, pytest.raises(Broken):
        with_pool(server.url, one)
    assert len(server.asked) == 1


def test_what_is_not_http_is_broken() -> None:
    async def greets(asked: Asked) -> bytes:
        return b"220 mail.example ESMTP\r\n"

    with SmallServer(greets) as server, pytest.raises(Broken, match="not HTTP"):
        with_pool(server.url, one)


def test_nobody_there_is_broken() -> None:
    with pytest.raises(Broken):
        with_pool(f"http://127.0.0.1:{free_port()}", one)


def test_chunked_answers_are_put_together() -> None:
    async def chunks(asked: Asked) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    with SmallServer(chunks) as server:
        assert with_pool(server.url, one).body == b"abcde"


def test_a_request_given_up_ends_its_connection_and_spoils_no_other() -> None:
    """The late answer to it must not be taken for the next one's."""

    async def first_never(asked: Asked) -> bytes:
        if asked.body == b"first":
            await asyncio.sleep(60)
        return response(asked.body)

    async def gives_up(pool: Pool) -> Answer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pool.request("POST", "/", b"first")
        return await pool.request("POST", "/", b"second")

    with SmallServer(first_never) as server:
        assert with_pool(server.url, gives_up).body == b"second"
    assert server.connections == 2


def test_key_prefix_and_host_are_sent() -> None:
    with SmallServer(echo) as server:
        with_pool(f"{server.url}/images/", four_in_turn, api_key="secret")
        (asked, *_) = server.asked
    assert asked.line == "POST /images/v1/generate HTTP/1.1"
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["host"] == server.url.removeprefix("http://")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Pool(url)
