"""An adapter folder is found, read and versioned in one place; what is wrong with it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guardrail.adapter import Base, Calibration, Manifest, find_adapter, load_adapter, save_manifest
from guardrail.errors import AdapterError

MANIFEST = Manifest(name="a", topic="a", base=Base(id="b"), calibration={"fp32": Calibration(temperature=2.0)})


def test_round_trip_and_version(tmp_path: Path) -> None:
    """What is written is read; the version follows the content."""
    save_manifest(tmp_path, MANIFEST)
    first = load_adapter(tmp_path)
    assert first.manifest == MANIFEST
    save_manifest(tmp_path, MANIFEST.model_copy(update={"positive": 0}))
    assert load_adapter(tmp_path).version != first.version
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    assert len({load_adapter(tmp_path).version, first.version}) == 2


def test_calibration_of_a_form() -> None:
    """A form without its own calibration is read with that of fp32; an unfitted adapter at 0.5."""
    assert MANIFEST.calibrated("int8").temperature == 2.0
    assert Manifest(name="a", topic="a", base=Base(id="b")).calibrated("int8") == Calibration()


def test_found_near_the_config_before_bundled(tmp_path: Path) -> None:
    """A folder beside the config file is taken before a bundled adapter of the same name."""
    (tmp_path / "mine").mkdir()
    save_manifest(tmp_path / "mine", MANIFEST)
    assert find_adapter("mine", tmp_path) == tmp_path / "mine"
    assert find_adapter("./mine", tmp_path) == tmp_path / "mine"


def test_unknown_adapter(tmp_path: Path) -> None:
    """The error lists what comes with guardrail; a Hub id that cannot be had says how to get it."""
    with pytest.raises(AdapterError, match=r"Bundled: .*star-trek-minilm"):
        find_adapter("star-trek-minlm", tmp_path)
    with pytest.raises(AdapterError, match="hf download someone/something"):
        find_adapter("someone/something", tmp_path)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("{", "guardrail.json"),
        ('{"name": "a", "topic": "a", "base": {"id": "b"}, "window": 3}', "window"),
        ('{"name": "a", "topic": "a"}', "base"),
        ('{"name": "a", "topic": "a", "base": {"id": "b"}, "format": 2}', "format"),
    ],
)
def test_a_broken_manifest(tmp_path: Path, manifest: str, words: str) -> None:
    """File and key are named."""
    (tmp_path / "guardrail.json").write_text(manifest)
    with pytest.raises(AdapterError, match=words):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("names", "label", "positive"),
    [
        ({"0": "not_related", "1": "related"}, None, 1),
        ({"0": "related", "1": "not_related"}, None, 0),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None, 1),
        ({"0": "LABEL_0", "1": "LABEL_1"}, "LABEL_0", 0),
        ({"0": "yes", "1": "no"}, "yes", 0),
    ],
)
def test_checkpoints_of_others(tmp_path: Path, names: dict[str, str], label: str | None, positive: int) -> None:
    """A merged checkpoint tells by its label names which logit is the topic; generic names need `positive_label`."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForSequenceClassification"], "id2label": names}))
    manifest = load_adapter(tmp_path, label).manifest
    assert (manifest.positive, manifest.kind, manifest.base.id) == (positive, "decoder", str(tmp_path))


def test_an_unknown_label(tmp_path: Path) -> None:
    """A typo in positive_label is not silently the default."""
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "safe", "1": "unsafe"}}))
    with pytest.raises(AdapterError, match="safe, unsafe"):
        load_adapter(tmp_path, "unsave")


def test_an_empty_folder(tmp_path: Path) -> None:
    """A folder without any of the three files is no adapter."""
    with pytest.raises(AdapterError, match=r"neither guardrail\.json"):
        load_adapter(tmp_path)
