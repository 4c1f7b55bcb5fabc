"""LoRA training with PEFT, Trainer and Accelerate.

Texts are encoded and the base is loaded by the code that serves them (`guardrail.engine`). A checkpoint is written every
`save_steps`; a run that was killed goes on from the last whole one with `--resume` and ends at the same weights. One torch
thread a process: on a CPU, `--processes 2` uses two cores better than two threads do.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.adapter import Base, Manifest, save_manifest, sha256_of
from training.data import LABELS, write_json
from training.errors import TrainingError
from training.names import Part
from training.recipe import Recipe
from training.run import Run

if TYPE_CHECKING:
    from transformers import Trainer

TRAINED_ON: tuple[Part, ...] = ("train", "validation")
"""Parts whose hashes stand in the manifest; test is only measured on."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m training ARGUMENTS` in several processes with `accelerate launch`; returns the exit code.

    Ctrl-C ends them at once, which a resumable run survives. `multi_gpu` is the launcher's name for data parallel, on a CPU too.
    """
    import torch

    options = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--num_cpu_threads_per_process", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *plain, "-m", "training", *arguments]
    environment = {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
    with subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True) as launched:
        try:
            return launched.wait()
        except BaseException:
            os.killpg(launched.pid, signal.SIGKILL)
            raise


def train(run: Run, *, resume: bool = False) -> None:
    """Train a recipe on its split and write the adapter. Raises `TrainingError` if there is nothing fitting to resume."""
    import torch

    torch.set_num_threads(1)
    checkpoint = _checkpoint(run, resume)
    started = time.monotonic()
    trainer = build_trainer(run)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        _log(run, trainer, time.monotonic() - started)
        export(run, trainer.model)


def build_trainer(run: Run) -> Trainer:
    """The Trainer of a recipe: encoded data, model with LoRA, optimiser settings."""
    from transformers import set_seed
    from transformers.utils import logging

    from guardrail.engine.encoding import Encoder
    from guardrail.engine.weights import load_tokenizer, resolve_base
    from training.batches import Pad, Windows

    logging.set_verbosity_error()
    recipe = run.recipe
    path = resolve_base(recipe.base, near=run.near)
    windows = {
        "window_tokens": recipe.window_tokens,
        "stride_tokens": recipe.stride_tokens,
        "context_tokens": recipe.context_tokens,
    }
    encoder = Encoder(load_tokenizer(path), kind=recipe.kind, **windows)
    set_seed(recipe.seed)
    model = _model(recipe, path)
    data = {part: Windows(run.examples(part), encoder) for part in TRAINED_ON}
    return _trainer_class()(
        model=model,
        args=_arguments(run),
        train_dataset=data["train"],
        eval_dataset=data["validation"].by_length(),
        data_collator=Pad(model.config.pad_token_id or 0, segments=recipe.kind == "encoder"),
        compute_loss_func=_loss([row["labels"] for row in data["train"].rows], recipe),
        compute_metrics=_metrics,
    )


def _model(recipe: Recipe, path: Path) -> Any:
    """The base with LoRA on it; what is trained is fp32 whatever the base is."""
    import torch
    from peft import LoraConfig, TaskType, get_peft_model

    from guardrail.engine.weights import load_classifier

    model = load_classifier(path, num_labels=len(LABELS), dtype=_dtype(recipe))
    # A GGUF file is dequantised when it is loaded; Trainer turns the mark that stays behind away.
    model.is_quantized = False
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: index for index, label in enumerate(LABELS)}
    lora = recipe.lora
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        modules_to_save=list(lora.whole),
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return adapted


def _dtype(recipe: Recipe) -> Any:
    import torch

    half = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[recipe.train.precision]
    return half if torch.cuda.is_available() else torch.float32


def _arguments(run: Run) -> Any:
    import torch
    from transformers import TrainingArguments

    recipe, gpu = run.recipe, torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.train.batch % processes:
        raise TrainingError(
            f"{run.recipe_file}: train.batch: {recipe.train.batch} rows cannot be shared by {processes} processes"
        )
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=recipe.train.batch // processes,
        per_device_eval_batch_size=32,
        gradient_accumulation_steps=recipe.train.accumulation,
        num_train_epochs=recipe.train.epochs,
        learning_rate=recipe.train.lr,
        lr_scheduler_type=recipe.train.schedule,
        warmup_steps=recipe.train.warmup,
        weight_decay=recipe.train.weight_decay,
        optim="adamw_torch",
        fp16=gpu and recipe.train.precision == "fp16",
        bf16=gpu and recipe.train.precision == "bf16",
        seed=recipe.seed,
        save_steps=recipe.train.save_steps,
        save_total_limit=2,
        eval_strategy="epoch",
        logging_steps=50,
        report_to="none",
        use_cpu=not gpu,
        ddp_backend=None if gpu or processes == 1 else "gloo",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=not sys.stderr.isatty(),
    )


def _trainer_class() -> type[Trainer]:
    from transformers import Trainer

    from training.batches import SimilarLengths

    class LengthTrainer(Trainer):  # type: ignore[misc]
        """Trainer whose order of rows depends on seed and epoch alone."""

        def _get_train_sampler(self, train_dataset: Any = None) -> SimilarLengths:
            rows = train_dataset if train_dataset is not None else self.train_dataset
            batch = self.args.train_batch_size * self.args.world_size
            return SimilarLengths(rows.lengths(), batch, self.args.seed, lambda: int(self.state.epoch or 0))

    return LengthTrainer


def _loss(targets: Sequence[Any], recipe: Recipe) -> Any:
    """Cross entropy, smoothed and weighed as the recipe says; `count` is the number of rows of the whole optimiser step."""
    import torch
    from torch.nn.functional import cross_entropy

    shares = torch.bincount(torch.tensor(targets), minlength=len(LABELS)) / len(targets)
    weights = 1 / (len(LABELS) * shares) if recipe.train.class_weights else None

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        smoothing = recipe.train.label_smoothing
        device_weights = None if weights is None else weights.to(labels.device)
        summed = cross_entropy(outputs.logits.float(), labels, device_weights, reduction="sum", label_smoothing=smoothing)
        return summed / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def _metrics(predicted: Any) -> dict[str, float]:
    from training.metrics import auroc

    margins = (predicted.predictions[:, 1] - predicted.predictions[:, 0]).astype("float64")
    truth = predicted.label_ids == 1
    return {"accuracy": float(((margins > 0) == truth).mean()), "auroc": auroc(margins, truth)}


def _checkpoint(run: Run, resume: bool) -> Path | None:
    """The checkpoint to go on from; without `resume` old ones are removed."""
    data = {part: sha256_of(run.file(part)) for part in TRAINED_ON if run.examples(part)}
    stamp = {"recipe": run.recipe.model_dump(mode="json"), "data": data}
    path = run.checkpoints / "made_from.json"
    first = int(os.environ.get("RANK", "0")) == 0
    if resume and path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != stamp:
            raise TrainingError(f"{run.checkpoints} was made from another recipe or data set. Fix: train without --resume")
        return last_checkpoint(run.checkpoints)
    if first:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        write_json(path, stamp)
    return None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: a kill while one is written leaves it without a readable `trainer_state.json`."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((path for path in found if _whole(path / "trainer_state.json")), None)


def _whole(path: Path) -> bool:
    try:
        return "global_step" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _log(run: Run, trainer: Trainer, seconds: float) -> None:
    """train.json: what was trained, with what, how long it took and how it went."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    write_json(
        run.folder / "train.json",
        {
            "recipe": run.recipe.model_dump(mode="json"),
            "rows": len(trainer.train_dataset),
            "parameters": trainer.model.num_parameters(only_trainable=True),
            "steps": trainer.state.global_step,
            "seconds": round(seconds, 1),
            "seconds_per_epoch": round(seconds / run.recipe.train.epochs, 1),
            "processes": trainer.args.world_size,
            "versions": {"python": platform.python_version(), **packages},
            "history": trainer.state.log_history,
        },
    )


def export(run: Run, model: Any) -> None:
    """Write the adapter folder: PEFT's files with the Hub id of the base, and a manifest that is not calibrated yet."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = run.recipe.base.id
    config.target_modules = sorted(config.target_modules)
    config.modules_to_save = sorted(set(config.modules_to_save))
    model.save_pretrained(str(run.adapter), save_embedding_layers=False)
    (run.adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty form, which names a folder of this machine
    save_manifest(run.adapter, manifest_of(run))


def manifest_of(run: Run) -> Manifest:
    """The manifest of a freshly trained adapter."""
    from guardrail.engine.weights import resolve_base, weights_sha256

    recipe = run.recipe
    digest = recipe.base.sha256 or weights_sha256(resolve_base(recipe.base, near=run.near))
    return Manifest(
        name=recipe.adapter,
        topic=recipe.topic,
        base=Base(**{**recipe.base.model_dump(), "sha256": digest}),
        kind=recipe.kind,
        window_tokens=recipe.window_tokens,
        stride_tokens=recipe.stride_tokens,
        context_tokens=recipe.context_tokens,
        data={"recipe": recipe.name, "seed": recipe.seed, **{f"{part}_sha256": sha256_of(run.file(part)) for part in TRAINED_ON}},
    )
