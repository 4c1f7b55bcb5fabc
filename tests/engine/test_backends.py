"""The torch path and the compiled form: right scores, whatever else is in the batch, and the same in both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.adapters import varied_sentences
from guardrail.adapter import Adapter, load_adapter, save_manifest
from guardrail.chat import Turn
from guardrail.engine import int8
from guardrail.engine.encoding import Encoded
from guardrail.engine.engine import Model, open_model
from guardrail.engine.int8 import Int8Backend
from guardrail.engine.quantise import column_scale
from guardrail.engine.torch_backend import chunks
from guardrail.engine.weights import load_classifier, load_merged
from guardrail.errors import AdapterError


def rows_of(model: Model, texts: list[str]) -> list[Encoded]:
    return [row for text in texts for row in model.rows(Turn(text))]


MIXED = [*varied_sentences()[::12], "x", "", "a longer text " * 30]


@pytest.mark.parametrize("name", ["trek_fp32", "qwen_fp32"])
def test_batch_equals_single(name: str, request: pytest.FixtureRequest) -> None:
    """Padding and neighbours change no score, and the order of rows is kept."""
    model: Model = request.getfixturevalue(name)
    rows = rows_of(model, MIXED)
    assert len({len(row.ids) for row in rows}) > 5
    single = [model.backend.score([row])[0] for row in rows]
    np.testing.assert_allclose(model.backend.score(rows), single, rtol=1e-3, atol=1e-3)
    assert max(single) - min(single) > 0.5


def test_torch_scores_what_transformers_scores(trek: Adapter, trek_fp32: Model, qwen: Adapter, qwen_fp32: Model) -> None:
    """One row by itself: the difference of the logits that the plain model gives."""
    for adapter, served in ((trek, trek_fp32), (qwen, qwen_fp32)):
        plain = load_merged(adapter)
        for row in rows_of(served, MIXED[:5]):
            segments = {"token_type_ids": torch.tensor([row.type_ids])} if served is trek_fp32 else {}
            with torch.inference_mode():
                logits = plain(torch.tensor([row.ids]), **segments).logits[0]
            assert served.backend.score([row])[0] == pytest.approx(float(logits[1] - logits[0]), abs=1e-3)


def test_decoder_is_pooled_by_length(qwen: Adapter, qwen_fp32: Model) -> None:
    """A row that ends in the padding id is pooled there, alone and beside longer rows; Transformers would look further left."""
    pad = load_classifier(qwen.folder).config.pad_token_id
    ends_in_padding, shorter, longer = (
        Encoded((5, 6, 7, pad), (0,) * 4),
        Encoded((5, 6, 7), (0,) * 3),
        Encoded((9,) * 9, (0,) * 9),
    )
    together = qwen_fp32.backend.score([ends_in_padding, longer, shorter])
    alone = [qwen_fp32.backend.score([row])[0] for row in (ends_in_padding, longer, shorter)]
    assert together == pytest.approx(alone, abs=1e-3)
    assert abs(together[0] - together[2]) > 0.01


def test_chunks_keep_the_budget() -> None:
    """Rows x longest stays within the budget, every row comes once, and a row that exceeds it comes alone."""
    lengths = [1, 2, 3, 8, 8, 8, 40]
    found = list(chunks(range(7), lengths, 16))
    assert found == [[0, 1, 2], [3, 4], [5], [6]]


def test_forms_agree(trek: Adapter, trek_fp32: Model, trek_int8: Model) -> None:
    """int8 against fp32 on 240 sentences: mean |dp| at most 0.01, at most 1 % in another band; many scores lie between."""
    turns = [Turn(text) for text in varied_sentences()]
    fp32, served = ([model.score(model.logits(turn)).low for turn in turns] for model in (trek_fp32, trek_int8))
    band = trek.manifest.calibrated("int8").thresholds().band
    assert np.mean([0.1 < score < 0.9 for score in fp32]) > 0.1
    assert 0 < np.abs(np.subtract(fp32, served)).mean() <= 0.01
    assert np.mean([band(one) is not band(other) for one, other in zip(fp32, served, strict=True)]) <= 0.01


def test_bf16_runs_on_a_cpu(trek: Adapter, trek_fp32: Model) -> None:
    """The GPU's form: the same code, near the same scores."""
    model = open_model(trek, device="cpu", form="bf16")
    rows = rows_of(model, MIXED)
    assert model.backend.form == "bf16"
    np.testing.assert_allclose(model.backend.score(rows), trek_fp32.backend.score(rows), atol=0.4)


@pytest.mark.parametrize("name", ["trek", "qwen"])
def test_export_is_exact_at_every_length(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Traced at 16 tokens, the graph gives torch's scores at 1, 2, 17 and 128: nothing of the tracing is left in it."""
    import onnxruntime

    adapter: Adapter = request.getfixturevalue(name)
    model: Model = request.getfixturevalue(f"{name}_fp32")
    int8._export(load_merged(adapter), adapter, tmp_path / int8.MODEL)
    backend = Int8Backend.__new__(Int8Backend)
    backend._session = onnxruntime.InferenceSession(str(tmp_path / int8.MODEL), providers=["CPUExecutionProvider"])
    backend._inputs = [entry.name for entry in backend._session.get_inputs()]
    rows = [Encoded(tuple(range(10, 10 + length)), (0,) * length) for length in (1, 2, 16, 17, 128)]
    np.testing.assert_allclose(backend.score(rows), model.backend.score(rows), rtol=1e-3, atol=1e-3)


def test_decoder_compiles(qwen: Adapter, qwen_fp32: Model) -> None:
    """A decoder's int8 form follows its fp32 form."""
    model = open_model(qwen, device="cpu", form="int8")
    rows = rows_of(model, varied_sentences()[::4])
    fp32, served = np.array(qwen_fp32.backend.score(rows)), np.array(model.backend.score(rows))
    assert np.corrcoef(fp32, served)[0, 1] > 0.99


def test_large_models_keep_weights_beside_the_graph(qwen: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past what a protobuf holds; the scores are the same."""
    merged = load_merged(qwen)
    scores = []
    for limit in (int8.LARGEST_FILE, 1000):
        monkeypatch.setattr(int8, "LARGEST_FILE", limit)
        folder = tmp_path / str(limit)
        folder.mkdir()
        int8.write_compiled(merged, qwen, folder)
        scores.append(Int8Backend(folder).score([Encoded((5, 6, 7), (0, 0, 0))]))
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "weights.bin"]
    assert scores[0] == scores[1]


def test_one_session_serves_many_threads(trek_int8: Model) -> None:
    """Scores from eight threads at once are those of one."""
    rows = rows_of(trek_int8, MIXED)
    expected = trek_int8.backend.score(rows)
    found: list[list[float]] = []
    threads = [threading.Thread(target=lambda: found.append(trek_int8.backend.score(rows))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


@pytest.mark.parametrize("spread", [0.02, 1.0, 50.0])
def test_int8_sums_cannot_saturate(spread: float) -> None:
    """The largest sum of two neighbouring products fits 16 bits, for weights of any size and for the worst of them."""
    chance = np.random.default_rng(0)
    worst = np.array([[1.0, 1.0, -1.0, 0.0], [1.0, 0.01, -0.99, 0.0], [1.0, 1.0, 1.0, 0.0]])
    for values in (chance.standard_t(3, (385, 64)) * spread, worst * spread):
        integers = np.rint(values / column_scale(values.astype(np.float32))).astype(int)
        assert np.abs(integers).max() <= 127
        pairs = np.pad(integers, ((0, len(integers) % 2), (0, 0))).reshape(-1, 2, integers.shape[1])
        largest = np.maximum(np.clip(pairs, 0, None).sum(1), np.clip(-pairs, 0, None).sum(1)).max()
        assert largest * 255 <= np.iinfo(np.int16).max
        assert largest > 100


def test_more_labels_than_two(qwen: Adapter, copied: Callable[[Adapter], Path]) -> None:
    """Against the others together: sigmoid of the margin is the softmax's probability; one label alone is refused."""
    from transformers import AutoModelForSequenceClassification

    folder = copied(qwen)
    for labels in (3, 1):
        torch.manual_seed(0)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            qwen.folder, num_labels=labels, ignore_mismatched_sizes=True
        )
        model.save_pretrained(folder)
        adapter = load_adapter(folder)
        if labels == 1:
            save_manifest(folder, adapter.manifest.model_copy(update={"positive": 0}))
            with pytest.raises(AdapterError, match=r"1 labels.*Fix"):
                open_model(load_adapter(folder), device="cpu", form="fp32")
            return
        margin = open_model(adapter, device="cpu", form="fp32").backend.score([Encoded((5, 6), (0, 0))])[0]
        with torch.inference_mode():
            expected = torch.softmax(model(torch.tensor([[5, 6]])).logits[0], 0)[1]
        assert 1 / (1 + np.exp(-margin)) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_scores_near_the_cpu(trek: Adapter, trek_fp32: Model) -> None:
    """bf16 on a GPU, in batches, against fp32 on the CPU."""
    model = open_model(trek, device="cuda")
    rows = rows_of(model, varied_sentences())
    assert model.backend.form == "bf16"
    np.testing.assert_allclose(model.backend.score(rows), trek_fp32.backend.score(rows), atol=0.4)
