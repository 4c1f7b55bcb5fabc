"""An OpenAI-compatible server that lets a guard judge each request before a model sees it.

Within the package imports go one way: envelope, asgi, deadline, strict_json, body, headers, sse, splice, apis, endpoints,
exchange, upstream, app, server.
"""

from guardrail.proxy.app import Proxy, create_app
from guardrail.proxy.server import ListenError, serve

__all__ = ["ListenError", "Proxy", "create_app", "serve"]
