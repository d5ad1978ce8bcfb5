"""`onestep`: the command line. Commands import what they need when they run, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from service import __version__
from service.exits import ExitCode

__all__ = ["main"]

EPILOG = "`onestep COMMAND --help` tells more of each. Settings of `serve` can also be given as ONESTEP_* variables."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code, see `service.exits`."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="onestep", description="Serves consistency models over HTTP.", epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"onestep {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands, chosen="serve" in arguments[:1])
    from service.generate import add_parsers as add_generate

    add_generate(commands)
    from service.bench.command import add_parsers as add_bench

    add_bench(commands)
    from service.models.commands import add_parsers as add_models

    add_models(commands)
    args = parser.parse_args(arguments)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return ExitCode.FORCED
    except BrokenPipeError:  # the reader of our output has left, and had what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, chosen: bool) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve models over HTTP",
        description="Serves models over HTTP until SIGTERM or SIGINT.",
        allow_abbrev=False,
    )
    if chosen:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)  # until the server has its own: as PID 1 SIGTERM's default does nothing
        from service.serve import add_flags, run

        add_flags(serve)
        serve.set_defaults(run=run)


def _leave(number: int, frame: FrameType | None) -> None:
    # at once: what a start waits for, a download's threads for example, would be waited for on the way out as well
    with suppress(OSError, RuntimeError):  # a signal amid a write, a reader that has left
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
