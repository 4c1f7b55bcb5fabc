"""Where guardrail keeps what it has computed: one folder per user, safe when several processes write at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guardrail.adapter import sha256_of


def cache_home(chosen: Path | None = None) -> Path:
    """`chosen`, else GUARDRAIL_CACHE, else `guardrail` in XDG_CACHE_HOME (https://specifications.freedesktop.org/basedir-spec)."""
    if chosen is not None:
        return chosen
    if folder := os.environ.get("GUARDRAIL_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guardrail"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; another process or thread waits. It ends with its holder, so a killed one blocks nobody."""
    with path.open("a") as file:
        if sys.platform != "win32":  # there two writers work side by side and the last rename wins
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_once(path: Path) -> str:
    """SHA-256 of a file; known again by its path, size and time of change, so that gigabytes are not read at each start."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    note = cache_home() / "hashes" / key
    try:
        known = note.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        known = ""
    return known if len(known) == 64 else _noted(sha256_of(path), note)


def _noted(digest: str, note: Path) -> str:
    with contextlib.suppress(OSError):  # without a place to write it is computed each time
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f"{note.name}.{os.getpid()}")
        temporary.write_text(digest, encoding="ascii")
        temporary.replace(note)
    return digest
