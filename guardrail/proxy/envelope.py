"""OpenAI's error envelope, `{"error": {"message", "type", "param", "code"}}`: every failure of the proxy has this form."""

from __future__ import annotations

import json
from collections.abc import Sequence

Header = tuple[bytes, bytes]


class ApiError(Exception):
    """A request ends with this status and envelope; the message goes to the client, so it holds no host, key or score."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, headers: Sequence[Header] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = tuple(headers)

    def body(self) -> bytes:
        """The envelope as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return json.dumps({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}).encode()


def retry_later(code: str, message: str, seconds: float = 1.0) -> ApiError:
    """503 with a Retry-After of whole seconds, at least one."""
    return ApiError(503, code, message, headers=[(b"retry-after", b"%d" % max(1, -int(-seconds // 1)))])
