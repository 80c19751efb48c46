"""What a token store was made from: each file's size, time and hash, and what was left out.

The time spares reading a file that nobody has touched; its hash decides whether a touched one has changed. The corpus
`python`, a data set of Hugging Face and a Markov source have no such record: their name stands for what it gave first.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gptjax.data.corpora import corpus_files
from gptjax.data.text_files import describe

PROVENANCE_FILE = "provenance.json"


@dataclass(frozen=True)
class FileFacts:
    """A file as it was read."""

    size: int
    changed_ns: int  # when its content or name last changed, which no program sets back as it may `mtime`
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileFacts":
        with path.open("rb") as file:
            return cls(*_stat(path), file_digest(file, "sha256").hexdigest())

    def holds(self, path: Path) -> bool:
        """Say whether a file still has the content that it had."""
        if _stat(path) == (self.size, self.changed_ns):
            return True
        return path.stat().st_size == self.size and FileFacts.of(path).sha256 == self.sha256


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_ctime_ns


@dataclass(frozen=True)
class Provenance:
    """The files that a corpus was, and what of it is not in the store."""

    files: dict[str, FileFacts] = field(default_factory=dict)
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)  # files and bytes, by ending
    dropped: dict[str, int] = field(default_factory=dict)  # documents, by why

    @classmethod
    def of(cls, corpus: str) -> "Provenance":
        """Read every file of a corpus for its hash."""
        if not (files := corpus_files(corpus)):
            return cls()
        return cls({str(path): FileFacts.of(path) for path in files.read}, files.checked().summary())

    def difference(self, now: Iterable[Path]) -> str:
        """Say which of the files are not as they were; nothing if all are."""
        found = {str(path): path for path in now}
        wrong = [f"{name} is gone" for name in self.files if name not in found]
        wrong += [f"{name} is new" for name in found if name not in self.files]
        wrong += [f"{n} has changed" for n, facts in self.files.items() if n in found and not facts.holds(found[n])]
        return "" if not wrong else wrong[0] if len(wrong) == 1 else f"{wrong[0]}, and {len(wrong) - 1:,} files more"

    def notes(self) -> list[str]:
        """Say in lines what of the corpus is not in the store."""
        lines = [f"left out of the folder: {describe(self.left_out)}"] if self.left_out else []
        counts = [f"{n:,} {why} documents" for why, n in self.dropped.items()]
        return lines + ([f"dropped: {', '.join(counts)}"] if counts else [])

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Provenance":
        """Read what `to_json` wrote; ValueError, KeyError, TypeError or AttributeError if it is something else."""
        row: Any = json.loads(text)
        files = {str(name): FileFacts(**facts) for name, facts in row["files"].items()}
        left_out = {str(kind): (int(n), int(size)) for kind, (n, size) in row["left_out"].items()}
        return cls(files, left_out, {str(why): int(n) for why, n in row["dropped"].items()})
