"""The decision log: one JSON line a decision, chained by hashes, without the text unless asked for.

A line holds what a policy looked at (scores, thresholds, length, request), so that another policy can judge it again without a
model: see `replay`. Each line carries the hash of the line before it (`prev`) and its own over all its other keys (`hash`), so
that a changed, missing or moved line is found by `verify`. A rotated log's first line goes on from the last of the file before.
A text is told by a keyed hash only (HMAC-SHA-256, RFC 2104): the plain hash of a short text is found by trying.

One process writes to a log: lines of two would not chain, so a file that grew by another hand is reported as a fault. Lines are
written by a thread of the log's own: a decision costs its caller only putting a value into a queue.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from guardrail.chat import Turn
from guardrail.errors import GuardrailError
from guardrail.policy import Decision, Observation, Request

GENESIS = "0" * 64
"""`prev` of the very first line."""
QUEUE_LIMIT = 10_000  # entries of about 1 KB that may wait for the disk
logger = logging.getLogger("guardrail.audit")


class LogError(GuardrailError):
    """The decision log cannot be written or read; the message names file, line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision as it is logged; `seen` is None when the guard could not score."""

    turn: Turn
    seen: Observation | None
    decision: Decision
    at: float
    """Unix time in seconds."""


class DecisionLog:
    """Appends decisions to a file; rotates it at `max_bytes` and keeps `keep` old ones (`log.jsonl.1` is the newest).

    `text` logs the words too; `key` makes a text's hash the same over restarts. A disk that is full or a path that went away is
    reported once per fault on the logger `guardrail.audit` and seen in `failed`. Raises `LogError` for a path that cannot be
    written or a file that is no log.
    """

    def __init__(
        self, path: Path, *, text: bool = False, key: bytes | None = None, max_bytes: int = 100 * 2**20, keep: int = 10
    ) -> None:
        self._path = path
        self._own_key = secrets.token_bytes(32)
        self.configure(text=text, key=key, max_bytes=max_bytes, keep=keep)
        self._previous = _last_hash(path)
        self._size = _size(path)
        self._waiting: queue.Queue[Entry | None] = queue.Queue(QUEUE_LIMIT)
        self._fault = ""
        self.dropped = 0
        """Decisions that could not be logged."""
        self._append([])  # an unwritable path is told at the start
        if self._fault:
            raise LogError(
                f"{path}: the decision log cannot be written: {self._fault}. Fix: make the folder or choose another path"
            )
        self._writer = threading.Thread(target=self._write, name="guardrail-audit", daemon=True)
        self._writer.start()

    def configure(self, *, text: bool = False, key: bytes | None = None, max_bytes: int = 100 * 2**20, keep: int = 10) -> None:
        """Set what was set at the start; entries that wait already may be written either way."""
        self._text = text
        self._key = key or self._own_key
        self._max_bytes = max_bytes
        self._keep = keep

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._path

    @property
    def failed(self) -> bool:
        """Whether the last write did not succeed, or entries had to be dropped since."""
        return bool(self._fault)

    @property
    def fault(self) -> str:
        """Why; empty while all is well."""
        return self._fault

    def record(self, turn: Turn, seen: Observation | None, decision: Decision) -> None:
        """Log a decision; never blocks and never raises."""
        try:
            self._waiting.put_nowait(Entry(turn, seen, decision, time.time()))
        except queue.Full:
            self._failed("the disk is too slow: the queue is full", 1)

    def flush(self) -> None:
        """Wait until all that was recorded so far is written or dropped."""
        self._waiting.join()

    def close(self) -> None:
        """Write what waits, then stop."""
        self._waiting.put(None)
        self._writer.join()

    def _write(self) -> None:
        while True:
            entries = [self._waiting.get()]
            while not self._waiting.empty() and len(entries) < 512:
                entries.append(self._waiting.get_nowait())
            self._append([entry for entry in entries if entry is not None])
            for _ in entries:
                self._waiting.task_done()
            if None in entries:
                return

    def _append(self, entries: list[Entry]) -> None:
        previous, lines = self._previous, []
        for entry in entries:
            line, previous = _chained(_fields(entry, self._key, self._text), previous)
            lines.append(line)
        data = "".join(lines).encode("utf-8", "backslashreplace")
        try:
            if _size(self._path) > self._size:
                raise LogError("another program writes to it. Fix: give each process a log of its own")
            self._rotate()
            with self._path.open("ab", buffering=0) as file:
                if file.write(data) < len(data):
                    file.truncate(self._size)  # no half lines: the chain goes on behind the last whole one
                    raise OSError("the disk is full")
        except (OSError, LogError) as exc:
            self._failed(str(exc), len(entries))
            return
        self._previous, self._size = previous, _size(self._path)
        if self._fault and entries:
            logger.warning("the decision log %s is written again; %d decisions are missing", self._path, self.dropped)
            self._fault = ""

    def _failed(self, fault: str, entries: int) -> None:
        self.dropped += entries
        if fault != self._fault:
            logger.error("the decision log %s cannot be written: %s", self._path, fault)
        self._fault = fault

    def _rotate(self) -> None:
        if not self._path.exists() or self._path.stat().st_size < self._max_bytes:
            return
        for number in range(self._keep, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        self._size = 0


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _last_hash(path: Path) -> str:
    """Hash that the next line goes on from: of the last line, of the newest rotated file's if the file is new."""
    for file in (path, path.with_name(f"{path.name}.1")):
        if file.is_file() and (lines := file.read_bytes().rstrip().rsplit(b"\n", 1)) and lines[-1]:
            try:
                return str(json.loads(lines[-1])["hash"])
            except (ValueError, KeyError) as exc:
                reason = "its last line is no log line. Fix: run `guardrail audit verify`, then move the file away"
                raise LogError(f"{file}: {reason}") from exc
    return GENESIS


def _fields(entry: Entry, key: bytes, text: bool) -> dict[str, Any]:
    decision, seen = entry.decision, entry.seen
    found: dict[str, Any] = {
        "at": round(entry.at, 3),
        "text_hmac": hmac.new(key, entry.turn.text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest(),
        "length": len(entry.turn.text),
        "context": len(entry.turn.context),
        "action": decision.action.value,
        "rule": decision.rule,
        "reason": decision.reason,
        "policy": f"{decision.policy}@{decision.policy_version}",
        "ms": round(decision.timings.get("guard_ms", 0.0), 3),
    }
    if seen is not None:
        found |= {"scores": _scores(seen), "seed": seen.seed, "request": _known(seen.request)}
    if decision.beside is not None:
        beside = decision.beside
        found["beside"] = {
            "policy": f"{beside.policy}@{beside.policy_version}",
            "action": beside.action.value,
            "rule": beside.rule,
        }
    found |= {"shadow": decision.shadow.value} if decision.shadow else {}
    found |= {"flags": list(decision.flags)} if decision.flags else {}
    found |= {name: getattr(decision, name) for name in ("route", "error", "escalated") if getattr(decision, name)}
    return found | ({"text": entry.turn.text, "earlier": list(entry.turn.context)} if text else {})


def _known(request: Request) -> dict[str, Any]:
    """What is known of a request; headers are those that some policy reads."""
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    return {name: dict(value) if name == "headers" else value for name, value in values.items() if value}


def _scores(seen: Observation) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "low": round(score.low, 6),
            "high": round(score.high, 6),
            "band": seen.band(name, strict=True).value,
            "limits": [seen.topics[name].thresholds.not_related, seen.topics[name].thresholds.related],
            "adapter": f"{seen.topics[name].adapter}@{seen.topics[name].version}",
        }
        for name, score in seen.scores.items()
    }


def _chained(fields: Mapping[str, Any], previous: str) -> tuple[str, str]:
    """A line with its hashes, and its hash."""
    body = {**fields, "prev": previous}
    digest = _digest(body)
    return json.dumps({**body, "hash": digest}, ensure_ascii=False, separators=(",", ":")) + "\n", digest


def _digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def files_of(path: Path) -> list[Path]:
    """A log with its rotated files, oldest first."""
    older = [file for file in path.parent.glob(f"{path.name}.*") if file.name.removeprefix(f"{path.name}.").isdigit()]
    return [*sorted(older, key=lambda file: -int(file.suffix[1:])), path]


Fault = Literal["not a log line", "changed", "the line before it is missing or was moved"]


def verify(paths: Iterable[Path]) -> Iterator[tuple[Path, int, Fault]]:
    """File, line number and fault of each line that breaks the chain; give rotated files oldest first.

    A log that starts in the middle (older files were deleted) is fine; lines cut off at the very end cannot be seen from the file
    alone: keep the last hash elsewhere if that matters.
    """
    expected: str | None = None
    for path in paths:
        for number, row in read_log(path, strict=False):
            if row is None or not isinstance(row.get("hash"), str):
                yield path, number, "not a log line"
                expected = None
                continue
            body = {key: value for key, value in row.items() if key != "hash"}
            if _digest(body) != row["hash"]:
                yield path, number, "changed"
            elif expected is not None and row.get("prev") != expected:
                yield path, number, "the line before it is missing or was moved"
            expected = row["hash"]


def read_log(path: Path, *, strict: bool = True) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line numbers and lines of a log; None for a line that is none, or `LogError` when `strict`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                row = _row(line)
                if row is None and strict:
                    raise LogError(f"{path}:{number}: not a line of a decision log. Fix: run `guardrail audit verify {path}`")
                yield number, row
    except OSError as exc:
        raise LogError(f"{path}: cannot be read: {exc.strerror}") from exc


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
