"""The scorer that runs in this process: adapters loaded, checked and served by worker threads.

A turn is scored in every view and window of its text, by each adapter. P(related) of one of them is
sigmoid(logit / temperature + bias), with the calibration of the form that is served; a topic's score is the lowest and the
highest of these. A turn is one entry of the queue and waits for nothing but a free worker: on a GPU those that wait run together.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Literal

from guardrail.adapter import Adapter, Calibration, Form
from guardrail.chat import Turn
from guardrail.engine.backend import Backend
from guardrail.engine.encoding import Encoded, Encoder
from guardrail.engine.queue import Flight, TurnQueue
from guardrail.engine.results import Results, turn_key
from guardrail.engine.views import views
from guardrail.engine.weights import is_peft, load_merged, load_tokenizer, resolve_base, tokenizer_folder
from guardrail.errors import CanaryError, ClosedError, GuardrailError, ScoringError
from guardrail.scoring import Part, Score, Scores, Topic

Device = Literal["auto", "cpu", "cuda"]
CACHED_TURNS = 4096
CANARY_TOLERANCE = 0.15
"""Of a canary's P(related): the forms differ by less than 0.05, a wrong base or swapped labels by far more."""
CLOSING_SECONDS = 10.0
"""Longest wait for a worker to finish the texts that it has begun."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """One adapter, loaded: turn -> rows -> logits -> score."""

    adapter: Adapter
    encoder: Encoder
    backend: Backend

    @property
    def calibration(self) -> Calibration:
        """Calibration of the served form."""
        return self.adapter.manifest.calibrated(self.backend.form)

    def rows(self, turn: Turn) -> list[Encoded]:
        """What goes through the model for a turn: each window of each view once. Raises `UnreadableError` for a text too long."""
        written = self.encoder.windows(turn)  # first, because it turns away what is too long
        more = [row for view in views(turn.text)[1:] for row in self.encoder.windows(Turn(view, turn.context))]
        return list(dict.fromkeys([*written, *more]))

    def logits(self, turn: Turn) -> list[float]:
        """Uncalibrated logit_related - logit_not_related of each row of a turn; what calibration is fitted on."""
        return self.backend.score(self.rows(turn))

    def parts(self, topic: str, turn: Turn) -> Iterator[Part]:
        """The score of each window of each view, one after the other."""
        for name, text in zip(("as written", "normalised"), views(turn.text), strict=False):
            view = Turn(text, turn.context)
            logits = self.backend.score(self.encoder.windows(view))
            for window, logit in zip(self.encoder.texts(view), logits, strict=True):
                yield Part(topic, name, window, probability(logit, self.calibration))

    def score(self, logits: Sequence[float]) -> Score:
        """Score from the logits of a turn's rows. Raises `ScoringError` if the model gave something that is no number."""
        found = [probability(logit, self.calibration) for logit in logits]
        if not all(map(math.isfinite, found)):
            raise ScoringError(f"{self.adapter.folder}: the model gave {logits} for a text")
        return Score(min(found), max(found))


def probability(logit: float, calibration: Calibration) -> float:
    """P(related): the sigmoid, in the form that neither overflows nor loses digits near 0."""
    scaled = logit / calibration.temperature + calibration.bias
    smaller = math.exp(-abs(scaled))
    return (1.0 if scaled >= 0 else smaller) / (1.0 + smaller)


class Engine:
    """A `scoring.Scorer` (and `Explaining`) on models in this process; `models` is topic -> model, and two topics may share one.

    Its threads are daemons and end with `close`.
    """

    def __init__(self, models: Mapping[str, Model], *, queue_limit: int = 256) -> None:
        self._models = dict(models)
        self._distinct = list({id(model): model for model in models.values()}.values())
        self._topics = MappingProxyType({name: _topic(model) for name, model in models.items()})
        self._results = Results(CACHED_TURNS)
        self._batch_tokens = min(model.backend.max_batch_tokens for model in self._distinct)
        workers = max(model.backend.workers for model in self._distinct)
        self._queue = TurnQueue(queue_limit, workers)
        self._threads = [threading.Thread(target=self._work, name=f"guardrail-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def topics(self) -> Mapping[str, Topic]:
        """The topics that every result of `submit` holds."""
        return self._topics

    @property
    def form(self) -> Form:
        """The form in which the models are served."""
        return self._distinct[0].backend.form

    @property
    def waiting(self) -> int:
        """Number of turns in the queue."""
        return len(self._queue)

    def submit(self, turn: Turn) -> Future[Scores]:
        """Start to score a turn. Never blocks; raises `OverloadedError` when the queue is full, `ClosedError` after `close`.

        The future ends with one `Score` per topic, with a `ScoringError`, or with `UnreadableError` for a text that is too long.
        A turn that is being scored already is not scored twice, one that was scored lately is answered from the cache.
        """
        key = turn_key(turn)
        if (known := self._results.get(key)) is None:
            return self._queue.join(key, turn)
        done: Future[Scores] = Future()
        done.set_result(known)
        return done

    def parts(self, turn: Turn) -> list[Part]:
        """The score of each window of each view, for every topic, in the caller's thread. Raises as a future of `submit` does."""
        try:
            return [part for topic, model in self._models.items() for part in model.parts(topic, turn)]
        except GuardrailError:
            raise
        except Exception as exc:
            raise _as_scoring_error(exc) from exc

    def close(self) -> None:
        """Stop the workers; what still waits ends with `ClosedError`."""
        for flight in self._queue.close():
            self._fail(flight, ClosedError("the engine was closed"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(CLOSING_SECONDS)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _work(self) -> None:
        while flights := self._queue.take(self._batch_tokens):
            started = perf_counter()
            try:
                self._answer(flights)
            except Exception as exc:  # a worker that ends would leave its turns, and later the queue, without an answer
                logger.exception("a worker failed")
                for flight in flights:
                    self._fail(flight, _as_scoring_error(exc))
            self._queue.worked(len(flights), perf_counter() - started)

    def _answer(self, flights: Sequence[Flight]) -> None:
        encoded: list[tuple[Flight, list[list[Encoded]]]] = []
        for flight in flights:
            try:
                encoded.append((flight, [model.rows(flight.turn) for model in self._distinct]))
            except Exception as exc:
                self._fail(flight, _as_scoring_error(exc))
        if encoded:
            self._answer_encoded(encoded)

    def _answer_encoded(self, encoded: Sequence[tuple[Flight, list[list[Encoded]]]]) -> None:
        """One forward pass per model; where it fails, once more in halves, so that only the turn at fault ends with an error."""
        try:
            scored = self._score([rows for _, rows in encoded])
        except Exception as exc:
            if len(encoded) == 1:
                self._fail(encoded[0][0], _as_scoring_error(exc))
                return
            middle = len(encoded) // 2
            self._answer_encoded(encoded[:middle])
            self._answer_encoded(encoded[middle:])
            return
        for (flight, _), scores in zip(encoded, scored, strict=True):
            self._results.put(flight.key, scores)
            for future in self._queue.land(flight):
                if future.set_running_or_notify_cancel():
                    future.set_result(scores)

    def _score(self, turns: Sequence[list[list[Encoded]]]) -> list[Scores]:
        """Scores of turns, given as rows per turn and model."""
        by_model: dict[int, list[Score]] = {}
        for index, model in enumerate(self._distinct):
            logits = iter(model.backend.score([row for rows in turns for row in rows[index]]))
            by_model[id(model)] = [model.score([next(logits) for _ in rows[index]]) for rows in turns]
        return [
            MappingProxyType({name: by_model[id(model)][turn] for name, model in self._models.items()})
            for turn in range(len(turns))
        ]

    def _fail(self, flight: Flight, error: GuardrailError) -> None:
        for future in self._queue.land(flight):
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def _as_scoring_error(exc: Exception) -> GuardrailError:
    if isinstance(exc, GuardrailError):
        return exc
    error = ScoringError(f"the model failed on this turn ({type(exc).__name__}: {exc})")
    error.__cause__ = exc
    return error


def _topic(model: Model) -> Topic:
    return Topic(model.calibration.thresholds(), model.adapter.manifest.name, model.adapter.version)


def open_engine(
    adapters: Mapping[str, Adapter],
    *,
    device: Device = "auto",
    near: Path | None = None,
    queue_limit: int = 256,
    cache_dir: Path | None = None,
    form: Form | None = None,
) -> Engine:
    """Load the adapters (topic name -> adapter), check their canaries and start the workers.

    `auto` is a CUDA device where there is one, else int8 on the CPU, compiled at the first start; `form` overrides what is served
    there (`fp32` on a CPU is the reference). `near` is the folder that relative paths of base weights start at.

    Raises `AdapterError`: an adapter or its base cannot be loaded, or (`CanaryError`) does not score its canaries as it should.
    """
    models: dict[tuple[Path, str], Model] = {}
    for adapter in adapters.values():
        key = (adapter.folder, adapter.version)
        if key not in models:
            models[key] = open_model(adapter, device=device, near=near, cache_dir=cache_dir, form=form)
            check_canaries(models[key])
    return Engine({name: models[a.folder, a.version] for name, a in adapters.items()}, queue_limit=queue_limit)


def open_model(
    adapter: Adapter,
    *,
    device: Device = "auto",
    near: Path | None = None,
    cache_dir: Path | None = None,
    form: Form | None = None,
) -> Model:
    """Load one adapter, without workers and unchecked; arguments and errors as for `open_engine`."""
    device, form = _placed(device, form)
    if form == "int8":
        from guardrail.engine.cache import compiled
        from guardrail.engine.int8 import Int8Backend

        folder = compiled(adapter, near, cache_dir)
        return Model(adapter, _encoder(adapter, folder), Int8Backend(folder))

    from guardrail.engine.torch_backend import TorchBackend

    base = resolve_base(adapter.manifest.base, near) if is_peft(adapter) else adapter.folder
    backend = TorchBackend(load_merged(adapter, near), adapter, device=device, form=form)
    return Model(adapter, _encoder(adapter, tokenizer_folder(adapter, base)), backend)


def _encoder(adapter: Adapter, folder: Path) -> Encoder:
    manifest = adapter.manifest
    return Encoder(
        load_tokenizer(folder),
        kind=manifest.kind,
        window_tokens=manifest.window_tokens,
        stride_tokens=manifest.stride_tokens,
        context_tokens=manifest.context_tokens,
    )


def _placed(device: Device, form: Form | None) -> tuple[Literal["cpu", "cuda"], Form]:
    """Device and form; torch is asked only where there is a driver, because asking it takes seconds."""
    if form == "int8" or (form == "fp32" and device != "cuda"):
        return "cpu", form
    if device == "cuda" or (device == "auto" and _has_gpu_driver()):
        import torch

        if torch.cuda.is_available():
            return "cuda", form or "bf16"
    if device == "cuda":
        raise GuardrailError("device is cuda, but torch finds no CUDA device. Fix: set device to auto or cpu")
    return "cpu", form or "int8"


def _has_gpu_driver() -> bool:
    nodes = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    return any(Path(node).exists() for node in nodes) or shutil.which("nvidia-smi") is not None


def check_canaries(model: Model) -> None:
    """Score the manifest's canaries; raises `CanaryError` at the first whose lowest score is off by more than the tolerance.

    That stops swapped labels, an adapter whose weights do nothing, and a base that it was not trained on.
    """
    for canary in model.adapter.manifest.canaries:
        found = model.score(model.logits(Turn(canary.input, canary.context))).low
        if abs(found - canary.score) > CANARY_TOLERANCE:
            raise CanaryError(
                f"{model.adapter.folder}: {canary.input!r} should score {canary.score:.3f} and scores {found:.3f}: labels are "
                f"swapped, the weights are damaged or the base is a different one. Fix: train or download the adapter again"
            )
