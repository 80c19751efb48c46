"""The record of a sweep's runs: a file for each, written once, so that many machines may write and any may die.

A sweep's folder holds ledger/RUN.json, the row of a run that is done or failed, and runs/RUN/, where it was trained,
with runs/RUN/lease/, who trains it. What has no row is pending. Nothing there names the folder or a machine that
anybody must reach: a sweep may be copied elsewhere and goes on.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from gptjax.config import from_json
from gptjax.errors import BadInput
from gptjax.files import parse_json
from gptjax.jobs import leases, storage
from gptjax.run.result import Result

Row = dict[str, Any]


OF_A_TRAINED_RUN = {"size", "budget", "batch", "lr", "b2"}  # a row says these, and the fields of the run's result
RESULT = [field.name for field in fields(Result)]
GAINED = {field.name: field.default for field in fields(Result) if field.default is not MISSING}  # old rows lack them


def _checked(row: Any, path: Path) -> Row:
    """Refuse what is no row of the run that its file is named for."""
    remedy = "delete it, and that run is trained again"
    if not isinstance(row, dict) or row.get("run") != path.name.removesuffix(".json") or "role" not in row:
        raise BadInput(f"{path} is not the row of a run; {remedy}")
    if row.get("status") == "failed" and "tokens" not in row and isinstance(row.get("reason"), str):
        return row  # its trunk failed
    row = GAINED | row
    if missing := sorted({*OF_A_TRAINED_RUN, *RESULT} - row.keys()):
        raise BadInput(f"{path} has no {missing[0]}; {remedy}")
    try:
        result = from_json(Result, {name: row[name] for name in RESULT})
    except BadInput as error:
        raise BadInput(f"{path}: {error}; {remedy}") from None
    if result.status != "failed" and (result.status != "done" or result.loss is None):
        raise BadInput(f"{path} says that the run is {result.status!r} with loss {result.loss}; {remedy}")
    return row


class Ledger:
    """The rows of a sweep, and the leases of its runs."""

    def __init__(self, directory: Path) -> None:
        self.folder, self.runs = directory / "ledger", directory / "runs"
        self.known: dict[str, Row] = {}

    def append(self, row: Row) -> bool:
        """Write the row of a run; False, and nothing is written, if it has one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return storage.create(self.folder / f"{row['run']}.json", json.dumps(row, indent=1).encode())

    def rows(self) -> dict[str, Row]:
        """Return the row of each run that has one; a row that was read once does not change."""
        found = {}
        for name in storage.names(self.folder):
            row = self.known.get(name)
            if row is None and (data := storage.read(self.folder / name)) is not None:
                row = _checked(parse_json(data, self.folder / name), self.folder / name)
            if row is not None:
                found[name] = row
        self.known = found
        return {row["run"]: row for row in found.values()}

    def has(self, run: str) -> bool:
        """Say whether a run has a row: one look, however many rows there are."""
        return (self.folder / f"{run}.json").is_file()

    def forget(self, run: str) -> None:
        """Make a run pending again."""
        storage.remove(self.folder / f"{run}.json")

    @contextmanager
    def try_lock(self, run: str) -> Iterator[leases.Lease | None]:
        """Hold the lease of a run if nobody does."""
        with leases.hold(self.runs / run / "lease") as lease:
            yield lease

    def is_locked(self, run: str) -> bool:
        """Say whether a process holds a run, without leaving a trace."""
        return leases.is_held(self.runs / run / "lease")
