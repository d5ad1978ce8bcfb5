"""Freed memory stays with the process: tensors made again and again take no new pages."""

from __future__ import annotations

import subprocess
import sys

MEASURE = """
import resource, sys, torch
from service.engine.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
faults()
print(faults())
"""


def faults(how: str) -> int:
    """How often a process had to be given pages for 20 tensors of 40 MB, one at a time, after as many before."""
    done = subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_pages_are_taken_once() -> None:
    """195,000 of 4 kB fill such tensors, 400 of 2 MB."""
    assert faults("kept") < 40
    assert faults("given back") > 300
