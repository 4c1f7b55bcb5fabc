"""A guard that follows its config file: what is new is built and tested aside, and swapped in whole or not at all.

A judgement that has begun ends on the setup that it began with. A scorer whose adapters did not change is kept, with all that it
has loaded; one that is not needed any more is closed when its last judgement ends. A wrong file changes nothing: the reason goes
to the logger `guardrail.reload` and to `last`.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

from guardrail.audit import DecisionLog
from guardrail.errors import ClosedError
from guardrail.guard import Guard
from guardrail.judging import Setup
from guardrail.scoring import Scorer

if TYPE_CHECKING:
    from guardrail.adapter import Adapter
    from guardrail.config import Config

logger = logging.getLogger("guardrail.reload")
Fingerprint = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of a reload: the version of the policy that is in force now, and why a new one was refused."""

    accepted: bool
    version: str
    reason: str = ""


@dataclass(slots=True)
class _Shared:
    """A scorer or a log that generations share; the last of them closes it."""

    fingerprint: Fingerprint
    thing: Scorer | DecisionLog
    users: int = 0


@dataclass(slots=True)
class _Generation:
    """One loaded config; `leases` are judgements under way, and one for being in force."""

    setup: Setup
    scorers: Mapping[str, _Shared]
    log: _Shared | None
    leases: int = 1

    def shared(self) -> list[_Shared]:
        """All that must be closed at some time."""
        return [*self.scorers.values(), *([self.log] if self.log else [])]


@dataclass(slots=True)
class Counts:
    """Reloads so far."""

    accepted: int = 0
    refused: int = 0


def _accept(config: Config) -> None:
    """Nothing to object."""


class ReloadingGuard(Guard):
    """As `Guard.from_file`, and `reload` takes up a changed file; `watch` calls it when the file changes or on SIGHUP.

    Args:
        path: the config file.
        accept: looks at each new config before it is taken, and raises a `GuardrailError` to refuse it; a proxy checks and takes
            over its upstreams there.

    Raises:
        ConfigError, AdapterError, LogError: as `Guard.from_file`, for the first load only.
    """

    def __init__(self, path: str | Path, *, accept: Callable[[Config], None] = _accept) -> None:
        self._path = Path(path)
        self._accept = accept
        self._lock = threading.Lock()  # leases and the generation in force
        self._loading = threading.Lock()  # one reload at a time
        self._asked = threading.Event()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self.counts = Counts()
        self._taken = _state(self._path)
        self._generation = self._build(None)
        self._setup = self._generation.setup
        self.last = Reload(True, self.policy.version)
        """What came of the last reload."""

    def reload(self) -> Reload:
        """Load the file again; never raises for a wrong one. Blocks until the new setup is in force or refused."""
        with self._loading:
            old, self._taken = self._generation, _state(self._path)
            try:
                _check_open(old)
                new = self._build(old)
            except Exception as exc:  # whatever is wrong with it, the old one stays
                self.counts.refused += 1
                self.last = Reload(False, self.policy.version, f"{type(exc).__name__}: {exc}")
                logger.error("%s was not loaded again, the old policy stays: %s", self._path, self.last.reason)
                return self.last
            with self._lock:
                self._generation, self._setup = new, new.setup
            self._release(old)
            self.counts.accepted += 1
            self.last = Reload(True, self.policy.version)
            logger.info("%s was loaded again: policy %s", self._path, self.last.version)
            return self.last

    def watch(self, seconds: float = 1.0, *, on_sighup: bool = False) -> None:
        """Reload when the file changes, looked at every so many seconds, from a thread of its own.

        Call it once. A file is taken when it has not changed between two looks, so that none is read half-written. `on_sighup`
        reloads on that signal too, unchanged file or not; call it from the main thread then.
        """
        if on_sighup:
            signal.signal(signal.SIGHUP, self._on_signal)
        self._watcher = threading.Thread(target=self._watch, args=(seconds,), name="guardrail-reload", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Stop watching; the scorers and the log are closed when the judgements under way have ended."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
        with self._loading:
            if self._generation.leases:
                self._release(self._generation)

    @contextmanager
    def _lease(self) -> Iterator[Setup]:
        with self._lock:
            generation = self._generation
            _check_open(generation)
            generation.leases += 1
        try:
            yield generation.setup
        finally:
            self._release(generation)

    def _release(self, generation: _Generation) -> None:
        """Give a lease back; the last one closes what no other generation uses."""
        with self._lock:
            generation.leases -= 1
            if generation.leases:
                return
            for shared in generation.shared():
                shared.users -= 1
            unused = [shared.thing for shared in generation.shared() if not shared.users]
        for thing in unused:
            thing.close()

    def _build(self, old: _Generation | None) -> _Generation:
        """A generation by the file as it is now, tested; what was opened for it is closed again if it cannot be used."""
        from guardrail.config import load_config, load_stronger

        near = self._path.resolve().parent
        config, adapters = load_config(self._path)
        opened: list[_Shared] = []
        try:
            wanted = {"": adapters, **load_stronger(config, near)}
            scorers = {name: self._scorer(config, found, near, old, opened) for name, found in wanted.items()}
            stronger = {name: cast("Scorer", shared.thing) for name, shared in scorers.items() if name}
            guard = Guard.from_config(config, cast("Scorer", scorers[""].thing), stronger=stronger)
            guard.run_tests(config, self._path)
            log = _log(config, near, old, opened)
            self._accept(config)
        except BaseException:
            for shared in opened:
                shared.thing.close()
            raise
        if log is not None and config.log is not None:
            cast("DecisionLog", log.thing).configure(**config.log.options())
        setup = replace(guard._setup, log=cast("DecisionLog", log.thing) if log else None)
        if old is not None and all(old.scorers.get(name) is shared for name, shared in scorers.items()):
            setup = replace(setup, memory=old.setup.memory)  # the same scorers would say the same again
        generation = _Generation(setup, scorers, log)
        with self._lock:
            for shared in generation.shared():
                shared.users += 1
        return generation

    def _scorer(
        self, config: Config, adapters: Mapping[str, Adapter], near: Path, old: _Generation | None, opened: list[_Shared]
    ) -> _Shared:
        """The scorer for some adapters: the old one if nothing about it changed."""
        from guardrail.engine.engine import open_engine

        found = [(name, str(a.folder), a.version, a.manifest.positive) for name, a in sorted(adapters.items())]
        fingerprint = (*found, config.device, config.queue_limit)
        for shared in old.scorers.values() if old else ():
            if shared.fingerprint == fingerprint:
                return shared
        opened.append(
            _Shared(fingerprint, open_engine(adapters, device=config.device, near=near, queue_limit=config.queue_limit))
        )
        return opened[-1]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()

    def _watch(self, seconds: float) -> None:
        seen = self._taken
        while not self._stop.is_set():
            asked = self._asked.wait(seconds)
            self._asked.clear()
            now = _state(self._path)
            if asked or (now == seen and now != self._taken):
                self.reload()
            seen = now


def _check_open(generation: _Generation) -> None:
    if not generation.leases:
        raise ClosedError("the guard was closed")


def _log(config: Config, near: Path, old: _Generation | None, opened: list[_Shared]) -> _Shared | None:
    """The log: the one that is open if its path did not change."""
    if config.log is None:
        return None
    fingerprint = (str(near / config.log.path),)
    if old is not None and old.log is not None and old.log.fingerprint == fingerprint:
        return old.log
    opened.append(_Shared(fingerprint, DecisionLog(near / config.log.path, **config.log.options())))
    return opened[-1]


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
