"""A group of commands, defined by a table of names and modules, that imports a module when its command is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

import click

from actstats.errors import nearest


class LazyGroup(click.Group):
    """A group that imports a command when it is used, so that `--help` need not wait for torch.

    `table` maps each command's name, in the order of `--help`, to the module that defines it, with `_` for `-`.
    `nested` maps subgroups to their commands, to suggest the group if one of these is given without it.
    """

    def __init__(
        self,
        *args: Any,
        table: Mapping[str, str],
        nested: Mapping[str, Collection[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.table, self.nested = table, nested or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the table's order."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name; None if there is none."""
        if cmd_name not in self.table:
            return None
        found: click.Command = getattr(import_module(self.table[cmd_name]), cmd_name.replace("-", "_"))
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command named by the first argument, or suggest the nearest name."""
        name = args[0]
        if name not in self.table and not name.startswith("-"):
            owner = next((command for command, inner in self.nested.items() if name in inner), None)
            hint = (
                f"; did you mean {ctx.command_path} {owner} {name}?" if owner else nearest(name, self.table)
            )
            ctx.fail(f"no command is named {name!r}{hint}")
        return super().resolve_command(ctx, args)
