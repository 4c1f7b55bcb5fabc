"""The compiled form: the merged model as an ONNX graph with int8 products, run by ONNX Runtime. Only making it needs torch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from guardrail.adapter import Adapter, Form
from guardrail.engine.encoding import Encoded
from guardrail.errors import AdapterError

MODEL = "model.onnx"
OPSET = 18
LARGEST_FILE = 1_900_000_000
"""Bytes; a protobuf ends at 2 GiB, what is larger keeps its weights in a file beside it."""


class Int8Backend:
    """One session for all threads; each row by itself: no padding, no waiting, one row a core."""

    form: Form = "int8"
    max_batch_tokens = 0

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.workers = min(8, _cores())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def score(self, batch: Sequence[Encoded]) -> list[float]:
        """logit_related - logit_not_related of each row."""
        return [self._margin(row) for row in batch]

    def _margin(self, row: Encoded) -> float:
        import numpy as np

        given = {"input_ids": row.ids, "token_type_ids": row.type_ids}
        feed = {name: np.asarray([given[name]], dtype=np.int64) for name in self._inputs}
        return float(self._session.run(None, feed)[0][0])


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_compiled(model: Any, adapter: Adapter, folder: Path) -> None:
    """Export a merged torch model, quantise it and write it to `folder`."""
    import onnx

    from guardrail.engine.quantise import quantise

    with TemporaryDirectory(dir=folder) as exported:
        _export(model, adapter, Path(exported) / MODEL)
        graph = quantise(Path(exported) / MODEL, model.config.get_text_config().vocab_size)
    large = sum(len(weight.raw_data) for weight in graph.graph.initializer) > LARGEST_FILE
    onnx.save(graph, folder / MODEL, save_as_external_data=large, location="weights.bin")


def _export(model: Any, adapter: Adapter, path: Path) -> None:
    """ONNX with free numbers of rows and tokens, by tracing: 1 s; torch.export takes 8 s and more packages."""
    import torch

    from guardrail.engine.torch_backend import Margin

    shown = (torch.ones(1, 16, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long))
    axes = {name: {0: "rows", 1: "tokens"} for name in ("input_ids", "token_type_ids")}
    named: dict[str, Any] = {"input_names": list(axes), "output_names": ["margin"], "dynamic_axes": axes, "opset_version": OPSET}
    with warnings.catch_warnings(), torch.inference_mode(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")  # that it traces, and that there is a newer exporter
        try:
            torch.onnx.export(Margin(model, adapter).eval(), shown, str(path), dynamo=False, **named)
        except torch.onnx.errors.OnnxExporterError as exc:
            reason = str(exc).partition("\n")[0]
            raise AdapterError(f"{adapter.folder}: cannot be compiled ({reason}). Fix: serve it with device: cuda") from exc
