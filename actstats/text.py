"""Text from files on its way out: names of images, classes, layers and networks, which may hold any character.

`printable` is for terminals and messages, `for_plot` for plots, `for_spreadsheet` for CSV files. HTML is escaped
where it is made.
"""

from __future__ import annotations

import re
from typing import Final

_HIDDEN: Final = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which can rewrite a terminal; line breaks; marks that reorder a line; undecodable bytes."""
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001 - spreadsheets accept the wide forms, too


def printable(text: str) -> str:
    r"""Return a text in one line that a terminal shows as it is, with other characters escaped as in Python.

    >>> print(printable("caf\xe9 \x1b]0;title\x07 two\nlines \u202egnp.exe"))
    café \x1b]0;title\x07 two\nlines \u202egnp.exe
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def printable_json(text: str) -> str:
    r"""Return a text in JSON that a terminal shows as it is and that has the same value.

    >>> print(printable_json('{"name": "\u202egnp.exe"}'))
    {"name": "\u202egnp.exe"}
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def for_plot(text: str) -> str:
    r"""Return a text that matplotlib draws as it is, and not as mathematics.

    >>> print(for_plot("cost $x$"))
    cost \$x\$
    """
    return printable(text).replace("$", r"\$")


def for_spreadsheet(text: str) -> str:
    """Return the text of a cell in a CSV file, with an apostrophe before what a spreadsheet would compute.

    >>> for_spreadsheet("conv1"), for_spreadsheet("=1+1"), for_spreadsheet("'-x")
    ('conv1', "'=1+1", "''-x")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_spreadsheet(cell: str) -> str:
    """Return the text of a cell that `for_spreadsheet` wrote.

    >>> from_spreadsheet("'=1+1"), from_spreadsheet("''-x"), from_spreadsheet("'quoted'")
    ('=1+1', "'-x", "'quoted'")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
