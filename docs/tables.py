"""Writes the README's tables of settings and exit codes from the code itself: `make docs`.

`python docs/tables.py --check` changes nothing and fails when the README is behind.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from service.exits import ExitCode
from service.settings import Settings, flag_of, variable_of
from service.units import parse_bytes, parse_seconds

README = Path(__file__).resolve().parent.parent / "README.md"


def default_of(field: FieldInfo) -> str:
    """A setting's default as a person writes it: `60s`, `10MiB`, `off`."""
    value = field.get_default(call_default_factory=True, validated_data={})
    readers = {item.func for item in field.metadata if isinstance(item, BeforeValidator)}
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Path):
        home = os.path.expanduser("~")
        return f"`{str(value).replace(home, '~', 1)}`"
    if value is None or value in ("", ()):
        return "none"
    if parse_seconds in readers:
        return f"`{value:g}s`"
    if parse_bytes in readers:
        return f"`{value // 2**20}MiB`" if value % 2**20 == 0 else f"`{value}`"
    return f"`{','.join(value)}`" if isinstance(value, tuple) else f"`{value}`"


def settings_table() -> str:
    """One row for each setting."""
    rows = [
        f"| `{variable_of(name)}`<br>`{flag_of(name)}` | {default_of(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable, flag | default | meaning |", "| --- | --- | --- |", *rows])


def exit_codes_table() -> str:
    """One row for each exit code."""
    rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows])


TABLES = {"settings": settings_table, "exit-codes": exit_codes_table}


def with_tables(text: str) -> str:
    """The text with every table between its two comments written anew."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise SystemExit(f"{README.name}: the comments of the table {name!r} are missing")
        text = text[: found.start()] + found[1] + table() + found[2] + text[found.end() :]
    return text


def main() -> int:
    """Writes, or with `--check` compares."""
    os.environ.pop("XDG_CACHE_HOME", None)  # the default that most people have
    before = README.read_text()
    after = with_tables(before)
    if "--check" in sys.argv[1:]:
        if after != before:
            print(f"{README.name} is behind the code: run `make docs`", file=sys.stderr)
        return int(after != before)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
