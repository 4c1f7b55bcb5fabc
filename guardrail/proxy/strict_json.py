"""Request bodies as JSON, read so that no upstream can read the same bytes differently.

Parsers differ on duplicate keys, encodings, byte order marks, NaN, lone surrogates and depth, and Go's matches the names of
fields without regard to case. What any of them could take otherwise is refused here; what passes is forwarded as the bytes it
came in.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from guardrail.proxy.envelope import ApiError

MAX_DEPTH = 64

Json = dict[str, Any]


def read_object(raw: bytes) -> Json:
    """The JSON object in a body. Raises `ApiError` 400 `invalid_json` with the reason."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _invalid(f"the body is not UTF-8 (byte {exc.start})") from exc
    value = _parse(text)
    if not isinstance(value, dict):
        raise _invalid("the body must be a JSON object")
    _check_depth(value, text)
    _check_surrogates(value, text)
    return value


def reject_lookalikes(value: Mapping[str, Any], known: Collection[str], param: str = "") -> None:
    """Refuse keys that a lenient parser would read as a known one: `Messages`, `meſſages`, fullwidth letters."""
    for key in value:
        if key not in known and (meant := _folded(key)) in known:
            raise _invalid(f"the key {key[:40]!r} looks like {meant!r} but is not", param or None)


def _folded(key: str) -> str:
    return unicodedata.normalize("NFKC", key.casefold()).casefold()


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError as exc:
        raise _invalid(f"the body is nested more than {MAX_DEPTH} deep") from exc
    except ValueError as exc:  # also for whole numbers of more digits than Python converts
        raise _invalid(str(exc)) from exc


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _invalid(f"the key {twice[:40]!r} occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _invalid(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _invalid("a number is too large")
    return value


def _check_depth(value: Json, text: str) -> None:
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, (dict, list))]
        if not level:
            return
    raise _invalid(f"the body is nested more than {MAX_DEPTH} deep")


def _check_surrogates(value: Json, text: str) -> None:
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise _invalid("a string holds half of a surrogate pair") from exc


def _invalid(reason: str, param: str | None = None) -> ApiError:
    return ApiError(400, "invalid_json", f"We could not read the body of your request: {reason}.", param=param)
