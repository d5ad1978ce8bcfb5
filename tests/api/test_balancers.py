"""The balancers of deploy/ in front of real servers: pictures come through, and a replica may leave."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Server, StartServer, free_port

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "/v1/images/avatars-32/thumbs/5.png"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replicas(start_server: StartServer) -> list[Server]:
    """Two real servers."""
    return [start_server("--threads", "1", "--drain-delay", "3") for _ in range(2)]


def placed(text: str, replicas: list[Server], port: int) -> str:
    """A configuration with the ports of this test instead of its own."""
    for number, server in enumerate(replicas, 1):
        text = text.replace(f"127.0.0.1:800{number}", server.url.removeprefix("http://"))
    text, count = re.subn(r"(bind :|listen )8080", rf"\g<1>127.0.0.1:{port}", text)
    assert count == 1
    return text.replace("bind :127", "bind 127")


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def balancer(
    request: pytest.FixtureRequest, replicas: list[Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a balancer in front of both servers."""
    program = request.param
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    folder, port = tmp_path_factory.mktemp(program), free_port()
    if program == "haproxy":
        config = folder / "haproxy.cfg"
        config.write_text(placed((ROOT / "deploy/haproxy/haproxy.cfg").read_text(), replicas, port))
        command = ["haproxy", "-db", "-f", str(config)]
    else:
        config = folder / "nginx.conf"
        text = placed((ROOT / "deploy/nginx/nginx.conf").read_text(), replicas, port)
        text = text.replace("/var/log/nginx", str(folder)).replace("/var/cache/nginx", str(folder))
        # the folder of a test belongs to its user alone, and root's nginx would work as nobody
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(f"pid {folder}/pid; daemon off; {user}\n{text}")
        command = ["nginx", "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/livez", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        assert process.poll() is None, "the balancer left"
        try:
            if httpx.get(url, trust_env=False, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"{url} does not answer")


def test_same_bytes_as_from_the_server_itself(balancer: str, replicas: list[Server]) -> None:
    """Through the balancer and from each replica an image URL gives the same bytes and the same ETag."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        answers = [client.get(f"{base}{IMAGE}") for base in (balancer, *(server.url for server in replicas))]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["etag"] for answer in answers}) == 1


def test_not_modified_comes_through(balancer: str) -> None:
    """A browser's cached copy is confirmed with 304."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.get(f"{balancer}{IMAGE}")
        assert answer.status_code == 200
        etag = answer.headers["etag"]
        assert client.get(f"{balancer}{IMAGE}", headers={"If-None-Match": etag}).status_code == 304


def test_posts_reach_the_service(balancer: str) -> None:
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(f"{balancer}/v1/generate", json={"seed": 3, "batch_size": 2})
    assert answer.status_code == 200
    assert [image["seed"] for image in answer.json()["images"]] == [3, 4]


def test_a_refusal_comes_through_whole(balancer: str) -> None:
    """The service's own problem document reaches the client."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(f"{balancer}/v1/generate", json={"seed": -1})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")
def test_a_replica_leaves_without_an_error(start_server: StartServer, tmp_path: Path) -> None:
    """One of two replicas is sent SIGTERM under load behind HAProxy: every request is answered with 200."""
    leaving, staying = (start_server("--threads", "1", "--drain-delay", "3") for _ in range(2))
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(placed((ROOT / "deploy/haproxy/haproxy.cfg").read_text(), [leaving, staying], port))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/livez", process)
        statuses = []
        with httpx.Client(trust_env=False, timeout=60) as client:
            end = time.monotonic() + 10
            for seed in range(10_000):
                if seed == 10:
                    leaving.process.terminate()
                answer = client.post(f"http://127.0.0.1:{port}/v1/generate", json={"seed": seed})
                statuses.append(answer.status_code)
                if time.monotonic() > end:
                    break
        assert set(statuses) == {200}
        assert len(statuses) > 20
        assert leaving.process.wait(10) == 0
    finally:
        process.terminate()
        process.wait(10)


def test_nginx_answers_an_image_again_from_its_own_cache(balancer: str) -> None:
    """The second time no replica is asked."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        first, second = (client.get(f"{balancer}{IMAGE}?steps=2") for _ in range(2))
    if "x-cache" not in first.headers:
        pytest.skip("only the nginx example has a cache")
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert first.content == second.content
