"""The documentation names what there is, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.exits import ExitCode
from service.settings import Settings, flag_of, variable_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks/results/README.md",
    *PAGES,
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The fragments that headings of a Markdown text can be linked by."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_tables_are_what_the_code_says() -> None:
    """Settings with defaults and sentences, and exit codes, are up to date: `make docs` changes nothing."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_setting_and_exit_code_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    names = [name for name in Settings.model_fields if f"`{variable_of(name)}`<br>`{flag_of(name)}`" not in text]
    assert names == []
    assert [code for code in ExitCode if f"| {code.value} | {code.meaning} |" not in text] == []


def test_pages_are_numbered_without_gaps() -> None:
    assert [f"{number:02}" for number in range(len(PAGES))] == [page.name[:2] for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_has_one_picture(page: Path) -> None:
    text = page.read_text()
    figures = re.findall(r"^```(?:mermaid|text)$", text, re.MULTILINE) + re.findall(r"!\[.*?\]\(.*?\)", text)
    assert len(figures) == 1


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_the_overview_leads_to_every_page(page: Path) -> None:
    assert f"({page.name})" in PAGES[0].read_text()


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(text: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        place, _, fragment = link.partition("#")
        target = (text.parent / place).resolve() if place else text
        if not target.exists() or (fragment and fragment not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


def test_metrics_named_in_the_documents_exist() -> None:
    """No page, alert or dashboard asks for a metric that the service does not have."""
    from service.metrics import Metrics

    known = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    known |= {family.name for family in Metrics().registry.collect()}
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "count", "sum", "total")}
    files = [*TEXTS, ROOT / "deploy/prometheus/rules.yml", ROOT / "deploy/grafana/onestep.json"]
    named = {
        (file.name, metric) for file in files for metric in re.findall(r"\bonestep_[a-z0-9_]+[a-z]", file.read_text())
    }
    assert len(named) > 20
    assert set() == {(file, metric) for file, metric in named if metric not in known}


def test_every_result_is_told_of() -> None:
    """Each committed figure is linked from the page of performance or from that of earlier ones."""
    results = ROOT / "benchmarks" / "results"
    told = "".join(path.read_text() for path in (ROOT / "docs" / "09-performance.md", results / "README.md"))
    assert [path.name for path in results.iterdir() if path.suffix != ".md" and f"{path.name})" not in told] == []
