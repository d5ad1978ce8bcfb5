"""Who may import whom: cli -> api -> engine -> diffusion, and no torch beside HTTP."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SERVICE = Path(__file__).resolve().parents[2] / "service"

# package -> what none of its files may import, not even inside a function
FORBIDDEN = {
    "diffusion": (
        "service.engine",
        "service.api",
        "service.models",
        "service.cli",
        "service.settings",
        "fastapi",
    ),
    "engine": ("service.api", "service.cli", "service.settings", "service.launch", "fastapi", "starlette", "uvicorn"),
    "models": ("service.api", "service.engine", "service.cli", "fastapi", "starlette", "uvicorn"),
    "api": ("service.cli", "torch", "diffusers"),
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function, as absolute dotted names."""
    names: set[str] = set()
    package = ["service", *path.relative_to(SERVICE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)  # `from service import api`
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_against_the_direction(package: str) -> None:
    files = sorted((SERVICE / package).rglob("*.py"))
    assert files
    against = {
        f"{path.relative_to(SERVICE)} imports {name}"
        for path in files
        for name in imported(path)
        if within(name, FORBIDDEN[package])
    }
    assert set() == against


def test_relative_imports_are_seen() -> None:
    """The reader of imports resolves `from ..api import app` to `service.api.app`."""
    source = SERVICE / "engine" / "client.py"
    names = imported(source)
    assert "service.engine.request" in names
    assert "service.engine.request.Sample" in names


def modules_after(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after running the statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "service.api.app",
        "service.cli",
        "service.settings",
        "service.engine.client",
        "service.engine.scheduler",
        "service.models.info",
    ],
)
def test_the_http_process_never_imports_torch(module: str) -> None:
    """Neither directly nor through anything it imports."""
    loaded = modules_after(f"import {module}")
    assert module in loaded
    assert set() == loaded & {"torch", "diffusers", "transformers"}


@pytest.mark.parametrize("module", ["service.engine.client", "service.engine.request", "service.engine.scheduler"])
def test_the_engine_side_never_imports_a_web_framework(module: str) -> None:
    """Neither directly nor through anything it imports."""
    assert set() == modules_after(f"import {module}") & {"fastapi", "starlette", "uvicorn"}
