"""Files of the Hugging Face hub, `hf://owner/repository/file`. Needs the extra `hub`."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Final

from actstats.errors import ActstatsError
from actstats.support import cache_folder, needs

_ADDRESS: Final = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^@#]+)(?:@(?P<revision>[\w./-]+))?"
)


def parse_address(address: str) -> tuple[str, str, str | None]:
    """Return the repository, the file and the revision (None: the main one) of an address.

    >>> parse_address("hf://owner/name/folder/model.safetensors@v1.0")
    ('owner/name', 'folder/model.safetensors', 'v1.0')

    Raises `ActstatsError` for one of another form.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or {".", ".."} & set(address.partition("@")[0].split("/")):
        raise ActstatsError(
            f"{address!r} is no file on the hub; give hf://OWNER/REPOSITORY/FILE or ...FILE@REVISION"
        )
    return found["repository"], found["file"], found["revision"]


def hub_file(repository: str, file: str, revision: str | None = None, *, offline: bool = False) -> Path:
    """Return a file of a repository from the hub's own cache, or downloaded into it.

    With `ACTSTATS_CACHE` set, that cache lies in there.

    Raises `ActstatsError` where there is no such file, no network, or `offline` forbids it.
    """
    with needs("huggingface_hub", "a file of the Hugging Face hub", "hub"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    folder = cache_folder() / "hub" if os.environ.get("ACTSTATS_CACHE") else None
    address = f"hf://{repository}/{file}"
    if not offline:
        print(f"looking for {address} on the Hugging Face hub", file=sys.stderr)
    chatter = logging.getLogger("huggingface_hub")
    before = chatter.level
    chatter.setLevel(logging.ERROR)  # Our error says the same once.
    try:
        found = hf_hub_download(
            repository, file, revision=revision, cache_dir=folder, local_files_only=offline
        )
    except LocalEntryNotFoundError as error:
        if offline:
            raise ActstatsError(
                f"{address} is not in the cache and --offline forbids to download it; run once without"
            ) from None
        raise ActstatsError(f"download of {address} failed: {_reason(error)}") from None
    except Exception as error:  # Each version raises its own kinds for a missing file, a gate, a broken line.
        raise ActstatsError(f"download of {address} failed: {_reason(error)}") from None
    finally:
        chatter.setLevel(before)
    return Path(found)


def _reason(error: BaseException) -> str:
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
