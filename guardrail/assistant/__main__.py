"""The assistant as a process; exit code 2 when it cannot start, 130 after Ctrl-C.

Its first line on standard output is the address of its API, once it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Sequence

from guardrail.assistant import NAME
from guardrail.assistant.weights import compiled
from guardrail.errors import GuardrailError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m guardrail.assistant", description=f"{NAME} on one CPU core.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0 lets the system choose; default: %(default)s")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    chosen = parser.parse_args(arguments)
    if chosen.until_eof:
        threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        asyncio.run(_serve(chosen.host, chosen.port))
    except GuardrailError as exc:
        return _failed(str(exc))
    except OSError as exc:
        return _failed(f"cannot listen on {chosen.host}:{chosen.port}: {exc.strerror}. Fix: choose another --port")
    except KeyboardInterrupt:
        print("assistant stopped", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _end_with_input() -> None:
    """A parent that holds the other end of our input cannot leave us behind, however it ends."""
    sys.stdin.buffer.read()
    os._exit(0)


async def _serve(host: str, port: int) -> None:
    from aiohttp import web

    from guardrail.assistant.model import LanguageModel
    from guardrail.assistant.server import Server

    model = LanguageModel(compiled())
    next(model.reply(model.prompt([])))  # reads the preamble, so that the first conversation need not
    runner = web.AppRunner(Server(model).app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    print(f"http://{host}:{runner.addresses[0][1]}/v1", flush=True)  # noqa: T201
    await asyncio.Event().wait()


def _failed(reason: str) -> int:
    print(f"error: {reason}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
