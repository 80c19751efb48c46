"""The one exception whose message is for the user, and how any error ends a command: an exit code and a line."""


class BadInput(ValueError):
    """Report a mistake in what the user gave; the command line prints it as one line and exits with 2."""


def exit_code_of(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the line that an error ends a command with; None for a bug, which has a traceback."""
    if isinstance(error, BadInput):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, str(error)
    if isinstance(error, (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)):
        return 2, f"{error.filename}: {error.strerror}; check the path and its permissions"
    if isinstance(error, OSError):  # a full disk, storage that is away: nothing that was given is wrong
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        return 1, f"{said}; make room or see to it there, and run the same command again"
    return None
