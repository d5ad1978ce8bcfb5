"""`/docs` and `/openapi.json`: the API reference, from this server alone, under a strict policy.

Swagger UI's files come from the package `fastapi-offline`; its page is not used, for it has an inline script.
"""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from service.api.openapi import build_openapi

__all__ = ["PAGE_POLICY", "router"]

router = APIRouter(include_in_schema=False)

METHODS = ["GET", "HEAD"]

# `blob:` for pictures that a script has fetched, `data:` for those that came inside JSON.
PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# All addresses are relative, so that the page works below any prefix.
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Onestep API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<main id="swagger-ui"></main>
<noscript>This page needs JavaScript. For programs there is <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

START: Final = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""

ASSETS: Final = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
CACHED = {"Cache-Control": "public, max-age=3600"}


@router.api_route("/docs", methods=METHODS)
async def docs() -> Response:
    """The API reference as a page."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"})


@router.api_route("/docs/start.js", methods=METHODS)
async def docs_start() -> Response:
    """The page's own script."""
    return Response(START, media_type="text/javascript", headers=CACHED)


def _add_asset(name: str, media_type: str) -> None:
    async def asset() -> Response:
        content = await asyncio.to_thread((files("fastapi_offline") / "static" / name).read_bytes)
        return Response(content, media_type=media_type, headers=CACHED)

    router.add_api_route(f"/docs/{name}", asset, methods=METHODS)


for _name, _media_type in ASSETS.items():
    _add_asset(_name, _media_type)


@router.api_route("/openapi.json", methods=METHODS)
async def openapi(request: Request) -> Response:
    """The OpenAPI document, built when it is first asked for."""
    state = request.app.state
    if not hasattr(state, "openapi"):
        settings = state.context.settings
        document = await asyncio.to_thread(
            build_openapi,
            request.app,
            root_path=settings.root_path,
            with_keys=bool(settings.api_keys),
            public_images=settings.public_images,
        )
        state.openapi = msgspec.json.encode(document)
    return Response(state.openapi, media_type="application/json", headers={"Cache-Control": "no-cache"})
