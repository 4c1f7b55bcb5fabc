"""A model in torch: bf16 on a CUDA device, or fp32 on a CPU, where it is the oracle that the compiled form is held against.

Imports torch; the engine imports this module only where the compiled form does not serve.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guardrail.adapter import Adapter, Form
from guardrail.engine.encoding import Encoded
from guardrail.errors import AdapterError

CPU_BATCH_TOKENS = 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Margin(nn.Module):
    """logit_related - log(sum(exp(other logits))) of each row; with two labels, logit_related - logit_not_related.

    A decoder is pooled here, at the last token by length: Transformers looks for the last id that is not the padding id, which is
    wrong for a text that ends in that id.
    """

    def __init__(self, model: Any, adapter: Adapter) -> None:
        super().__init__()
        self.model = model
        self.decoder = adapter.manifest.kind == "decoder"
        self.positive = adapter.manifest.positive
        self.others = [index for index in range(model.config.num_labels) if index != self.positive]
        self.typed = "token_type_ids" in inspect.signature(model.forward).parameters and not self.decoder
        if not self.others or self.positive >= model.config.num_labels:
            found = f"{model.config.num_labels} labels, related at index {self.positive}"
            raise AdapterError(f"{adapter.folder}: {found}. Fix: a head of two labels")

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(rows,) margins in fp32 of (rows, tokens) ids; no mask: nothing is padded."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self._decoded(input_ids, mask) if self.decoder else self._encoded(input_ids, token_type_ids, mask)
        return logits[:, self.positive] - torch.logsumexp(logits[:, self.others], dim=1)

    def _encoded(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        segments = {"token_type_ids": token_type_ids} if self.typed else {}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits
        return logits.float()

    def _decoded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        body = getattr(self.model, self.model.base_model_prefix)
        hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(hidden.shape[0], device=hidden.device), attention_mask.sum(dim=1) - 1]
        logits: Tensor = self.model.score(last)
        return logits.float()


class TorchBackend:
    """Right-padded batches, sorted by length; on a GPU one thread prepares the next batch while the other's runs."""

    def __init__(self, model: Any, adapter: Adapter, *, device: str, form: Form) -> None:
        self.form: Form = form
        self.workers = 2 if device == "cuda" else 1
        self.max_batch_tokens = _gpu_batch_tokens(model) if device == "cuda" else CPU_BATCH_TOKENS
        self._device = torch.device(device)
        self._padding = int(model.config.get_text_config().pad_token_id or 0)
        self._margin = Margin(model, adapter).to(self._device, DTYPES[form]).eval()
        self._forward = threading.Lock()
        if device == "cpu":
            torch.set_num_threads(1)  # texts are short: more threads wait for each other, measured 5 to 15 times slower

    def score(self, batch: Sequence[Encoded]) -> list[float]:
        """logit_related - logit_not_related of each row, in the order of `batch`."""
        order = sorted(range(len(batch)), key=lambda index: len(batch[index].ids))
        margins = [0.0] * len(batch)
        for chunk in chunks(order, [len(row.ids) for row in batch], self.max_batch_tokens):
            for index, margin in zip(chunk, self._run([batch[index] for index in chunk]), strict=True):
                margins[index] = margin
        return margins

    def _run(self, rows: Sequence[Encoded]) -> list[float]:
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([[*row.ids, *[self._padding] * (width - len(row.ids))] for row in rows])
        types = torch.tensor([[*row.type_ids, *[0] * (width - len(row.ids))] for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        with self._forward, torch.inference_mode():
            margins = self._margin(ids.to(self._device), types.to(self._device), mask.to(self._device))
            found: list[float] = margins.tolist()
        return found


def chunks(order: Sequence[int], lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Split rows that are sorted by length so that rows x longest stays within `budget` tokens; one row may exceed it."""
    chunk: list[int] = []
    for index in order:
        if chunk and lengths[index] * (len(chunk) + 1) > budget:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk


def _gpu_batch_tokens(model: Any) -> int:
    """Tokens of one forward pass of about 25 ms: 2 FLOP per weight and token, at 400 TFLOP/s; 1024 to 16384."""
    weights = sum(weight.numel() for weight in model.parameters())
    return max(1024, min(16384, int(0.025 * 400e12 / (2 * weights))))
