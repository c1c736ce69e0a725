"""Object stores by their URIs: connecting to one, for how long it may fail, and what may be shown of it."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from sparktrain.errors import StoreUriInvalid, first_line

if TYPE_CHECKING:
    from pyarrow import fs

# Of a store that speaks S3. Arrow's client tries again after a time-out, a reset, a body cut short, 408, 429
# and 5xx, with growing pauses. Its own default, 3 tries of 3 seconds, is what a busy store exceeds.
MAX_TRIES = 5
REQUEST_TIMEOUT_SECONDS = 10.0  # without a byte; curl's average lags, so that a stalled body takes about 17
CONNECT_TIMEOUT_SECONDS = 5.0
_GCS_RETRY_SECONDS = 120  # in all; the client's default is 15 minutes

_SHOWN_OPTIONS = {"endpoint_override", "scheme", "region"}  # any other may be a secret
_SHORTEST_SECRET = 6  # what is shorter would be found in every word
_FROM_STORE = re.compile(r"AWS Error|curlCode|google::cloud|Azure|HDFS|HTTP|[Tt]imed? ?out")
_RETRIED = re.compile(
    r"AWS Error (SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|SLOW_DOWN|THROTTLING|NETWORK_CONNECTION"
    r"|REQUEST_LIMIT_EXCEEDED|BANDWIDTH_LIMIT_EXCEEDED|UNKNOWN \(HTTP status 5\d\d\))"
)


def check_uri(uri: str) -> None:
    """Refuse what is no URI, before any part of it is shown.

    Raises:
        StoreUriInvalid: without the URI, which may hold credentials.
    """
    try:
        _ = urlsplit(uri).port  # where a slash cut the credentials short, half a secret is taken for it
    except ValueError:
        problem = "it is no URI; `/`, `@` and `:` in credentials must be written as %2F, %40 and %3A"
        raise StoreUriInvalid(f"{uri.partition(':')[0]}://***", problem) from None


def shown(uri: str, inside: str = "") -> str:
    """Return the URI of what lies `inside`, with everything masked that may be a secret."""
    parts = urlsplit(uri)
    _, at, host = parts.netloc.rpartition("@")
    query = "&".join(
        f"{key}={value if key in _SHOWN_OPTIONS else '***'}" for key, value in parse_qsl(parts.query)
    )
    path = f"{parts.path.rstrip('/')}/{inside}".rstrip("/")
    return urlunsplit((parts.scheme, f"***@{host}" if at else host, path, query, ""))


def without_secrets(text: str, uri: str) -> str:
    """Mask in `text` what `shown` masks in `uri`."""
    parts = urlsplit(uri)
    secrets = parts.netloc.rpartition("@")[0].split(":")
    secrets += [value for key, value in parse_qsl(parts.query) if key not in _SHOWN_OPTIONS]
    for secret in {*secrets, *map(unquote, secrets)}:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def is_from_store(reason: str) -> bool:
    """Whether Arrow's error text tells of the store, and not of what it gave."""
    return _FROM_STORE.search(reason) is not None


def count_tries(reason: str) -> int | None:
    """How often Arrow tried before this error; None: its client goes by rules of its own."""
    if "AWS Error" not in reason:
        return None
    return MAX_TRIES if _RETRIED.search(reason) else 1


def connect(uri: str) -> tuple[fs.FileSystem, str]:
    """Return this process's file system for a URI, and the path of the URI in it.

    Raises:
        StoreUriInvalid: it makes no sense. OSError: a store had to be asked for its region, and failed.
    """
    return _connect(os.getpid(), uri)


@lru_cache(maxsize=16)
def _connect(process: int, uri: str) -> tuple[fs.FileSystem, str]:
    """Once a process, since a connection does not outlive a fork."""
    import pyarrow as pa  # configuration and terminal do without
    from pyarrow import fs

    scheme = uri.partition(":")[0].lower()
    try:
        if scheme == "s3":
            return _connect_s3(uri)
        if scheme in ("gs", "gcs") and "retry_limit_seconds" not in uri:
            uri += f"{'&' if '?' in uri else '?'}retry_limit_seconds={_GCS_RETRY_SECONDS}"
        filesystem, base = fs.FileSystem.from_uri(uri)
    except (ValueError, TypeError, NotImplementedError, pa.ArrowException) as error:
        # Arrow's text has the whole URI in it, and the traceback would show it.
        problem = type(error).__name__ if "://" in str(error) else first_line(error)
        raise StoreUriInvalid(shown(uri), without_secrets(problem, uri)) from None
    return filesystem, base.rstrip("/")


def _connect_s3(uri: str) -> tuple[fs.FileSystem, str]:
    """`from_uri` takes no number of tries and no time-outs."""
    from pyarrow import fs

    parts = urlsplit(uri)
    user, _, bucket = parts.netloc.rpartition("@")
    options: dict[str, Any] = {key: _option(key, value) for key, value in parse_qsl(parts.query)}
    if user:
        key, _, secret = user.partition(":")
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    if "endpoint_override" not in options:
        options["region"] = options.get("region") or fs.resolve_s3_region(bucket)
    elif not {"AWS_REGION", "AWS_DEFAULT_REGION"} & os.environ.keys():
        options.setdefault("region", "us-east-1")  # without any, the client asks EC2, for seconds
    settings: dict[str, Any] = {
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=MAX_TRIES),
        "request_timeout": REQUEST_TIMEOUT_SECONDS,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    }
    return fs.S3FileSystem(**settings | options), f"{bucket}{unquote(parts.path)}".rstrip("/")


def _option(key: str, value: str) -> str | bool | float:
    if key.endswith("_timeout"):
        return float(value)
    return {"true": True, "false": False}.get(value.lower(), value)
