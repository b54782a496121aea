"""Files on the Hugging Face Hub, `hf://owner/repository/file`. Requires the extra `hub`."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Final

from actstats.errors import ActstatsError, NotCachedError, one_line
from actstats.support import cache_folder, needs
from actstats.text import printable

_ADDRESS: Final = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^@#]+)(?:@(?P<revision>[\w./-]+))?"
)


def parse_address(address: str) -> tuple[str, str, str | None]:
    """Return the repository, file and revision (None for the default branch) of an address.

    >>> parse_address("hf://owner/name/folder/model.safetensors@v1.0")
    ('owner/name', 'folder/model.safetensors', 'v1.0')

    Raises `ActstatsError` if the address does not have this form.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or {".", ".."} & set(address.partition("@")[0].split("/")):
        raise ActstatsError(
            f"{address!r} is not a file on the hub; use hf://OWNER/REPOSITORY/FILE or ...FILE@REVISION"
        )
    return found["repository"], found["file"], found["revision"]


def hub_file(repository: str, file: str, revision: str | None = None, *, offline: bool = False) -> Path:
    """Return a file of a repository from the hub's own cache, downloading it if needed.

    If `ACTSTATS_CACHE` is set, the hub's cache is a folder inside it.

    Raises `ActstatsError` if there is no such file or no network, or `offline` forbids the download.
    """
    with needs("huggingface_hub", "a file of the Hugging Face hub"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    folder = cache_folder() / "hub" if os.environ.get("ACTSTATS_CACHE") else None
    address = f"hf://{repository}/{file}"
    if not offline:
        print(printable(f"looking for {address} on the Hugging Face hub"), file=sys.stderr)
    chatter = logging.getLogger("huggingface_hub")
    before = chatter.level
    chatter.setLevel(logging.ERROR)  # Our own error reports the same.
    try:
        found = hf_hub_download(
            repository, file, revision=revision, cache_dir=folder, local_files_only=offline
        )
    except LocalEntryNotFoundError as error:
        if offline:
            raise NotCachedError(
                f"{address} is not in the cache and `offline=True` forbids the download; run once without it"
            ) from None
        raise ActstatsError(f"download of {address} failed: {_reason(error)}") from None
    # Exceptions for missing files, gated repositories and network errors vary by version.
    except Exception as error:
        raise ActstatsError(f"download of {address} failed: {_reason(error)}") from None
    finally:
        chatter.setLevel(before)
    return Path(found)


def _reason(error: BaseException) -> str:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = one_line(error)
    return text if len(text) <= 200 else f"{text[:197]}..."
