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
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from actstats.errors import ActstatsError, UnavailableError, one_line
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
    from obstore.store import HTTPStore, from_url

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
    # On the web, the address is used as it is; in a bucket, a key may contain any characters, also % and #.
    web = scheme in ("http", "https")
    with explained(url):
        return (HTTPStore.from_url if web else from_url)(
            url if web else f"{scheme}://{quote(place)}",
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

    A missing object still raises `FileNotFoundError`, unless its bucket is missing too. If the server fails, does not
    respond or refuses access, which may concern one object only, the error is an `UnavailableError`.
    """
    import obstore.exceptions

    try:
        yield
    except (obstore.exceptions.BaseError, FileNotFoundError) as error:
        text = str(error).partition("\n\nDebug source")[0]
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
            raise
        reason, passing = _reason(url, text)
        raise (UnavailableError(reason, advice) if passing else ActstatsError(reason + advice)) from error


class OddKeys:
    """Objects below a URL in S3 by any key, also those that obstore cannot name, such as `a//b`, by way of boto3."""

    def __init__(self, url: URL, problem: str = "") -> None:
        """Raises `ActstatsError` if the bucket is not in S3, or boto3 is not installed; `problem` is the odd key."""
        scheme, _, place = url.partition("://")
        if scheme not in ("s3", "s3a"):
            raise ActstatsError(f"{url} has an object whose key cannot be read ({problem}); rename it")
        boto3 = require_package("boto3", f"reading {url}, which has keys with empty parts or dots,")
        botocore = import_module("botocore")
        config = import_module("botocore.config").Config
        unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes")
        self._client = boto3.client(
            "s3", config=config(signature_version=botocore.UNSIGNED) if unsigned else None
        )
        self._bucket, _, prefix = place.partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        self._url = url

    def list(self) -> Iterator[tuple[str, int]]:
        """Yield the key, relative to the URL, and the size of every object."""
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self._prefix), entry["Size"]

    def read(self, key: str) -> bytes:
        """Return the content of an object; raises `FileNotFoundError` if it does not exist."""
        with self._explained():
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            content: bytes = answer["Body"].read()
            return content

    @contextmanager
    def _explained(self) -> Iterator[None]:
        failures = import_module("botocore.exceptions")
        try:
            yield
        except failures.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(str(error)) from error
            raise UnavailableError(f"{self._url} cannot be read ({code})", RESUME) from error
        except failures.BotoCoreError as error:
            raise UnavailableError(f"{self._url} cannot be read ({one_line(error, 160)})", RESUME) from error


@cache
def by_boto3(url: URL, problem: str = "") -> OddKeys:
    """Return the `OddKeys` of a URL."""
    return OddKeys(url, problem)


def _reason(url: URL, text: str) -> tuple[str, bool]:
    """Return a one-line message about `url`, given the `text` of an obstore error, and whether it may pass."""
    bucket = "/".join(url.split("/")[:3])
    status = re.search(r"status code: (\d{3}[\w ]*)", text)
    code = re.search(r"<Code>([\w.]+)</Code>|\"(?:code|error|reason)\": *\"([\w.]+)\"", text)
    if "Unable to recognise URL" in text:
        return f"cannot open {url}: it must start with s3://, gs:// or az:// and a bucket", False
    if "NoSuchBucket" in text:
        return f"bucket {bucket} does not exist", False
    if "169.254.169.254" in text or "metadata.google" in text or "Account must be specified" in text:
        return _without_credentials(url), False
    named = code[1] or code[2] if code else None
    why = named or (status[1].strip() if status else " ".join(text.split())[-200:])
    if _EXPIRED.search(text):
        return f"the token for {bucket} has expired ({why}); renew the credentials in the environment", False
    if status and status[1][:3] in ("401", "403"):
        return f"access to {url} is denied ({why}); check the credentials in the environment", True
    if status and status[1][:3] in ("301", "307", "400"):
        return f"{url} cannot be used ({why}); check AWS_REGION and AWS_ENDPOINT_URL", False
    return (f"{bucket} does not respond ({why})" if not status else f"{bucket} responds with {why}"), True


_EXPIRED: Final = re.compile(
    r"ExpiredToken|TokenRefreshRequired|invalid_grant|Request has expired|not valid in the specified time frame"
    r"|(token|session)[^.]{0,60}\bexpired",
    re.IGNORECASE,
)
"""What services call a token that is no longer valid."""


def _without_credentials(url: URL) -> str:
    names = {
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }
    wanted = names.get(url.partition(":")[0], "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    public = "" if url.partition(":")[0] in names else ", or AWS_SKIP_SIGNATURE=true for a public bucket"
    return f"no credentials for {url}: set {wanted}{public}"
