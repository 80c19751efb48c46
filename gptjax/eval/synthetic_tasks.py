"""Tasks made here: from the validation documents of a corpus of Python, and synthetic ones. Each has one right answer.

They are the same for a seed and a corpus, and short enough for small models: a question is at most `room` bytes with
its longest choice. A choice begins with a space, where tokenizers cut too.
"""

import ast
import io
import keyword
import random
import re
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, zip_longest

from gptjax.data.corpora import documents
from gptjax.errors import BadInput
from gptjax.eval.tasks import Task, TaskRow

ROOM = 96  # bytes: about 52 tokens of the quick sweep's vocabulary, whose models have a context of 64
LEAST_ROOM = 48
READ = 1 << 14  # characters of a document that are looked at for names and brackets
CLOSING = {"(": ")", "[": "]", "{": "}"}
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def make_task(name: str, examples: int, seed: int, room: int = ROOM, texts: Sequence[str] = ()) -> Task:
    """Make a task of up to so many rows; `texts` are the documents that the tasks of FROM_TEXT are made from."""
    if examples < 1 or room < LEAST_ROOM:
        raise BadInput(f"{examples} examples of {room} bytes are asked for; ask for 1 or more of {LEAST_ROOM} or more")
    rng = random.Random(f"{seed} {name}")
    if name in FROM_TEXT:
        rows = _gather(FROM_TEXT[name], texts, examples, rng, room)
        if not rows:
            raise BadInput(f"task {name}: none of {len(texts)} documents has what it asks for; give a corpus of Python")
    else:
        rows = [SYNTHETIC[name](rng, room) for _ in range(examples)]
    placed = [TaskRow(row.context, row.choices, row.answer, f"{name} row {i}") for i, row in enumerate(rows, 1)]
    return Task(name, tuple(placed))


def validation_texts(corpus: str) -> list[str]:
    """Return the validation documents of a corpus that are UTF-8."""
    held = (document for document, split in documents(corpus) if split == "validation")
    return [text.decode("utf-8") for text in held if _is_utf8(text)]


def _is_utf8(document: bytes) -> bool:
    try:
        document.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _choose(rng: random.Random, context: str, right: str, wrong: Sequence[str]) -> TaskRow:
    """Return a question with its choices in a random order."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return TaskRow(context, tuple(choices), choices.index(right))


# ---- from text


def _gather(
    find: Callable[[random.Random, str, int], list[TaskRow]],
    texts: Sequence[str],
    n: int,
    rng: random.Random,
    room: int,
) -> list[TaskRow]:
    """Take rows of the documents in a random order, as few of each as give n."""
    share = max(1, -(-2 * n // max(1, len(texts))))
    found: list[list[TaskRow]] = []
    for text in rng.sample(texts, len(texts)):
        rows = find(rng, text, room)
        found.append(rng.sample(rows, len(rows)))
        if sum(min(share, len(rows)) for rows in found) >= n:
            break
    rows = [row for each in zip_longest(*found) for row in each if row]  # one of each document, then a second
    rows = list({(row.context, row.choices): row for row in rows}.values())[:n]
    return rng.sample(rows, len(rows))


def _code(text: str) -> list[tuple[int, str, int]]:
    """Return the tokens at the beginning of a text as (type, text, offset), up to where it is no Python."""
    lines = io.StringIO(text[:READ], newline="").readlines()
    starts = [0, *accumulate(map(len, lines))]
    found = []
    with suppress(SyntaxError, tokenize.TokenError):
        for t in tokenize.generate_tokens(iter([*lines, ""]).__next__):
            found.append((t.type, t.string, starts[t.start[0] - 1] + t.start[1]))
    return found


def _cut(text: str, offset: int) -> int | None:
    """Return the last space before an offset that follows a word on its line; None if there is none near."""
    space = text.rfind(" ", max(0, offset - 16), offset)
    return space if space > 0 and not text[space - 1].isspace() and "\n" not in text[space:offset] else None


def _before(text: str, end: int, n_bytes: int) -> str:
    """Return at most so many bytes of text that end there, from the start of a line where the first half has one."""
    held = text[max(0, end - n_bytes) : end].encode()[-n_bytes:].decode(errors="ignore")
    line = held.find("\n")
    return held[line + 1 :] if 0 <= line < len(held) // 2 else held


def identifiers(rng: random.Random, text: str, room: int) -> list[TaskRow]:
    """Ask which name of the document stands here: it has stood in the context before."""
    names = [(s, at) for kind, s, at in _code(text) if kind == tokenize.NAME and len(s) > 3]
    names = [(name, at) for name, at in names if not keyword.iskeyword(name)]
    known = sorted({name for name, _ in names})
    rows = []
    for name, at in rng.sample(names, min(len(names), 200)):
        space = _cut(text, at)
        if space is None:
            continue
        shared = text[space:at]
        alike = [o for o in known if abs(len(o) - len(name)) <= 2 and not o.startswith(name) and not name.startswith(o)]
        wrong = rng.sample(alike, min(3, len(alike)))
        longest = max(len((shared + choice).encode()) for choice in (name, *wrong))
        context = _before(text, space, room - longest)
        if len(wrong) == 3 and _apart(wrong) and re.search(rf"\b{re.escape(name)}\b", context):
            rows.append(_choose(rng, context, shared + name, [shared + other for other in wrong]))
    return rows


def _apart(choices: Sequence[str]) -> bool:
    """Say whether none begins another: it would be likelier than that, always."""
    return not any(a != b and b.startswith(a) for a in choices for b in choices)


def brackets(rng: random.Random, text: str, room: int) -> list[TaskRow]:
    """Ask which bracket closes: the one that it matches is in the context. Each kind is as frequent as the others."""
    by_kind: dict[str, list[TaskRow]] = {kind: [] for kind in CLOSING.values()}
    opened: list[tuple[str, int]] = []
    for kind, string, at in _code(text):
        if kind != tokenize.OP:
            continue
        if string in CLOSING:
            opened.append((CLOSING[string], at))
        elif opened and string == opened[-1][0]:
            _, start = opened.pop()
            space = _cut(text, at)
            if space is None:
                continue
            shared = text[space:at]
            context = _before(text, space, room - len(shared.encode()) - 1)
            if space - len(context) <= start:
                wrong = [shared + other for other in CLOSING.values() if other != string]
                by_kind[string].append(_choose(rng, context, shared + string, wrong))
    fewest = min(map(len, by_kind.values()))
    return [row for rows in by_kind.values() for row in rng.sample(rows, fewest)]


def docstrings(rng: random.Random, text: str, room: int) -> list[TaskRow]:
    """Ask which docstring is the function's, among those of others of its file."""
    pairs = dict(_documented(text))
    rows = []
    for head, right in pairs.items():
        others = [d for d in pairs.values() if d != right]
        others = sorted(set(others), key=lambda d: (abs(len(d) - len(right)), d))[:6]
        wrong = rng.sample(others, min(3, len(others)))
        choices = [f' """{d}' for d in (right, *wrong)]
        longest = max(len(choice.encode()) for choice in choices)
        if len(wrong) == 3 and _apart(choices) and len(head.encode()) + longest <= room:
            rows.append(_choose(rng, head, choices[0], choices[1:]))
    return rows


def _documented(text: str) -> Iterator[tuple[str, str]]:
    """Yield the head of each documented function and the first line of its docstring."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old escape in a string is no matter here
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            first = docstring.partition("\n")[0].strip()
            if len(first) >= 12:
                yield f"def {node.name}({ast.unparse(node.args)}):", first


# ---- synthetic


def _word(rng: random.Random) -> list[str]:
    return rng.sample(SYLLABLES, 3)


def copy(rng: random.Random, room: int) -> TaskRow:
    """Ask for the word again, among its syllables in other orders."""
    a, b, c = _word(rng)
    return _choose(rng, f"{a}{b}{c} =", f" {a}{b}{c}", [f" {b}{c}{a}", f" {c}{b}{a}", f" {b}{a}{c}"])


def reverse(rng: random.Random, room: int) -> TaskRow:
    """Ask for the word from its last letter to its first, among the word itself and others of its letters."""
    a, b, c = _word(rng)
    backwards = [f" {''.join(order)}"[:0:-1] for order in ((a, b, c), (b, a, c), (a, c, b))]
    return _choose(rng, f"{a}{b}{c} =", f" {backwards[0]}", [f" {a}{b}{c}", *(f" {word}" for word in backwards[1:])])


def addition(rng: random.Random, room: int) -> TaskRow:
    """Ask for the sum of two numbers below 100, which must be said (Brown et al. 2020, section 3.9.1)."""
    a, b = rng.randrange(100), rng.randrange(100)
    return TaskRow(f"{a} + {b} =", (f" {a + b}",), 0)


def lookup(rng: random.Random, room: int) -> TaskRow:
    """Ask for the value of a key, among the values of all keys of the context: a pair for each 24 bytes of room."""
    n = min(room // 24, 10)
    keys, values = rng.sample(SYLLABLES, n), rng.sample("0123456789", n)
    pairs = "".join(f"{key} = {value}\n" for key, value in zip(keys, values, strict=True))
    asked = rng.randrange(n)
    wrong = [f" {value}" for value in values if value != values[asked]]
    return _choose(rng, f"{pairs}{keys[asked]} =", f" {values[asked]}", wrong)


FROM_TEXT = {"identifier": identifiers, "bracket": brackets, "docstring": docstrings}
SYNTHETIC = {"copy": copy, "reverse": reverse, "addition": addition, "lookup": lookup}
NAMES = (*FROM_TEXT, *SYNTHETIC)
