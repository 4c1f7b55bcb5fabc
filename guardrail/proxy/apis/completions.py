"""POST /v1/completions, the legacy API: https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

from guardrail.guard import Said
from guardrail.proxy import sse
from guardrail.proxy.apis import Edits, Reply
from guardrail.proxy.apis.fields import NO_USAGE, REFUSED_FIELDS, check_common, check_whole, invalid, wants_usage, words
from guardrail.proxy.splice import apply, set_member
from guardrail.proxy.strict_json import Json, reject_lookalikes

FIELDS = words(
    "prompt suffix model stream stream_options n best_of echo logprobs logit_bias max_tokens temperature top_p "
    "presence_penalty frequency_penalty seed stop user"
)
FOREIGN = words("messages input instructions previous_response_id conversation")
MAX_PROMPTS = 64


class Completions:
    """An `Api`: each prompt is judged, together with what shall follow the completion."""

    def said(self, body: Json) -> Sequence[Said]:
        """The prompts; token ids are refused, since nobody here can read them."""
        reject_lookalikes(body, FIELDS | REFUSED_FIELDS)
        check_common(body, FOREIGN)
        check_whole(body, "n")
        prompts = body.get("prompt")
        texts = [prompts] if isinstance(prompts, str) else prompts
        suffix = body.get("suffix") or ""
        if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_PROMPTS:
            raise invalid("prompt", f"prompt must be a text or a list of 1 to {MAX_PROMPTS} texts")
        if not all(isinstance(text, str) for text in texts):
            raise invalid("prompt", "prompts of tokens cannot be judged, send text", "token_prompts_not_supported")
        if not isinstance(suffix, str):
            raise invalid("suffix", "suffix must be a text")
        return [f"{text}\n{suffix}" if suffix else text for text in texts]

    def refusal(self, body: Json, text: str) -> Reply:
        """A text completion with `n` choices per prompt."""
        if body.get("stream"):
            return Reply(b"".join(_events(body, text)), stream=True)
        choices = [_choice(i, text, "stop") for i in _choices(body)]
        return Reply(json.dumps({**_head(body), "choices": choices, "usage": NO_USAGE}).encode())

    def forwarded(self, raw: bytes, body: Json, edits: Edits) -> bytes:
        """Only the model is replaced: a prompt has no system part."""
        if edits.model is None:
            return raw
        text = raw.decode()
        return apply(text, [set_member(text, "model", json.dumps(edits.model))]).encode()


def _events(body: Json, text: str) -> Iterator[bytes]:
    head = _head(body)
    usage: Json = {"usage": None} if wants_usage(body) else {}
    for piece, finish in ((text, None), ("", "stop")):
        for i in _choices(body):
            yield sse.event({**head, "choices": [_choice(i, piece, finish)], **usage})
    if usage:
        yield sse.event({**head, "choices": [], "usage": NO_USAGE})
    yield sse.DONE


def _choice(index: int, text: str, finish: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _choices(body: Json) -> range:
    prompts = 1 if isinstance(body["prompt"], str) else len(body["prompt"])
    return range(prompts * (body.get("n") or 1))


def _head(body: Json) -> Json:
    return {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.get("model") or "",
    }
