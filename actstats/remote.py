"""Access remote objects by URL, in buckets (s3, gs, az) and on web servers (http, https).

Credentials, region and endpoint are read from the usual environment variables: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and so on. If boto3 is installed, profiles and single
sign-on from ~/.aws work as well. Requests that fail with a transient error are retried with backoff.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from actstats.errors import ActstatsError
from actstats.support import URL, require_package

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PATIENCE: Final = 60.0
"""Seconds for which requests are retried once the server has responded."""
FIRST_PATIENCE: Final = 8.0
"""Seconds for which the first request is retried; short, to report a wrong address quickly."""
RESUME: Final = "; completed partitions are kept: rerun the same command to resume"
"""Advice after a network error during a sweep."""
_TIMEOUT: Final = "60s"
"""Timeout of a request, including the transfer."""
_AWS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_")
"""Environment variables, or their prefixes, that configure S3 without boto3."""


def opened(url: URL, *, patience: float | None = None) -> ObjectStore:
    """Return an obstore of the objects below `url`, without sending any request.

    Raises:
        ActstatsError: the URL cannot be opened, or obstore is not installed.
    """
    require_package("obstore", f"reading or writing {url}")
    from obstore.store import from_url

    scheme, _, place = url.partition("://")
    if not place.partition("/")[0]:
        raise ActstatsError(f"{url} has no bucket; use a URL such as s3://bucket/name.zarr")
    if scheme == "memory":
        return _in_memory(url)
    more: dict[str, Any] = {}
    if (
        scheme in ("s3", "s3a")
        and not any(name.startswith(_AWS) for name in os.environ)
        and find_spec("boto3")
    ):
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            more["credential_provider"] = Boto3CredentialProvider()
        except Exception as error:  # botocore fails on invalid files of the user
            raise ActstatsError(_without_credentials(url)) from error
    with explained(url):
        return from_url(
            url,
            # The endpoint in the environment may be http://.
            client_options={"allow_http": True, "timeout": _TIMEOUT},
            retry_config={
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=10),
                    "base": 3,
                },
                "max_retries": 1000,
                "retry_timeout": timedelta(seconds=PATIENCE if patience is None else patience),
            },
            **more,
        )


@cache
def _in_memory(url: URL) -> ObjectStore:
    """Return the in-memory store of this process for this URL."""
    from obstore.store import MemoryStore

    return MemoryStore()


@contextmanager
def explained(url: URL, advice: str = "") -> Iterator[None]:
    """Turn errors of obstore into a one-line `ActstatsError` that names `url` and ends with `advice`.

    A missing object still raises `FileNotFoundError`, unless its bucket is missing too.
    """
    import obstore.exceptions

    try:
        yield
    except (obstore.exceptions.BaseError, FileNotFoundError) as error:
        text = str(error).partition("\n\nDebug source")[0]
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
            raise
        raise ActstatsError(_reason(url, text) + advice) from error


def _reason(url: URL, text: str) -> str:
    """Return an error message about `url` in one line, given the `text` of an obstore error."""
    bucket = "/".join(url.split("/")[:3])
    status = re.search(r"status code: (\d{3}[\w ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if "Unable to recognise URL" in text:
        return f"cannot open {url}: it must start with s3://, gs:// or az:// and a bucket"
    if "NoSuchBucket" in text:
        return f"bucket {bucket} does not exist"
    if "169.254.169.254" in text or "metadata.google" in text or "Account must be specified" in text:
        return _without_credentials(url)
    why = code[1] if code else status[1].strip() if status else " ".join(text.split())[-200:]
    if status and status[1][:3] in ("401", "403"):
        return f"access to {url} is denied ({why}); check the credentials in the environment"
    if status and status[1][:3] in ("301", "307", "400"):
        return f"{url} cannot be used ({why}); check AWS_REGION and AWS_ENDPOINT_URL"
    return f"{bucket} does not respond ({why})" if not status else f"{bucket} responds with {why}"


def _without_credentials(url: URL) -> str:
    names = {
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }
    wanted = names.get(url.partition(":")[0], "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    public = "" if url.partition(":")[0] in names else ", or AWS_SKIP_SIGNATURE=true for a public bucket"
    return f"no credentials for {url}: set {wanted}{public}"
