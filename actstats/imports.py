"""From `package.module:name`, as a user writes it, to the object."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from actstats.errors import ActstatsError


def named_object(reference: str, role: str, form: str) -> object:
    """Return the object that `package.module:name` names; modules in the working directory are found too.

    >>> named_object("math:tau", "metric", "Class") > 6
    True

    Raises `ActstatsError`, which calls it a `role` and its second part a `form`, where there is none.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ActstatsError(f"{role} {reference!r} is not of the form package.module:{form}")
    if (here := str(Path.cwd())) not in sys.path:
        # `python -m` and pytest put the working directory there; a console script does not.
        sys.path.append(here)
    try:
        found: object = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, ValueError) as error:
        raise ActstatsError(f"{role} {reference!r}: cannot import {module_name}: {error}") from error
    except AttributeError as error:
        raise ActstatsError(f"{role} {reference!r}: {error}") from error
    return found
