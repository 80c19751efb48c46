"""Readers: where documents come from.

A corpus is a name: `python` (this machine's Python sources, the offline default), a file, directory or glob,
`markov[:key=value,...]`, `hf:NAME[:CONFIG[:SPLIT]]`, or `pairs:FILES`, whose documents are a prompt and an answer. To
add a kind, add a reader and its line in `read_corpus`.
"""

import json
import os
import re
import string
import sysconfig
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import entr

from gptjax.data.text_files import JSON, TEXT, Files, find, holds_json, read
from gptjax.errors import BadInput

Split = Literal["train", "validation"]

VALIDATION_BELOW = bytes([4])  # of 256: documents whose hash begins with a smaller byte, about 1 in 64

PAIRS = "pairs:"
# What reads a corpus that is no files, by its name, or by how its name begins where that ends in a colon.
READERS: dict[str, Callable[[str], Iterator[bytes]]] = {
    "python": lambda name: _read_python(),
    "hf:": lambda name: _read_hugging_face(name),
    "markov": lambda name: _read_markov(_parse_markov(name)),
    "markov:": lambda name: _read_markov(_parse_markov(name)),
}
HUGGING_FACE = re.compile(r"hf:((?:[\w.-]+/)?[\w.-]+)(?::([^:]*))?(?::([^:]*))?")

# Tests are mostly tables of expected values; gptjax itself would change the corpus with every edit.
PYTHON_WITHOUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "gptjax"}


def documents(name: str, dropped: Counter[str] | None = None) -> Iterator[tuple[bytes, Split]]:
    """Yield each distinct document of a corpus once, with the split that the hash of its content puts it in.

    Which split does not depend on the order. Where all fall into one, the smallest hash is the validation set. What is
    left out, as empty or as a duplicate, is counted in `dropped`.

    Raises:
      BadInput: the corpus is unknown or unreadable, or holds fewer than two distinct documents.
    """
    seen = Digests()
    held: list[tuple[bytes, bytes]] = []  # until both splits have shown
    sides: set[bool] = set()
    for document in read_corpus(name):
        digest = blake2b(document, digest_size=16).digest()
        if not document or not seen.add(int.from_bytes(digest[8:])):
            if dropped is not None:
                dropped["duplicate" if document else "empty"] += 1
            continue
        held.append((digest, document))
        sides.add(digest < VALIDATION_BELOW)
        if len(sides) == 2:
            for held_digest, held_document in held:
                yield held_document, "validation" if held_digest < VALIDATION_BELOW else "train"
            held.clear()
    if len(seen) < 2:
        raise BadInput(f"corpus {name!r} holds {len(seen)} distinct documents, and training and validation need one "
                       "each; give more files, or a .jsonl with a document per line")  # fmt: skip
    smallest = min(held)[0] if held else b""
    for digest, document in held:
        yield document, "validation" if digest == smallest else "train"


def is_pairs(name: str) -> bool:
    """Say whether a corpus is of prompts and answers."""
    return name.startswith(PAIRS)


def pair_of(document: bytes) -> tuple[bytes, bytes]:
    """Return the prompt and the answer of a document of such a corpus."""
    prompt, answer = json.loads(document)
    return prompt.encode("utf-8", "surrogatepass"), answer.encode("utf-8", "surrogatepass")


class Digests:
    """A set of 64-bit hashes in 11 to 21 bytes each, and half as much again while it grows.

    Two of n different documents are taken for one with a probability below n^2 / 2^65: 2e-7 for 2.5 million of them,
    10 GB in pieces of 4 kB; 3% for a thousand million.
    """

    def __init__(self) -> None:
        self._slots = array("Q", [0]) * 1024  # open addressing, by linear probing; 0 is a free one
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, digest: int) -> bool:
        """Put a hash in, and say whether it is new."""
        digest = digest or 1
        if not self._place(digest):
            return False
        self._n += 1
        if self._n > 0.75 * len(self._slots):
            before, self._slots = self._slots, array("Q", [0]) * (2 * len(self._slots))
            for other in filter(None, before):
                self._place(other)
        return True

    def _place(self, digest: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        i = digest & mask
        while slots[i]:
            if slots[i] == digest:
                return False
            i = i + 1 & mask
        slots[i] = digest
        return True


def read_corpus(name: str) -> Iterator[bytes]:
    """Return the documents of a corpus, in a fixed order; BadInput if there is no such corpus."""
    if files := corpus_files(name):
        return read(files.checked(), _pair_of if is_pairs(name) else _text_of)
    reader = reader_of(name)
    assert reader is not None
    return reader(name)


def reader_of(name: str) -> Callable[[str], Iterator[bytes]] | None:
    """Return what reads a corpus that is no files; None for the names of files."""
    begin = name.partition(":")[0] + ":" if ":" in name else name
    return READERS.get(begin)


# ---- this machine's Python


def _read_python() -> Iterator[bytes]:
    """Yield the sources and texts of the standard library, then those of the installed packages, by path."""
    paths = sysconfig.get_paths()
    for root in dict.fromkeys((paths["stdlib"], paths["purelib"], paths["platlib"])):
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(set(folders) - PYTHON_WITHOUT)
            for path in (Path(folder, file) for file in sorted(files)):
                if path.suffix in TEXT and os.access(path, os.R_OK):
                    text = path.read_bytes()
                    if _is_written_by_hand(text):
                        yield text


def _is_written_by_hand(text: bytes) -> bool:
    """Tell prose and code from tables: not empty or huge, no NUL, lines of sane length, at most 1 digit in 5."""
    return (
        0 < len(text) <= 1_000_000
        and b"\0" not in text
        and len(text) / (text.count(b"\n") + 1) <= 200
        and len(text.translate(None, b"0123456789")) >= 0.8 * len(text)
    )


# ---- files


def corpus_files(name: str) -> Files | None:
    """Find the files that a corpus is read from; None if it is no files, BadInput if there are none of that name."""
    if reader_of(name):
        return None
    if not is_pairs(name):
        return find(name)
    files = find(name.removeprefix(PAIRS), ("prompt", "answer"), JSON)
    for path in files.read:
        if not holds_json(path):
            raise BadInput(f"corpus {name!r}: {path} is not {' or '.join(JSON)}; write pairs as JSON lines")
    return files


def _text_of(row: dict[str, str]) -> bytes:
    return row["text"].encode("utf-8", "surrogatepass")


def _pair_of(row: dict[str, str]) -> bytes:
    """Return a row's prompt and answer as a JSON list, which `pair_of` reads."""
    return json.dumps([row["prompt"], row["answer"]]).encode()


# ---- Hugging Face


def _read_hugging_face(name: str) -> Iterator[bytes]:
    if not (found := HUGGING_FACE.fullmatch(name)):
        raise BadInput(f"corpus {name!r} is not hf:NAME[:CONFIG[:SPLIT]]; write it as hf:OWNER/NAME")
    return _rows_of_data_set(name, *found.groups())


def _rows_of_data_set(name: str, path: str, config: str | None, split: str | None) -> Iterator[bytes]:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(f"corpus {name!r} needs Hugging Face datasets; make install EXTRAS=test,hf") from error
    try:
        for row in datasets.load_dataset(path, config or None, split=split or "train", streaming=True):
            if not isinstance(row.get("text"), str):
                raise BadInput(f"corpus {name!r} has columns {list(row)} and no text in 'text'; use another data set")
            yield _text_of(row)
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        raise BadInput(f"corpus {name!r} cannot be read ({error!r}); check hf:NAME:CONFIG:SPLIT and the network"
                       ) from error  # fmt: skip


# ---- a source of known entropy


SYMBOLS = np.frombuffer(string.printable[:94].encode(), np.uint8)  # digits, letters, punctuation
MAX_LENGTH = 1 << 20  # 256 documents are held at a time
MAX_CONTEXTS = 1024  # the stationary distribution solves a dense system of this size


@dataclass(frozen=True)
class Markov:
    """A stationary Markov chain of `order` over `states` printable symbols, its rows drawn from Dirichlet(1/2)."""

    states: int = 8
    order: int = 1
    seed: int = 0
    documents: int = 2000
    length: int = 4096

    def __post_init__(self) -> None:
        if not 2 <= self.states <= len(SYMBOLS):
            raise BadInput(f"markov states={self.states} is not from 2 to {len(SYMBOLS)}, the printable symbols; use 8")
        if self.order > MAX_CONTEXTS.bit_length() or self.states**self.order > MAX_CONTEXTS:
            raise BadInput(f"markov states={self.states},order={self.order} has more contexts than the {MAX_CONTEXTS} "
                           "that are allowed; lower one")  # fmt: skip
        if not self.order < self.length <= MAX_LENGTH:
            raise BadInput(f"markov length={self.length} is not above order={self.order} and at most {MAX_LENGTH}; use "
                           "4096, and more documents")  # fmt: skip


def markov_entropy(name: str) -> float:
    """Return the exact entropy rate of a `markov` corpus, in nats per symbol: -sum_c p(c) sum_s p(s|c) log p(s|c)."""
    rows, stationary = _chain(_parse_markov(name))
    return float(stationary @ entr(rows).sum(axis=1))


def _parse_markov(name: str) -> Markov:
    allowed = [field.name for field in fields(Markov)]
    settings = {}
    for item in filter(None, name.removeprefix("markov").removeprefix(":").split(",")):
        key, _, value = item.partition("=")
        if key not in allowed or not re.fullmatch("[0-9]{1,18}", value):
            keys = ", ".join(allowed)
            raise BadInput(f"{item!r} in corpus {name!r} is not KEY=INTEGER of up to 18 digits; the keys are {keys}")
        settings[key] = int(value)
    return Markov(**settings)


def _chain(source: Markov) -> tuple[np.ndarray, np.ndarray]:
    """Return p(symbol | context), (contexts, states), and the stationary p(context), (contexts,).

    A context is the last `order` symbols read as a number in base `states`.
    """
    contexts = source.states**source.order
    rows = np.random.default_rng((source.seed, 0)).dirichlet(np.full(source.states, 0.5), size=contexts)
    step = np.zeros((contexts, contexts))
    context, symbol = np.indices(rows.shape)
    np.add.at(step, (context, (context * source.states + symbol) % contexts), rows)
    balance = np.vstack([step.T - np.eye(contexts), np.ones(contexts)])  # p step = p, and p sums to one
    stationary = np.linalg.lstsq(balance, np.append(np.zeros(contexts), 1.0))[0].clip(min=0)
    return rows, stationary / stationary.sum()


def _read_markov(source: Markov) -> Iterator[bytes]:
    rows, stationary = _chain(source)
    thresholds = rows.cumsum(axis=1)[:, :-1]
    rng = np.random.default_rng((source.seed, 1))
    for first in range(0, source.documents, 256):
        n = min(256, source.documents - first)
        context = rng.choice(len(stationary), size=n, p=stationary)
        symbols = np.empty((n, source.length), np.intp)
        for t in range(source.order):
            symbols[:, t] = context // source.states ** (source.order - 1 - t) % source.states
        for t in range(source.order, source.length):
            symbols[:, t] = (thresholds[context] <= rng.random((n, 1))).sum(axis=1)
            context = (context * source.states + symbols[:, t]) % len(stationary)
        yield from (row.tobytes() for row in SYMBOLS[symbols])
