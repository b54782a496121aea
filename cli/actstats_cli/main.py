"""The command `actstats`: a table of commands, loaded when used, and the one place where errors are printed."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import click

from actstats.errors import ActstatsError
from actstats.text import printable
from actstats.version import __version__
from actstats_cli.analyze import ANALYSES
from actstats_cli.lazy import LazyGroup
from actstats_cli.printing import with_flags
from actstats_cli.streams import open_closed_streams, unfailing_stderr

COMMANDS: Final = {
    "demo": "actstats_cli.demo",
    "sweep": "actstats_cli.sweep",
    "plan": "actstats_cli.plan",
    "run": "actstats_cli.run",
    "layers": "actstats_cli.layers",
    "models": "actstats_cli.models",
    "info": "actstats_cli.info",
    "repair": "actstats_cli.repair",
    "top": "actstats_cli.top",
    "analyze": "actstats_cli.analyze",
    "compare": "actstats_cli.compare",
}
"""Each command's name, in the order of `actstats --help`, and the module that defines it."""


class Failure(click.ClickException):
    """A failure, reported to the user in one line on stderr, with exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"actstats: {self.message}", file=file, err=file is None)


class Stopped(Failure):
    """The user stopped the command: exit status 130, as in shells after Ctrl-C."""

    exit_code = 130


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn errors that a user can act on into one line; others are bugs and keep a traceback."""
    try:
        yield
    except ActstatsError as error:
        raise Failure(f"error: {with_flags(str(error))}") from error
    except KeyboardInterrupt as stop:
        raise Stopped("; ".join(["stopped", *map(str, stop.args)])) from stop
    except MemoryError as error:
        raise Failure("error: out of memory; close other programs, or compute less at once") from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # click exits quietly: the reader, such as `head`, closed the pipe
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        raise Failure(f"error: {place}{error.strerror or error}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        if "zarr" not in sys.modules:
            raise
        from actstats.store import damage_in

        if (damage := damage_in(error)) is None:
            raise
        raise Failure(f"error: {damage}") from error


class Main(LazyGroup):
    """The root command, which reports errors in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; messages that cannot be written do not stop it."""
        # Torch consists of a million objects: looking for garbage while they are imported takes half a second.
        gc.set_threshold(50_000)
        # Threads of OpenMP that wait actively take the cores from decoders and other processes. It reads the variable
        # when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        open_closed_streams()
        with unfailing_stderr():
            return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options of the root command; `--help` and `--version` already print here."""
        with errors_in_one_line():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse empty arguments, which come from unset shell variables and would mean a default or a folder."""
        for before, argument in zip(["", *args], args, strict=False):
            name = (
                argument.removesuffix("=") if argument.startswith("--") and argument.endswith("=") else before
            )
            if not argument or name != before:
                where = (
                    name if name.startswith("-") else f"the one after {before!r}" if before else "the first"
                )
                raise click.UsageError(f"an argument is empty: {where}", ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with errors_in_one_line():
            return super().invoke(ctx)


@click.group(
    cls=Main,
    table=COMMANDS,
    nested={"analyze": ANALYSES},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Statistics of every unit of a vision network over a whole dataset, in one streaming pass.

    A sweep writes a store, which opens in xarray; the other commands read it.

    \b
        actstats sweep --arch googlenet --data photographs/ --out googlenet.zarr
        actstats info googlenet.zarr
    """


def run() -> None:
    """Run the command as this process, and exit without freeing every object, which takes two seconds with torch."""
    status: Any = 1  # after an error with a traceback

    def leave() -> None:
        # Freezing the objects instead (`gc.freeze`) makes Triton's bindings list them on stderr.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                try:
                    stream.flush()
                except OSError:
                    if not status:  # Python then reports the error, with an exit status of its own
                        raise
        os._exit(status)

    atexit.register(leave)  # before the command registers others, which therefore run first
    try:
        main(prog_name="actstats")
    except SystemExit as end:
        logging.disable()  # connections that are still closing would log after the last line
        status = end.code
        raise
