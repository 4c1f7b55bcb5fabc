"""Which headers go where.

To the upstream everything goes but what is listed here; to the client everything but the connection's own headers. Names are
lower case on both sides, values are bytes as they came, repeated headers stay repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from guardrail.proxy.envelope import ApiError, Header

HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)  # RFC 9110, 7.6.1
FRAMING = frozenset({b"host", b"content-length", b"content-type", b"content-encoding", b"accept-encoding", b"expect"})
"""Set anew for the upstream's request."""
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key", b"openai-organization", b"openai-project"})
"""Whose account is charged: all from the client, or none."""
UNTRUSTED = frozenset({b"cookie", b"forwarded", b"via", b"x-real-ip", b"x-method-override"})
UNTRUSTED_PREFIXES = (b"x-forwarded-", b"x-original-", b"x-rewrite-", b"x-http-method", b"proxy-", b"x-guardrail-")
UNTRUSTED_NAMES = re.compile(rb"x-.*-(?:url|uri|host|base|endpoint|upstream)|.*-target-url")
"""How gateways let a client choose the address: `x-portkey-custom-host`, `helicone-target-url` and the like."""
NOT_FOR_CLIENTS = frozenset({b"alt-svc", b"strict-transport-security", b"location"})
"""These speak about the upstream's address."""

MAX_COUNT = 128
MAX_BYTES = 64 * 1024

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What depends on the request and on the upstream: compression, and whose credentials are sent."""

    identity: bool = False
    """Ask for an uncompressed response, which a stream needs to arrive piece by piece."""
    client_credentials: bool = True
    api_key: str | None = None
    json_body: bool = False


def check(headers: list[Header]) -> None:
    """Raise `ApiError` 431 for too many, 400 for one that could end early and start another."""
    if len(headers) > MAX_COUNT or sum(len(name) + len(value) for name, value in headers) > MAX_BYTES:
        raise ApiError(431, "headers_too_large", f"Send at most {MAX_COUNT} headers of {MAX_BYTES} bytes in all.")
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _CONTROL.search(value) or not _is_utf8(value):
            raise ApiError(400, "invalid_header", "A request header holds characters that headers must not hold.")


def to_upstream(headers: list[Header], how: Forwarding) -> list[tuple[str, str]]:
    """The client's headers for the upstream; `headers` have passed `check`."""
    dropped = HOP_BY_HOP | FRAMING | UNTRUSTED | _named_by_connection(headers)
    if how.api_key is not None or not how.client_credentials:
        dropped |= CREDENTIALS
    kept = [(name.decode(), value.decode()) for name, value in headers if name not in dropped and not _is_untrusted(name)]
    kept += [("accept-encoding", value) for value in _encodings(headers, how.identity)]
    if how.json_body:
        kept.append(("content-type", "application/json"))
    if how.api_key is not None:
        kept.append(("authorization", f"Bearer {how.api_key}"))
    return kept


def to_client(headers: Iterable[Header]) -> list[Header]:
    """The upstream's response headers for the client."""
    found = [(name.lower(), value) for name, value in headers]
    dropped = HOP_BY_HOP | NOT_FOR_CLIENTS | _named_by_connection(found)
    return [
        (name, value)
        for name, value in found
        if name not in dropped and not name.startswith((b"proxy-", b"x-guardrail-")) and not _CONTROL.search(value)
    ]


def _named_by_connection(headers: list[Header]) -> frozenset[bytes]:
    values = [value for name, value in headers if name == b"connection"]
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def _is_untrusted(name: bytes) -> bool:
    return name.startswith(UNTRUSTED_PREFIXES) or UNTRUSTED_NAMES.fullmatch(name) is not None


def _encodings(headers: list[Header], identity: bool) -> list[str]:
    return ["identity"] if identity else [value.decode() for name, value in headers if name == b"accept-encoding"]


def _is_utf8(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
