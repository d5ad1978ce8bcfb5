"""Start and end of a real server process, with real signals."""

from __future__ import annotations

import signal
import time

import pytest

from service.exits import ExitCode
from tests.api.wire import JSON_HEAD, Wire, toy_server

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_signal_on_an_idle_server_ends_it_well(number: int) -> None:
    with toy_server() as toy:
        assert toy.get("/readyz").status == 200
        began = toy.signal(number)
        assert toy.exit_code() == ExitCode.OK
        assert time.monotonic() - began < 3
        assert "everything accepted was answered" in toy.log


def test_all_of_100_requests_in_flight_are_answered_and_their_connections_closed() -> None:
    with toy_server() as toy:
        wires = [toy.wire() for _ in range(100)]
        for wire in wires:
            wire.get("/livez").answer()  # accepted, not only in the listener's backlog
        for number, wire in enumerate(wires):
            wire.post({"seed": 1500 + number})
        time.sleep(0.5)
        toy.signal()
        answers = [wire.answer() for wire in wires]
        assert {answer.status for answer in answers} == {200}
        assert {answer.headers.get("connection") for answer in answers} == {"close"}
        assert all(wire.closed_within(5) for wire in wires)
        assert toy.exit_code() == ExitCode.OK
        assert not toy.accepts()


def test_requests_sent_just_before_the_signal_are_answered() -> None:
    with toy_server() as toy:
        wires = [toy.wire() for _ in range(20)]
        for wire in wires:
            wire.get("/livez").answer()
            wire.post({"seed": 50})
        toy.signal()
        assert {wire.answer().status for wire in wires} == {200}
        assert toy.exit_code() == ExitCode.OK


def test_during_drain_delay_readyz_is_503_and_requests_are_still_accepted() -> None:
    with toy_server(drain_delay="1s") as toy:
        with toy.wire() as old:
            old.get("/livez").answer()
            began = toy.signal()
            while toy.get("/readyz").status == 200:
                assert time.monotonic() - began < 0.5
            assert toy.get("/readyz").problem == "draining"
            with toy.wire() as new:
                assert new.post({"seed": 1}).answer().status == 200
            answer = old.get("/livez").answer()
            assert (answer.status, answer.headers.get("connection")) == (200, None)
            time.sleep(max(0.0, began + 1.5 - time.monotonic()))
            assert not toy.accepts()
        assert toy.exit_code() == ExitCode.OK


def test_idle_connections_are_closed() -> None:
    with toy_server() as toy:
        used, fresh = toy.wire(), toy.wire()
        used.get("/livez").answer()
        toy.signal()
        assert used.closed_within(3)
        assert fresh.closed_within(3)
        assert toy.exit_code() == ExitCode.OK


def test_a_body_that_is_still_arriving_is_waited_for() -> None:
    with toy_server() as toy, toy.wire() as wire:
        wire.send(JSON_HEAD + b'Content-Length: 10\r\n\r\n{"seed')
        toy.get("/livez")
        toy.signal()
        time.sleep(0.7)
        answer = wire.send(b'":1}').answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert toy.exit_code() == ExitCode.OK


def test_a_dribbling_client_cannot_hold_it_up_past_drain_timeout() -> None:
    with toy_server(drain_timeout="1s") as toy, toy.wire() as wire:
        wire.send(JSON_HEAD + b"Content-Length: 100000\r\n\r\n")
        toy.get("/livez")
        began = toy.signal()
        while toy.process.poll() is None and time.monotonic() - began < 10:
            try:
                wire.send(b" ")
            except OSError:
                break
            time.sleep(0.05)
        assert toy.exit_code() == ExitCode.DRAIN_TIMEOUT
        assert time.monotonic() - began < 4


def test_what_cannot_be_finished_within_drain_timeout_is_told_so() -> None:
    with toy_server(drain_timeout="500ms") as toy, toy.wire() as wire:
        wire.post({"seed": 60_000})
        toy.get("/livez")
        began = toy.signal()
        answer = wire.answer()
        assert (answer.status, answer.problem) == (503, "draining")
        assert toy.exit_code() == ExitCode.DRAIN_TIMEOUT
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("phase", ["drain_delay", "drain_timeout"])
def test_a_second_signal_ends_it_at_once(phase: str) -> None:
    with toy_server(**{phase: "60s"}) as toy, toy.wire() as wire:
        wire.post({"seed": 60_000})
        toy.get("/livez")
        toy.signal()
        time.sleep(0.5)
        assert toy.process.poll() is None
        began = toy.signal()
        assert toy.exit_code() == ExitCode.FORCED
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(("seed", "code"), [(666, ExitCode.ENGINE), (667, ExitCode.MODEL)])
def test_an_engine_that_is_lost_for_good_ends_the_service_with_its_own_code(seed: int, code: ExitCode) -> None:
    with toy_server() as toy, toy.wire() as waiting, toy.wire() as last:
        waiting.post({"seed": 30_000})
        toy.get("/livez")
        last.post({"seed": seed})
        assert {waiting.answer().problem, last.answer().problem} == {"engine-lost"}
        assert toy.exit_code() == code
        assert "asked for it" in toy.log


def test_metrics_have_a_port_of_their_own_that_stays_to_the_end() -> None:
    with toy_server(metrics_port=1, api_keys="secret", drain_delay="700ms") as toy:
        assert toy.metrics_port is not None
        assert toy.get("/metrics").status == 401
        began = toy.signal()
        with Wire(toy.metrics_port) as wire:
            while wire.get("/readyz").answer().status == 200:
                assert time.monotonic() - began < 0.5
            text = wire.get("/metrics").answer().body.decode()
            assert 'onestep_http_requests_total{handler="unmatched",method="GET",status="401"} 1.0' in text
            assert wire.get("/readyz").answer().problem == "draining"
        assert toy.exit_code() == ExitCode.OK
