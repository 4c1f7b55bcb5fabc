"""Encoded turns as batches: neighbours of similar length, padded to the longest of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Sampler

from training.data import Example

if TYPE_CHECKING:
    from guardrail.engine.encoding import Encoder

Row = dict[str, list[int] | int]
NEIGHBOURS = 40
"""Batches whose rows are sorted by length together: fewer pads, and still other neighbours in every epoch."""


class Windows(Dataset[Row]):
    """Every window of every example, with the example's label."""

    def __init__(self, examples: Sequence[Example], encoder: Encoder) -> None:
        self.rows: list[Row] = [
            {"input_ids": list(window.ids), "token_type_ids": list(window.type_ids), "labels": example.target}
            for example in examples
            for window in encoder.windows(example.turn)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def by_length(self) -> Windows:
        """The same rows, short ones first: for evaluation, where the order does not matter."""
        self.rows.sort(key=lambda row: len(row["input_ids"]))  # type: ignore[arg-type]
        return self

    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [len(row["input_ids"]) for row in self.rows]  # type: ignore[arg-type]


class SimilarLengths(Sampler[int]):
    """Order of one epoch; it depends on the seed and the epoch alone, so a resumed run goes on where the killed one was."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed * 1000 + self.epoch())
        shuffled = torch.randperm(len(self.lengths), generator=chance).tolist()
        size = NEIGHBOURS * self.batch
        pools = [sorted(shuffled[at : at + size], key=self.lengths.__getitem__) for at in range(0, len(shuffled), size)]
        batches = [pool[at : at + self.batch] for pool in pools for at in range(0, len(pool), self.batch)]
        # A short batch anywhere but at the end would shift all the others.
        whole = [batch for batch in batches if len(batch) == self.batch]
        order = torch.randperm(len(whole), generator=chance).tolist()
        yield from (index for at in order for index in whole[at])
        yield from (index for batch in batches if len(batch) < self.batch for index in batch)


class Pad:
    """Rows to tensors [batch, longest]: `input_ids`, `attention_mask`, and with `segments` `token_type_ids`; `labels` [batch]."""

    def __init__(self, pad_id: int, segments: bool) -> None:
        self.pad_id, self.segments = pad_id, segments

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """One batch."""
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        batch = {
            "input_ids": _pad(ids, self.pad_id),
            "attention_mask": _pad([torch.ones_like(each) for each in ids], 0),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
        if self.segments:
            batch["token_type_ids"] = _pad([torch.tensor(row["token_type_ids"]) for row in rows], 0)
        return batch


def _pad(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
