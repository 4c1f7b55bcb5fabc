"""The endpoint table: what is guarded, what passes, what is the proxy's own. Everything else is blocked.

A path is compared byte for byte as it came over the wire, and the upstream's URL is built from the table, never from the client's
bytes: no spelling of a path (`%2F`, `//`, `/./`, `;x`) can mean one thing here and another there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from guardrail.proxy.apis import Api
from guardrail.proxy.apis.chat_completions import ChatCompletions
from guardrail.proxy.apis.completions import Completions
from guardrail.proxy.apis.responses import Responses
from guardrail.proxy.envelope import ApiError

MODEL = "{model}"
_MODEL_ID = re.compile(rb"(?!\.{1,2}$)[A-Za-z0-9._:@-]{1,200}")


class Kind(str, Enum):
    """What happens to a request."""

    GUARDED = "guarded"
    PASS = "pass"
    OWN = "own"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the table; `upstream_path` is relative to an upstream's URL, `api` reads and refuses guarded requests."""

    method: str
    path: str
    kind: Kind
    about: str
    upstream_path: str = ""
    api: Api | None = None


CHAT, COMPLETIONS, RESPONSES = ChatCompletions(), Completions(), Responses()
ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", Kind.GUARDED, "the user's turn is scored", "/chat/completions", CHAT),
    Endpoint("POST", "/v1/completions", Kind.GUARDED, "each prompt is scored", "/completions", COMPLETIONS),
    Endpoint("POST", "/v1/responses", Kind.GUARDED, "the user's turn in `input` is scored", "/responses", RESPONSES),
    Endpoint("POST", "/chat/completions", Kind.GUARDED, "the same, for clients without /v1", "/chat/completions", CHAT),
    Endpoint("POST", "/completions", Kind.GUARDED, "the same, for clients without /v1", "/completions", COMPLETIONS),
    Endpoint("POST", "/responses", Kind.GUARDED, "the same, for clients without /v1", "/responses", RESPONSES),
    Endpoint("GET", "/v1/models", Kind.PASS, "no text, no generation", "/models"),
    Endpoint("GET", f"/v1/models/{MODEL}", Kind.PASS, "no text, no generation", f"/models/{MODEL}"),
    Endpoint("GET", "/models", Kind.PASS, "the same, for clients without /v1", "/models"),
    Endpoint("GET", f"/models/{MODEL}", Kind.PASS, "the same, for clients without /v1", f"/models/{MODEL}"),
    Endpoint("GET", "/healthz", Kind.OWN, "200 while the process is alive"),
    Endpoint("GET", "/readyz", Kind.OWN, "200 while the guard can score, else 503"),
)

BLOCKED = (
    ("/v1/responses/", "stored responses hold text that was not judged here"),
    ("/v1/chat/completions/", "stored completions hold text that was not judged here"),
    ("/v1/embeddings", "it takes text that is no turn of a chat"),
    ("/v1/images", "it takes text that is no turn of a chat"),
    ("/v1/audio", "it takes speech or text that is no turn of a chat"),
    ("/v1/videos", "it takes text that is no turn of a chat"),
    ("/v1/assistants", "the user's text would hide in stored state"),
    ("/v1/threads", "the user's text would hide in stored state"),
    ("/v1/conversations", "the user's text would hide in stored state"),
    ("/v1/batches", "whole requests would hide in files"),
    ("/v1/files", "whole requests would hide in files"),
    ("/v1/uploads", "whole requests would hide in files"),
    ("/v1/vector_stores", "the user's text would hide in stored state"),
    ("/v1/realtime", "speech and sockets cannot be judged"),
    ("/v1/organization", "administration does not go through a guard"),
    ("/v1/projects", "administration does not go through a guard"),
    ("/v1/fine_tuning", "training data is no turn of a chat"),
    ("/v1/messages", "another vendor's API"),
    ("/api/", "the backend's native API is not guarded"),
)
"""Why well-known paths are blocked, by prefix; a path that is missing here is blocked all the same."""

_EXACT = {row.path.encode(): row for row in ENDPOINTS if MODEL not in row.path}
_BEFORE_MODEL = {row.path.removesuffix(MODEL).encode(): row for row in ENDPOINTS if MODEL in row.path}


@dataclass(frozen=True, slots=True)
class Match:
    """An endpoint and the path to ask an upstream for."""

    endpoint: Endpoint
    upstream_path: str


def find(method: str, raw_path: bytes) -> Match:
    """The endpoint of a request. Raises `ApiError`: 403 for any other path, 405 for another method."""
    match = _match(raw_path)
    if match is None:
        raise _blocked(raw_path)
    allowed = match.endpoint.method
    if method != allowed:
        allow = (b"allow", allowed.encode())
        raise ApiError(405, "method_not_allowed", f"This endpoint takes {allowed} only.", headers=[allow])
    return match


def _match(raw_path: bytes) -> Match | None:
    endpoint = _EXACT.get(raw_path)
    if endpoint is not None:
        return Match(endpoint, endpoint.upstream_path)
    before, slash, model = raw_path.rpartition(b"/")
    endpoint = _BEFORE_MODEL.get(before + slash)
    if endpoint is None or not _MODEL_ID.fullmatch(model):
        return None
    return Match(endpoint, endpoint.upstream_path.replace(MODEL, model.decode()))


def _blocked(raw_path: bytes) -> ApiError:
    path = raw_path.decode("ascii", "replace")
    why = next((reason for prefix, reason in BLOCKED if path.startswith(prefix)), "it is not in the table of endpoints")
    known = ", ".join(f"{row.method} {row.path}" for row in ENDPOINTS if row.path.startswith("/v1/"))
    return ApiError(403, "endpoint_blocked", f"This guardrail proxy blocks the path: {why}. It serves {known}.")
