"""The command line: one parser for the verbs of `commands/`; a mistake in the input is a line and exit code 2."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from gptjax.commands import comparing, evaluation, hardware, laws, planning, training, weights
from gptjax.commands.arguments import Action, check_outputs, local_path
from gptjax.errors import BadInput, exit_code_of


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, and whose paths are of this machine."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.register("type", Path, local_path)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = Parser("gptjax", description="A scaling lab for GPTs: plan, train, fit and predict.")
    top.add_argument("--version", action="version", version=f"gptjax {version('gptjax')}, jax {version('jax')}")
    verbs = top.add_subparsers(dest="verb", required=True, parser_class=Parser, metavar="VERB")

    def verb(name: str, run: Action, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    for room in (training, laws, comparing, planning, hardware, weights, evaluation):
        room.add(verb)
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Action a verb; a mistake in the input is one line and exit code 2."""
    with suppress(AttributeError):  # there may be no standard output, or a stand-in for one
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        args = parser().parse_args(argv)
        check_outputs(args)
        args.run(args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (BadInput, OSError, KeyboardInterrupt) as error:
        code, line = exit_code_of(error) or (1, str(error))
        if line:
            print(f"gptjax: {line}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
