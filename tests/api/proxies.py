"""Real nginx and HAProxy in front of one server: as Debian ships them, and as deploy/ sets them up."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.test_balancers import ROOT, placed, wait_for
from tests.conftest import Server, free_port

PROXIES = ("nginx as shipped", "nginx of deploy", "haproxy as shipped", "haproxy of deploy")

NGINX_SITE = """
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {url}; }}
    }}
"""
HAPROXY_SITE = """
frontend http
    bind 127.0.0.1:{port}
    default_backend service

backend service
    server one {address}
"""


def shipped_nginx(url: str, port: int, folder: Path) -> str:
    """Debian's nginx.conf with one site, and with the files that only root may write moved."""
    text = Path("/etc/nginx/nginx.conf").read_text()
    text = re.sub(r"^(user|pid|error_log|include /etc/nginx/modules-enabled).*\n", "", text, flags=re.MULTILINE)
    text = text.replace("include /etc/nginx/conf.d/*.conf;", NGINX_SITE.format(url=url, port=port))
    text = text.replace("include /etc/nginx/sites-enabled/*;", "")
    assert "gzip on" in text
    return f"pid {folder}/pid; daemon off;\n" + text.replace("/var/log/nginx", str(folder))


def shipped_haproxy(url: str, port: int) -> str:
    """Debian's defaults with one backend; its global section is about users and sockets only."""
    text = Path("/etc/haproxy/haproxy.cfg").read_text()
    defaults = text[text.index("defaults") :]
    return defaults + HAPROXY_SITE.format(port=port, address=url.removeprefix("http://"))


def commanded(proxy: str, server: Server, port: int, folder: Path) -> list[str]:
    """Writes a proxy's configuration; the command that runs it."""
    program, _, kind = proxy.partition(" ")
    config = folder / program
    if program == "haproxy":
        if kind == "as shipped":
            config.write_text(shipped_haproxy(server.url, port))
        else:
            text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
            config.write_text(placed(text, [server, server], port))
        return ["haproxy", "-db", "-f", str(config)]
    if kind == "as shipped":
        text = shipped_nginx(server.url, port, folder)
    else:
        text = placed((ROOT / "deploy/nginx/nginx.conf").read_text(), [server, server], port)
        text = text.replace("/var/log/nginx", str(folder)).replace("/var/cache/nginx", str(folder))
        text = f"pid {folder}/pid; daemon off;\n{text}"
    config.write_text(text)
    return ["nginx", "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]


@contextlib.contextmanager
def run_proxy(proxy: str, server: Server, folder: Path) -> Iterator[str]:
    """The address of a proxy in front of the server; skips where the program is missing."""
    program = proxy.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(commanded(proxy, server, port, folder), stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/livez", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
