"""A guard as a FastAPI dependency: the endpoint gets messages that were allowed; a refusal is answered for it.

pip install topic-guardrail fastapi uvicorn
python examples/fastapi_dependency.py guardrail.yaml
"""

import sys
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from guardrail import Guard, Refused
from guardrail.errors import UnreadableError
from guardrail.policy import Request

Answer = Callable[[list[dict[str, Any]]], str]


class Chat(BaseModel):
    """What the client sends."""

    messages: list[dict[str, Any]]


def create_app(guard: Guard, answer: Answer) -> FastAPI:
    """An app whose only endpoint answers messages that the guard lets pass."""
    app = FastAPI()

    async def allowed(chat: Chat, x_tenant: Annotated[str, Header()] = "") -> list[dict[str, Any]]:
        request = Request(endpoint="/chat", headers={"x-tenant": x_tenant} if x_tenant else {})
        judgement = await guard.ajudge(chat.messages, request=request)
        if not judgement.decision.allowed:
            raise Refused(judgement.decision)
        return [message for place, message in enumerate(chat.messages) if place not in judgement.dropped]

    @app.exception_handler(Refused)
    async def refused(request: HttpRequest, refusal: Refused) -> JSONResponse:
        return JSONResponse({"answer": refusal.reply, "refused": True})

    @app.exception_handler(UnreadableError)
    async def unreadable(request: HttpRequest, error: UnreadableError) -> JSONResponse:
        return JSONResponse({"error": str(error), "param": error.param}, status_code=400)

    def chat(messages: Annotated[list[dict[str, Any]], Depends(allowed)]) -> dict[str, Any]:
        return {"answer": answer(messages), "refused": False}

    app.post("/chat")(chat)
    return app


def main() -> None:
    import uvicorn

    with Guard.from_file(sys.argv[1]) as guard:
        uvicorn.run(create_app(guard, lambda messages: f"You said: {messages[-1]['content']}"))


if __name__ == "__main__":
    main()
