"""``sdtree`` and ``python -m sdtree``: runs a command, and ends with its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from sdtree.errors import NoMatch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; an error is one line and code 2."""
    try:
        import typer

        from sdtree.cli.app import app
        from sdtree.cli.console import fail
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print(
            "sdtree: the command line needs typer and rich: pip install 'sdtree[cli]'",
            file=sys.stderr,
        )
        return 2
    try:
        code = app(arguments, prog_name="sdtree", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        return _stop_writing()
    except typer.Abort:
        return 130
    except (OSError, ValueError, TypeError, NoMatch, ImportError) as error:
        return fail(error)
    except Exception as error:
        usage = _usage(error)
        if usage is None:
            raise
        return fail(usage)
    return code or 0


def _usage(error: Exception) -> str | None:
    """Return what to tell of a wrong command line, None of any other exception.

    The classes that typer raises have moved between its versions.
    """
    message: Callable[[], str] | None = getattr(error, "format_message", None)
    if message is None:
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "sdtree"
    told = message().replace(": Value error, ", ": ").rstrip(".")  # as pydantic begins
    return f"{told}; see {command} --help"


def _stop_writing() -> int:
    """Have what is still to be written go nowhere, and return the code typer does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
