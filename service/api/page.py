"""`/` and `/static/...`: the playground, a page that uses the public routes only.

Its files are read once, at the start; there is nothing to build. Browsers ask again each time and are told 304.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service.api.context import context_of
from service.api.docs_page import PAGE_POLICY
from service.api.etag import matches
from service.api.problems import ProblemError

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

METHODS = ["GET", "HEAD"]
MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class _Asset(msgspec.Struct, frozen=True):
    content: bytes
    media_type: str
    etag: str


def _read_assets() -> dict[str, _Asset]:
    found = {}
    for entry in files("service").joinpath("page").iterdir():
        media_type = MEDIA_TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            found[entry.name] = _Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


_SHELL: Final = files("service").joinpath("page", "index.html").read_text(encoding="utf-8")
_ASSETS: Final = _read_assets()


@router.api_route("/", methods=METHODS)
async def page(request: Request) -> Response:
    """The playground. Its addresses are relative, so below a prefix it must be opened with a slash at the end."""
    root_path = request.scope.get("root_path", "")
    raw_path = request.scope.get("raw_path") or b"/"
    if root_path and not raw_path.endswith(b"/"):
        return RedirectResponse(root_path.rpartition("/")[2] + "/")
    settings = context_of(request).settings
    shell = _SHELL
    if settings.metrics_port is not None:
        shell = shell.replace('data-shown="yes"', 'data-shown="no"')
    if settings.api_keys:
        shell = shell.replace('data-keys="no"', 'data-keys="yes"')
    return HTMLResponse(shell, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"})


@router.api_route("/static/{name}", methods=METHODS)
async def asset(request: Request, name: str) -> Response:
    """One of the files that the page is made of."""
    found = _ASSETS.get(name)
    if found is None:
        raise ProblemError("not-found", "The page has no such file.")
    headers = {"Cache-Control": "no-cache", "ETag": found.etag}
    if matches(request.headers.get("If-None-Match"), found.etag):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
