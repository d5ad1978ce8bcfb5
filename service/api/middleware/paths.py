"""Serves below a prefix, whether or not the proxy in front strips it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["RootPath", "route_path"]


def route_path(scope: Scope) -> str:
    """The path as the routes know it, without the prefix."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


class RootPath:
    """Pure ASGI middleware: sets `root_path`, and adds it to paths that came without it, as ASGI wants."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with `root_path` set."""
        if self._root and scope["type"] == "http":
            path: str = scope["path"]
            scope["root_path"] = self._root
            if path == self._root:
                scope["path"] = path + "/"
            elif not path.startswith(self._root + "/"):
                scope["path"] = self._root + path
        await self.app(scope, receive, send)
