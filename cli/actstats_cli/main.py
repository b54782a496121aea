"""The command `actstats`: a table of commands, loaded when used, and the one place where errors are printed."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import IO, Any, Final

import click

from actstats.errors import ActstatsError, nearest

COMMANDS: Final = {
    "sweep": "actstats_cli.sweep",
    "layers": "actstats_cli.layers",
    "info": "actstats_cli.info",
    "top": "actstats_cli.top",
}
"""Each command's name, in the order of `actstats --help`, and the module that has it under this name."""


class Failure(click.ClickException):
    """What a user is told when a command cannot go on: one line on stderr, exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"actstats: {self.message}", file=file, err=file is None)


class Stopped(Failure):
    """The user stopped it: exit status 130, as a shell gives it for Ctrl-C."""

    exit_code = 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for. They import torch no earlier than they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with, or offer the nearest name."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command is named {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; whatever the user can act on ends it with one line, anything else is a fault of ours."""
        try:
            return super().invoke(ctx)
        except ActstatsError as error:
            raise Failure(f"error: {error}") from error
        except KeyboardInterrupt as stop:
            raise Stopped("; ".join(["stopped", *map(str, stop.args)])) from stop
        except MemoryError as error:
            raise Failure("error: out of memory; close other programs, or ask for less") from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly: the reader, `head` say, has had enough
                raise
            place = "" if error.filename is None else f"{error.filename}: "
            raise Failure(f"error: {place}{error.strerror or error}") from error


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="actstats", message="%(prog)s %(version)s")
def main() -> None:
    """Statistics of every unit of a vision network over a whole dataset, in one streaming pass.

    A sweep fills a store, which opens in xarray; the other commands look into it.

    \b
        actstats sweep --arch googlenet --data photographs/ --out googlenet.zarr
        actstats info googlenet.zarr
    """
