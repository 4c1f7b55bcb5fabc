"""The ASGI contract in a few names, and what it says about a client that leaves: https://asgi.readthedocs.io/en/latest/specs/www.html."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DRAIN_SECONDS = 1.0


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None], is_done: Callable[[], bool]) -> None:
    """Do the work of an answer; when the client leaves, cancel it and raise `ClientGone`.

    `is_done` says that the client has all it wants: then the work may finish, for `DRAIN_SECONDS`, so that the upstream's
    connection can be used again. The request's body must have been read.
    """
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not worker.done() and is_done():
            await asyncio.wait((worker,), timeout=DRAIN_SECONDS)
        if not worker.done():
            raise ClientGone
        worker.result()
    finally:
        watcher.cancel()
        if worker.cancel():
            await asyncio.wait((worker,))
        if not worker.cancelled():
            worker.exception()  # looked at, or asyncio complains that nobody did


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
