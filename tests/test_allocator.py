"""Freed memory is kept: taking it again faults no pages."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from gptjax.allocator import keep_freed_memory
kept = {kept} and keep_freed_memory()

def touch():
    block = bytearray(64 * 2**20)

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def faults(kept: bool) -> tuple[str, float]:
    command = [sys.executable, "-c", PROGRAM.format(kept=kept)]
    said, number = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return said, float(number)


def test_memory_taken_again_faults_no_pages():
    said, number = faults(kept=True)
    if said == "False":
        pytest.skip("needs glibc")
    assert number < 10 < 1000 < faults(kept=False)[1]
