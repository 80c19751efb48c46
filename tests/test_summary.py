"""What a test run says in its end, and which files are slow."""

from types import SimpleNamespace

import pytest

import conftest
from helpers import TESTS


class Terminal:
    def __init__(self, *skipped: tuple[str, str]) -> None:
        reports = [SimpleNamespace(nodeid=name, longrepr=("a.py", 1, f"Skipped: {cause}")) for name, cause in skipped]
        self.stats, self.said = {"skipped": reports}, []

    def section(self, title: str) -> None:
        self.said.append(title)

    write_line = section


def test_skipped_tests_are_counted_by_their_cause():
    terminal = Terminal(("a.py::x", "needs b"), ("a.py", "needs a"), ("a.py::y", "needs b"), ("c.py::z", "needs a"))
    conftest.pytest_terminal_summary(terminal)
    assert terminal.said == ["what this machine could not prove", "a.py, 1 test: needs a", "2 tests: needs b"]


def test_where_nothing_was_skipped_nothing_is_said():
    terminal = Terminal()
    conftest.pytest_terminal_summary(terminal)
    assert not terminal.said


def test_slow_files_exist():
    assert set(conftest.SLOW) <= {path.stem.removeprefix("test_") for path in TESTS.rglob("test_*.py")}


@pytest.mark.parametrize("room", sorted({path.parent for path in TESTS.rglob("test_*.py")}), ids=lambda room: room.name)
def test_every_room_has_fast_tests(room):
    assert [path for path in room.glob("test_*.py") if not conftest.seconds(path)]
