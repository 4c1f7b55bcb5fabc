"""`python -m training`: the chain from a topic folder to a published adapter, as commands."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from guardrail.errors import GuardrailError
from training.errors import TrainingError
from training.names import PARTS
from training.recipe import Targets
from training.run import ADAPTERS, RUNS, Run, open_run
from training.score import ServedForm

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train topic adapters. RECIPE is a name in training/recipes/ or the path of a YAML file.",
)
console = Console()

Recipe = Annotated[str, typer.Argument(help="Recipe name, or path of a YAML file.", metavar="RECIPE")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, for example lora.r=32.")]
Runs = Annotated[Path, typer.Option(help="Folder for what is made on the way.", show_default="training/runs")]
Adapters = Annotated[Path, typer.Option(help="Folder for the adapter.", show_default="adapters")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Processes = Annotated[int, typer.Option(min=1, help="Processes, one thread each (accelerate launch).")]
FalseRefusal = Annotated[
    float | None, typer.Option(help="At most this share of related texts is refused; default: the recipe's.")
]
Leak = Annotated[float | None, typer.Option(help="At most this share of other texts is let in; default: the recipe's.")]
Form = Annotated[str, typer.Option(help="Served form: int8 or fp32.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("generate")
def generate_command(recipe: Recipe, overrides: Overrides = None, runs: Runs = RUNS, adapters: Adapters = ADAPTERS) -> None:
    """Compose facts and templates; one seed gives one data set, byte for byte."""
    _generate(open_run(recipe, overrides or (), runs, adapters))


@app.command("split")
def split_command(recipe: Recipe, overrides: Overrides = None, runs: Runs = RUNS, adapters: Adapters = ADAPTERS) -> None:
    """Put messages and composed examples into train, validation and test; print and keep what every part holds."""
    _split(open_run(recipe, overrides or (), runs, adapters))


@app.command("train")
def train_command(
    recipe: Recipe,
    resume: Resume = False,
    processes: Processes = 1,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    adapters: Adapters = ADAPTERS,
) -> None:
    """Train the LoRA adapter; writes checkpoints on the way and the adapter folder at the end."""
    _train(open_run(recipe, overrides or (), runs, adapters), recipe, overrides or [], resume, processes)


@app.command("calibrate")
def calibrate_command(
    recipe: Recipe,
    max_false_refusal: FalseRefusal = None,
    max_leak: Leak = None,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    adapters: Adapters = ADAPTERS,
) -> None:
    """Fit probabilities and thresholds on the validation part, for every served form."""
    _calibrate(open_run(recipe, overrides or (), runs, adapters), max_false_refusal, max_leak)


@app.command("evaluate")
def evaluate_command(
    recipe: Recipe,
    on: Annotated[Path | None, typer.Option(help="JSONL file with labels; default: the test part.", exists=True)] = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure on the topic's benchmark, training/topics/TOPIC/bench/.")
    ] = False,
    form: Form = "int8",
    as_json: AsJson = False,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    adapters: Adapters = ADAPTERS,
) -> None:
    """Measure the adapter: overall and per slice."""
    from training.evaluate import bench_of

    if bench and on is not None:
        raise TrainingError("give either --bench or --on, not both")
    run = open_run(recipe, overrides or (), runs, adapters)
    _evaluate(run, bench_of(run) if bench else on, _form(form), as_json)


@app.command("card")
def card_command(recipe: Recipe, overrides: Overrides = None, runs: Runs = RUNS, adapters: Adapters = ADAPTERS) -> None:
    """Write the model card from the figures that `evaluate` has written."""
    _card(open_run(recipe, overrides or (), runs, adapters))


@app.command("all")
def all_command(
    recipe: Recipe,
    resume: Resume = False,
    processes: Processes = 1,
    overrides: Overrides = None,
    runs: Runs = RUNS,
    adapters: Adapters = ADAPTERS,
) -> None:
    """The whole chain: generate, split, train, calibrate, evaluate on the test part, card."""
    run = open_run(recipe, overrides or (), runs, adapters)
    _generate(run)
    _split(run)
    _train(run, recipe, overrides or [], resume, processes)
    _calibrate(run, None, None)
    for form in run.recipe.forms:
        _evaluate(run, None, form, as_json=False)
    _card(run)


def _generate(run: Run) -> None:
    from training.dataset import compose

    composed = compose(run)
    console.print(f"composed {', '.join(f'{part} {len(rows)}' for part, rows in composed.items())} in {run.composed}")


def _split(run: Run) -> None:
    from training.dataset import assemble

    card = assemble(run)
    table = Table("", *PARTS, title=f"{run.recipe.title}: what every part holds")
    for group in ("label", "source"):
        rows = sorted({row for part in PARTS for row in card["parts"][part][group]})
        for row in rows:
            table.add_row(row, *(str(card["parts"][part][group].get(row, 0)) for part in PARTS))
    console.print(table)
    console.print(f"left out: {', '.join(f'{reason} {count}' for reason, count in card['dropped'].items()) or 'nothing'}")
    for conflict in card["conflicts"]:
        console.print(f"[yellow]two labels:[/yellow] {conflict}")
    console.print(f"by slice and register: {run.folder / 'DATA.md'}")


def _train(run: Run, recipe: str, overrides: list[str], resume: bool, processes: int) -> None:
    from training.train import launch, train

    options = [part for override in overrides for part in ("--set", override)] + (["--resume"] if resume else [])
    places = ["--runs", str(run.folder.parent), "--adapters", str(run.adapter.parent)]
    try:
        if processes == 1:
            train(run, resume=resume)
        elif code := launch(["train", recipe, *options, *places], processes):
            raise TrainingError(f"training in {processes} processes ended with exit code {code}; go on with --resume")
    except KeyboardInterrupt:
        typer.echo("stopped; --resume goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None


def _calibrate(run: Run, max_false_refusal: float | None, max_leak: float | None) -> None:
    from training.calibrate import calibrate

    given = {"max_false_refusal": max_false_refusal, "max_leak": max_leak}
    changed = {key: value for key, value in given.items() if value is not None}
    targets = Targets.model_validate({**run.recipe.targets.model_dump(), **changed})
    table = Table(
        "form", "temperature", "bias", "not_related", "related", "unsure", "AUROC", "ECE", title="Calibration on validation"
    )
    report = calibrate(run, targets)
    for form, row in report.items():
        keys = ("temperature", "bias", "not_related", "related", "unsure", "auroc", "expected_calibration_error")
        table.add_row(form, *(f"{row[key]:.4f}" for key in keys))
    console.print(table)
    for form, row in report.items():
        console.print(f"{form}: {row['how']}")


def _evaluate(run: Run, on: Path | None, form: ServedForm, as_json: bool) -> None:
    from training.evaluate import evaluate, show

    report = evaluate(run, on, form)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        show(report, console)


def _card(run: Run) -> None:
    from training.card import write_card

    console.print(f"model card: {write_card(run)}")


def _form(form: str) -> ServedForm:
    if form not in ("int8", "fp32"):
        raise TrainingError(f"--form {form}: use int8 or fp32")
    return form  # type: ignore[return-value]


def main() -> None:
    """Run the command line: a wrong input is one line on stderr and exit code 2, Ctrl-C 130."""
    # PEFT and transformers announce their own coming changes; nothing that a user here could act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")
    try:
        app()
    except GuardrailError as exc:
        typer.echo(f"error: {exc}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
