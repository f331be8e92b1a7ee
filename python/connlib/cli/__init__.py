"""The `connlib` command.

Exit codes: 0 for success and for a stop of `connlib up` by signal; 1 for a failure at run time, for a file that `check`
finds wrong and for a flow that `policy test` finds denied; 2 for bad arguments, and for bad files elsewhere. A failure
is one line on standard error, never a traceback, unless the environment variable `CONNLIB_DEBUG` is set. No message
repeats an argument that may be a key.

The commands import what they need when they run, so that `connlib genkey` does not load an event loop. This module
imports next to nothing: until `main` runs, Ctrl-C would be a traceback.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = "connlib"
DEBUG_VARIABLE = "CONNLIB_DEBUG"


def main() -> int:
    """Run the command that `sys.argv` asks for, and return its exit code."""
    try:
        app = _load()
        arguments = sys.argv[1:] or ["--help"]
        # Not "standalone": usage errors come here, to become one line like every other error.
        code = app(arguments, prog_name="connlib", standalone_mode=False) or 0
        if sys.stdout is None and {"-h", "--help", "--version"}.intersection(arguments):
            complain("standard output is closed")
            code = 1
    except BaseException as error:  # groups of exceptions may hold SystemExit and KeyboardInterrupt
        code = report_failure(error)
    return _flush(code)


def _load() -> Callable[..., int | None]:
    """Import the commands. Ctrl-C meanwhile just ends the process: raised within an import, it could get lost."""
    import signal

    if sys.argv[1:2] == ["up"]:
        from ._stop import stop_signals

        # Already now: importing takes long enough for a service to be stopped meanwhile.
        stop_signals.install()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        from ._app import app
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            from ._app import app
        finally:
            signal.signal(signal.SIGINT, before)
    return app


def report_failure(error: BaseException, program: str = PROGRAM) -> int:
    """Say what went wrong; the exit code."""
    import errno

    from connlib._errors import ConfigError, ConnlibError

    cause = _cause(error)
    if isinstance(cause, SystemExit):
        return cause.code if isinstance(cause.code, int) else 0 if cause.code is None else 1
    if (
        isinstance(cause, KeyboardInterrupt) or type(cause).__name__ == "Abort"
    ):  # what older typers make of it
        return 130
    if os.environ.get(DEBUG_VARIABLE):
        import traceback

        traceback.print_exception(error)
    if hasattr(cause, "format_message"):  # a usage error of typer
        context = getattr(cause, "ctx", None)
        command = context.command_path if context is not None else "connlib"
        complain(f"{_without_keys(cause.format_message())}; try {command} --help", program)
        return 2
    if isinstance(cause, ConnlibError):
        for problem in getattr(cause, "problems", (cause,)):
            complain(str(problem), program)
        return 2 if isinstance(cause, ConfigError) else 1
    if isinstance(cause, BrokenPipeError):
        pass  # the reader went away, as `head` does
    elif isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
        complain(
            "too many open files; raise the limit of open files: ulimit -n", program
        )  # also where a module is imported
    elif isinstance(cause, OSError):
        complain(str(cause.strerror or cause) + (f": {cause.filename}" if cause.filename else ""), program)
    else:
        # The message of an unexpected exception could quote anything, so it is not shown by default.
        complain(
            f"internal error ({type(cause).__name__}); set {DEBUG_VARIABLE}=1 to see where, and report it",
            program,
        )
    return 1


def _cause(error: BaseException) -> BaseException:
    """The exception that says most: within groups of exceptions the first one of connlib's own, else the first."""
    from connlib._errors import ConnlibError

    inner = getattr(error, "exceptions", None)
    if not inner:
        return error
    causes = [_cause(each) for each in inner]
    return next((cause for cause in causes if isinstance(cause, ConnlibError)), causes[0])


def _without_keys(message: str) -> str:
    """What typer says of the arguments, without those that may be keys, in whole or in part."""
    import re

    message = message.replace("Value error, ", "").rstrip(".")
    # Whatever stands where nothing is expected was meant for standard input, or for another command.
    message = re.sub(r"(unexpected extra argument)\(?s?\)? \(.*\)", r"\1", message, flags=re.DOTALL)
    return re.sub(r"[A-Za-z0-9+/_=]{20,}", "(not shown: it may be a key)", message)


def complain(message: str, program: str = PROGRAM) -> None:
    """One line on standard error, if there is one."""
    try:
        print(f"{program}: {message}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # closed, or nobody reads it


def _flush(code: int) -> int:
    """Write out what is buffered now, where a reader that went away can still be handled in silence."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            # The interpreter flushes once more at exit, and would complain.
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), stream.fileno())
            code = code or 1
    return code
