"""The model as its GGUF file holds it: hyper-parameters, weights, vocabulary.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the keys are those of a `llama` model with a `gpt2` tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from tokenizers import Tokenizer

    Array = npt.NDArray[np.float32]


CONTROL = 3
"""Kind of a token in `tokenizer.ggml.token_type` that stands for no text."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Hyper-parameters of a Llama decoder."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    theta: float
    """Base of the rotary positions."""
    epsilon: float
    """Of the RMS norms."""

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class Gguf:
    """A GGUF file, read."""

    shape: Shape
    weights: Mapping[str, Array]
    """Name in the file -> float32, (rows, columns); norms have one dimension."""
    fields: Mapping[str, Any]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, byte-level BPE that takes numbers digit by digit (`tokenizer.ggml.pre` smollm)."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        tokens: list[str] = self.fields["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in self.fields["tokenizer.ggml.merges"]]
        tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        types = self.fields["tokenizer.ggml.token_type"]
        tokenizer.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL])
        return tokenizer


def read_gguf(path: Path) -> Gguf:
    """Read a file whole and dequantise its weights, which takes seconds and 4 bytes a weight."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    weights = {
        # GGUF counts dimensions from the fastest; numpy from the slowest
        tensor.name: dequantize(tensor.data, tensor.tensor_type).reshape([int(size) for size in reversed(tensor.shape)])
        for tensor in reader.tensors
    }
    return Gguf(_shape(fields), weights, fields)


def _shape(fields: Mapping[str, Any]) -> Shape:
    return Shape(
        layers=fields["llama.block_count"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        width=fields["llama.embedding_length"],
        theta=fields["llama.rope.freq_base"],
        epsilon=fields["llama.attention.layer_norm_rms_epsilon"],
    )
