"""The compiled cache: made once, found again without torch, made again when damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guardrail.adapter import Adapter, Calibration, load_adapter, save_manifest
from guardrail.chat import Turn
from guardrail.engine import cache as cache_module
from guardrail.engine.cache import compile_adapter, compiled
from guardrail.engine.encoding import Encoded
from guardrail.engine.engine import open_model
from guardrail.engine.int8 import Int8Backend
from guardrail.errors import AdapterError, BaseModelError

ROW = Encoded((5, 6, 7), (0, 0, 0))
SERVE = """
import json, sys
from pathlib import Path
from guardrail.adapter import load_adapter
from guardrail.chat import Turn
from guardrail.engine.engine import open_engine
with open_engine({"topic": load_adapter(Path(sys.argv[1]))}, form="int8") as engine:
    score = engine.submit(Turn("Who commands the starship?")).result()["topic"].low
print(json.dumps([score, sorted({"torch", "transformers", "peft", "onnx"} & set(sys.modules))]))
"""


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the adapters that are compiled during a test."""
    done: list[str] = []
    plain = cache_module.write_compiled
    monkeypatch.setattr(
        cache_module,
        "write_compiled",
        lambda model, adapter, folder: (done.append(adapter.manifest.name), plain(model, adapter, folder)),
    )
    return done


def serve(folder: Path, home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "GUARDRAIL_CACHE": str(home)}
    return subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", "-c", SERVE, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_compiled_once(qwen: Adapter, tmp_path: Path, builds: list[str]) -> None:
    """The second time nothing is done, and the folder holds what its digests say."""
    folder = compiled(qwen, home=tmp_path)
    assert compiled(qwen, home=tmp_path) == folder
    assert builds == ["qwen"]
    assert sorted(path.name for path in folder.iterdir()) == ["digests.json", "model.onnx", "tokenizer.json"]
    assert sorted(json.loads((folder / "digests.json").read_text())) == ["model.onnx", "tokenizer.json"]


def test_two_processes_compile_once(qwen: Adapter, tmp_path: Path) -> None:
    """Started at once, one compiles and the other waits and finds it; both serve the same, and only one needed torch."""
    processes = [serve(qwen.folder, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    (first, loaded), (second, also_loaded) = (json.loads(out) for out, _ in outputs)
    assert [error for _, error in outputs] == ["", ""]
    assert first == second
    assert sorted([loaded, also_loaded], key=len)[0] == []
    assert "torch" in loaded + also_loaded
    assert not list((tmp_path / "compiled").glob("*.new"))


def test_served_without_torch(trek: Adapter, cache: Path) -> None:
    """A fresh interpreter loads neither torch nor transformers for an adapter that was compiled."""
    score = open_model(trek, form="int8").logits(Turn("Who commands the starship?"))
    out, error = serve(trek.folder, cache).communicate(timeout=60)
    assert error == ""
    found, heavy = json.loads(out)
    assert heavy == []
    assert found == pytest.approx(1 / (1 + 2.718281828 ** -score[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.onnx", "cut short"), ("model.onnx", "changed"), ("tokenizer.json", "gone"), ("digests.json", "changed")],
)
def test_damage_is_repaired(qwen: Adapter, cache: Path, tmp_path: Path, builds: list[str], name: str, damage: str) -> None:
    """A compiled folder that is not whole is made again, with the same scores."""
    whole = compiled(qwen, home=cache)
    builds.clear()
    folder = tmp_path / "compiled" / whole.name
    shutil.copytree(whole, folder)
    data = (folder / name).read_bytes()
    middle = len(data) // 2
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data[:middle] + (b"" if damage == "cut short" else b"?" + data[middle + 1 :]))
    assert compiled(qwen, home=tmp_path) == folder
    assert builds == ["qwen"]
    assert Int8Backend(folder).score([ROW]) == Int8Backend(whole).score([ROW])


def test_leftovers_of_a_killed_process(qwen: Adapter, tmp_path: Path) -> None:
    """Half a folder that was being written is cleared away."""
    folder = compiled(qwen, home=tmp_path)
    aside = folder.with_name(f"{folder.name}.new")
    folder.rename(aside)
    (aside / "digests.json").unlink()
    assert compiled(qwen, home=tmp_path) == folder
    assert not aside.exists()


def test_failure_leaves_nothing_that_looks_whole(qwen: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while compiling is raised, and the next start compiles."""
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "write_compiled", lambda *_: (_ for _ in ()).throw(MemoryError("too large")))
        with pytest.raises(MemoryError):
            compiled(qwen, home=tmp_path)
    assert (compiled(qwen, home=tmp_path) / "model.onnx").is_file()


def test_key_is_the_content(qwen: Adapter, copied: Callable[[Adapter], Path], tmp_path: Path, builds: list[str]) -> None:
    """Other weights or another positive label are compiled anew; another calibration is not, and neither is another place."""
    folder = copied(qwen)
    first = compiled(qwen, home=tmp_path)
    save_manifest(folder, qwen.manifest.model_copy(update={"calibration": {"int8": Calibration(temperature=3.0)}}))
    assert compiled(load_adapter(folder), home=tmp_path) == first
    save_manifest(folder, qwen.manifest.model_copy(update={"positive": 0}))
    swapped = compiled(load_adapter(folder), home=tmp_path)
    assert Int8Backend(swapped).score([ROW])[0] == pytest.approx(-Int8Backend(first).score([ROW])[0], abs=1e-4)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert compiled(load_adapter(folder), home=tmp_path) not in (first, swapped)
    assert len(builds) == 3


def test_compile_for_another_machine(trek: Adapter, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `compile_adapter` writes serves as the cache where the base is missing and nothing can be written."""
    compile_adapter(trek, cache)
    shutil.copytree(cache / "compiled", tmp_path / "image/compiled", ignore=shutil.ignore_patterns("*.lock"))
    monkeypatch.setenv("GUARDRAIL_CACHE", str(tmp_path / "image"))
    monkeypatch.setattr(cache_module, "resolve_base", lambda *_: (_ for _ in ()).throw(BaseModelError("no base here")))
    monkeypatch.setattr(cache_module, "exclusive", lambda *_: (_ for _ in ()).throw(OSError("read-only file system")))
    assert open_model(trek, form="int8").logits(Turn("Who is Spock?"))


def test_cache_that_cannot_be_written(qwen: Adapter, tmp_path: Path) -> None:
    """The error names the folder and the variable that moves it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match=r"cannot be written.*GUARDRAIL_CACHE"):
        compiled(qwen, home=tmp_path / "file")


def test_compiling_is_announced(
    qwen: Adapter, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line in the log, nothing on the streams where no one watches."""
    with caplog.at_level("INFO", "guardrail"):
        compiled(qwen, home=tmp_path)
    assert [record.message for record in caplog.records] == ["compiling qwen for this computer, once"]
    assert capfd.readouterr() == ("", "")
