"""The command `guardrail`: serve, demo, score, explain, check, replay, diff, audit, schema, compile, bench.

Exit codes: 0 done, 1 a check or test failed, 2 wrong input (config, adapter, arguments, lines of a file), 130 stopped by Ctrl-C.
Each command imports what it needs when it runs, so that `guardrail --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from guardrail.errors import GuardrailError

if TYPE_CHECKING:
    from guardrail.config import TestConfig
    from guardrail.guard import Explanation, Guard

DEFAULT_ADAPTER = "star-trek-minilm"

app = typer.Typer(
    name="guardrail",
    help="Keeps a chatbot on its topic. Exit codes: 0 done, 1 a check failed, 2 wrong input, 130 stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A guardrail.yaml.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def main() -> None:
    """Entry point: mistakes end with one line on stderr, never with a traceback."""
    try:
        app()
    except GuardrailError as exc:
        _fail(str(exc))


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        from guardrail import __version__

        typer.echo(f"guardrail {__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Keeps a chatbot on its topic."""


@app.command()
def score(
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="JSON lines; - reads stdin.")] = "-",
    adapter: Annotated[str | None, typer.Option(help=f"Bundled name, folder or Hub id. Default: {DEFAULT_ADAPTER}.")] = None,
    config: Annotated[Path | None, typer.Option(help="Take adapter, thresholds and context from this file.")] = None,
    topic: Annotated[str | None, typer.Option(help="Topic of the config to score; default: its first allowed one.")] = None,
    form: Annotated[str | None, typer.Option(help="int8, fp32 or bf16; default: the fastest this machine has.")] = None,
) -> None:
    """Score a JSON lines file: {"input": ..., "context": [...]} in, the same rows with score, band and predicted out."""
    from guardrail.jsonl import score_lines

    if adapter is not None and config is not None:
        _fail("give either --adapter or --config, not both")
    bad: list[int] = []

    def report(number: int, reason: str) -> None:
        bad.append(number)
        typer.echo(f"{file}:{number}: {reason}", err=True)

    with _opened(file) as lines, _scorer(adapter, config, topic, form) as (scorer, name, thresholds, turns):
        for row in score_lines(_with_progress(lines, file), scorer, name, thresholds, turns, report):
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    if bad:
        _fail(f"{len(bad)} line{'s' if len(bad) > 1 else ''} of {file} could not be scored")


@contextmanager
def _opened(file: str) -> Iterator[Iterable[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        with open(file, "rb") as lines:
            yield lines
    except OSError as exc:
        _fail(f"{file}: {exc.strerror}")


def _with_progress(lines: Iterable[bytes], file: str) -> Iterable[bytes]:
    """A progress bar over a file's lines, where a person is watching."""
    if file == "-" or not sys.stderr.isatty():
        return lines
    from rich.console import Console
    from rich.progress import track

    rows = list(lines)
    return track(rows, description="scoring", console=Console(stderr=True), transient=True)


@contextmanager
def _scorer(adapter: str | None, config: Path | None, topic: str | None, form: str | None) -> Iterator[tuple[Any, ...]]:
    """A scorer, the name of the topic to report, its thresholds and the number of context turns."""
    from guardrail.adapter import find_adapter, load_adapter
    from guardrail.config import ContextConfig, load_config
    from guardrail.engine.engine import open_engine

    if form not in (None, "int8", "fp32", "bf16"):
        _fail(f"--form must be int8, fp32 or bf16, not {form!r}")
    if config is None:
        found = load_adapter(find_adapter(adapter or DEFAULT_ADAPTER))
        adapters, name, turns, by_hand = {found.manifest.topic: found}, found.manifest.topic, ContextConfig().turns, {}
    else:
        loaded, every = load_config(config)
        name = topic or next(iter([*loaded.allow, *loaded.topics]))
        if name not in every:
            _fail(f"{config} has no topic {name!r}; it has {', '.join(every)}")
        adapters, turns, by_hand = {name: every[name]}, loaded.context.turns, loaded.thresholds()
    scorer = open_engine(adapters, near=config.resolve().parent if config else None, form=form)  # type: ignore[arg-type]
    try:
        yield scorer, name, by_hand.get(name, scorer.topics[name].thresholds), turns
    finally:
        scorer.close()


@app.command()
def check(
    config: ConfigPath,
    mutate: Annotated[bool, typer.Option("--mutate", help="Repeat each test with typos, case, look-alikes, padding.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a config: everything wrong with it at once, then its tests with the real adapters. Exit code 1 if a test fails.

    Mutated tests that flip are printed, and are no failures.
    """
    from guardrail.config import load_config
    from guardrail.guard import Guard

    loaded, _ = load_config(config)
    with Guard.from_file(config, run_tests=False, log=False) as guard:
        results = [guard.run_test(test) for test in loaded.tests]
        flips = [flip for result in results if mutate and result.passed for flip in _flips(guard, result.test)]
    failed = sum(not result.passed for result in results)
    if as_json:
        tests = [{"say": r.test.say, "expect": r.test.expect.value, "passed": r.passed, **_plain(r.decision)} for r in results]
        typer.echo(json.dumps({"config": str(config), "failed": failed, "tests": tests, "flips": [flip for flip, _ in flips]}))
    else:
        for result in results:
            typer.echo(f"{'ok    ' if result.passed else 'FAILED'} {result}")
        for flip, told in flips:
            typer.echo(f"flips  {flip['kind']}: {told}")
        flipped = f", {len(flips)} mutations flip" if mutate else ""
        typer.echo(f"{config}: no mistakes; {len(results)} tests, {failed} failed{flipped}")
    raise typer.Exit(1 if failed else 0)


def _flips(guard: Guard, test: TestConfig) -> Iterator[tuple[dict[str, Any], str]]:
    """The mutations of a test that end otherwise, as JSON values and in words."""
    from guardrail.mutations import mutations

    for mutation in mutations(test.say):
        result = guard.run_test(test.model_copy(update={"say": mutation.text}))
        if not result.passed:
            facts = {"of": test.say, "kind": mutation.kind, "say": mutation.text, "expect": test.expect.value}
            yield {**facts, **_plain(result.decision)}, str(result)


@app.command()
def explain(
    config: ConfigPath,
    text: Annotated[str, typer.Argument(help="What the user says.", show_default=False)],
    after: Annotated[list[str] | None, typer.Option(help="An earlier user turn; repeat for more, oldest first.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell the whole story of one decision: context, scores, thresholds, rules tried, decision, time."""
    from guardrail.guard import Guard

    with Guard.from_file(config, run_tests=False, log=False) as guard:
        story = guard.explain(text, context=tuple(after or ()))
    typer.echo(json.dumps(_story(story), ensure_ascii=False) if as_json else _told(story))


def _story(story: Explanation) -> dict[str, Any]:
    topics = {
        name: {
            "low": score.low,
            "high": score.high,
            "not_related_below": story.seen.topics[name].thresholds.not_related,
            "related_from": story.seen.topics[name].thresholds.related,
            "thresholds_from": "config" if name in story.by_hand else "adapter",
            "band": story.decision.bands[name].value,
            "adapter": story.seen.topics[name].adapter,
        }
        for name, score in story.seen.scores.items()
    }
    parts = [{"topic": p.topic, "view": p.view, "text": p.text, "score": p.probability} for p in story.parts]
    rules = [{"rule": name, "holds": holds} for name, holds in story.tried]
    said = {"text": story.turn.text, "context": story.turn.context}
    return {**said, "topics": topics, "parts": parts, "rules": rules, **_plain(story.decision)}


def _told(story: Explanation) -> str:
    facts = _story(story)
    lines = [f"text       {facts['text']}", *(f"after      {turn}" for turn in facts["context"])]
    for name, topic in facts["topics"].items():
        spread = "" if topic["low"] == topic["high"] else f" (parts from {topic['low']:.3f} to {topic['high']:.3f})"
        limits = f"not related below {topic['not_related_below']:.3f}, related from {topic['related_from']:.3f}"
        score, source = facts["scores"][name], topic["thresholds_from"]
        lines.append(
            f"score      {name} {score:.3f} = {topic['band']}{spread}; {limits} (set by the {source}); {topic['adapter']}"
        )
    if len(facts["parts"]) > len(facts["topics"]):
        lines += [f"part       {p['topic']} {p['score']:.3f} {p['view']}: {p['text']}" for p in facts["parts"]]
    lines += [f"escalated  {facts['escalated']}"] if facts["escalated"] else []
    lines += [f"rule       {rule['rule']}: {'holds' if rule['holds'] else 'does not hold'}" for rule in facts["rules"]]
    version = f"policy {facts['policy']}, version {facts['policy_version'] or '-'}"
    lines.append(f"decision   {facts['action']}, because {facts['reason']} ({version})")
    lines += [f"shadow     would {facts['shadow']}"] if facts["shadow"] else []
    if story.decision.beside is not None:
        beside = story.decision.beside
        lines.append(f"beside     {beside.policy} would {beside.action.value}, because {beside.reason}")
    lines += [f"flags      {', '.join(facts['flags'])}"] if facts["flags"] else []
    lines += [f"reply      {facts['reply']}"] if facts["reply"] else []
    lines += [f"route      {facts['route']}"] if facts["route"] else []
    lines.append(f"time       {facts['timings']['guard_ms']:.1f} ms")
    return "\n".join(lines)


def _plain(decision: Any) -> dict[str, Any]:
    """A decision as JSON values."""
    from dataclasses import fields, is_dataclass

    def value(thing: Any) -> Any:
        if is_dataclass(thing):
            return {field.name: value(getattr(thing, field.name)) for field in fields(thing)}
        if hasattr(thing, "items"):
            return {key: value(item) for key, item in thing.items()}
        return getattr(thing, "value", thing)

    plain: dict[str, Any] = value(decision)
    return plain


audit_commands = typer.Typer(help="The decision log.", no_args_is_help=True)
app.add_typer(audit_commands, name="audit")
LogPath = Annotated[Path, typer.Argument(metavar="LOG", help="A decision log; its rotated files are read too.")]


@audit_commands.command("verify")
def audit_verify(log: LogPath, as_json: AsJson = False) -> None:
    """Find changed, missing and moved lines of a decision log. Exit code 1 if there are any."""
    from guardrail.audit import files_of, read_log, verify

    files = files_of(log)
    faults = [{"file": str(path), "line": number, "fault": fault} for path, number, fault in verify(files)]
    lines = sum(1 for path in files for _ in read_log(path, strict=False))
    if as_json:
        typer.echo(json.dumps({"log": str(log), "files": len(files), "lines": lines, "faults": faults}))
    else:
        for fault in faults:
            typer.echo(f"{fault['file']}:{fault['line']}: {fault['fault']}")
        typer.echo(f"{log}: {lines} lines in {len(files)} files, {len(faults)} faults")
    raise typer.Exit(1 if faults else 0)


@app.command()
def replay(
    log: LogPath,
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A guardrail.yaml; its adapters need not be there.")],
    as_json: AsJson = False,
) -> None:
    """Judge the decisions of a log again by a config, from the scores in the log: what would end otherwise than it did."""
    _compare(log, None, policy, as_json)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A guardrail.yaml.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="A guardrail.yaml.", show_default=False)],
    log: Annotated[Path, typer.Option("--replay", metavar="LOG", help="A decision log; its rotated files are read too.")],
    as_json: AsJson = False,
) -> None:
    """Tell what would change from one config to another, on the turns of a decision log: by rule, with counts and examples."""
    _compare(log, old, new, as_json)


def _compare(log: Path, old: Path | None, new: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from guardrail.audit import files_of
    from guardrail.config import read_config
    from guardrail.replay import Judge, compare

    def judge(path: Path) -> Judge:
        config = read_config(path)
        return Judge(config.policies_in_force(), config.thresholds())

    found = compare(files_of(log), judge(old) if old else None, judge(new))
    if as_json:
        typer.echo(json.dumps({**asdict(found), "adapters": sorted(found.adapters)}, ensure_ascii=False))
        return
    for change in found.changes:
        typer.echo(f"{change.count:6}  {change.before.outcome} -> {change.after.outcome}")
        typer.echo(f"        by {change.before.rule!r}, now by {change.after.rule!r}")
        for example in change.examples:
            scores = ", ".join(f"{topic} {score:.3f}" for topic, score in example["scores"].items())
            text = f": {example['text']!r}" if "text" in example else ""
            typer.echo(f"          {example['file']}:{example['line']} ({example['length']} characters; {scores}){text}")
    same = f"{found.other_rule} more end the same by another rule"
    typer.echo(
        f"{found.decisions} decisions, {found.changed} change, {same}; scores by {', '.join(sorted(found.adapters)) or '-'}"
    )


@app.command()
def schema(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference page of the keys instead.")] = False,
) -> None:
    """Print the JSON Schema of the config file, for editors."""
    from guardrail import reference

    typer.echo(reference.markdown() if as_markdown else json.dumps(reference.schema(), indent=2), nl=not as_markdown)


@app.command()
def serve(
    config: ConfigPath,
    host: Annotated[str | None, typer.Option(help="Instead of the host of proxy.listen.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of the port of proxy.listen.", min=0, max=65535)] = None,
) -> None:
    """Start the OpenAI-compatible proxy; it follows changes of the file, and SIGHUP."""
    import logging

    from guardrail.proxy import serve as run

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("guardrail").setLevel(logging.INFO)
    run(config, host=host, port=port, ready=lambda url: typer.echo(f"guardrail answers at {url}/v1; Ctrl-C stops it", err=True))


@app.command()
def bench(
    adapter: Annotated[str, typer.Option(help="Bundled name, folder or Hub id.")] = DEFAULT_ADAPTER,
    seconds: Annotated[float, typer.Option(help="How long each load runs.", min=0.5, max=600)] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Measure what the guard costs: scoring, policy and proxy, each beside a peer in the same run."""
    from guardrail.bench import bench as measure

    figures = list(measure(adapter, seconds, lambda what: typer.echo(f"measuring: {what}", err=True)))
    if as_json:
        rows = [{"what": f.what, "value": f.value, "unit": f.unit, "peer": f.peer, "peer_value": f.peer_value} for f in figures]
        typer.echo(json.dumps(rows))
        return
    for figure in figures:
        peer = f"   {figure.peer} {figure.peer_value:.2f}, ratio {figure.ratio:.2f}" if figure.peer_value else ""
        typer.echo(f"{figure.what:48} {figure.value:10.2f} {figure.unit:10}{peer}")


@app.command()
def demo(
    config: Annotated[Path | None, typer.Option(help="Another policy than the Star Trek one.")] = None,
    port: Annotated[int, typer.Option(help="Port of the proxy; 0 lets the system choose.", min=0, max=65535)] = 0,
    once: Annotated[bool, typer.Option("--once", help="End after the conversation.")] = False,
) -> None:
    """Play a conversation with a small assistant behind the guard, then stay up to be talked to."""
    from guardrail.assistant.weights import find_gguf
    from guardrail.demo import run

    find_gguf()
    try:
        run(config=config, port=port, once=once)
    except ModuleNotFoundError as exc:
        _fail(f"the package {exc.name} is not installed. Fix: pip install 'topic-guardrail[demo]'")


@app.command("compile")
def compile_(
    adapter: Annotated[str, typer.Argument(help="Bundled name, folder or Hub id.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
) -> None:
    """Compile an adapter to its int8 form for CPUs, to ship it ready with an image."""
    from guardrail.adapter import find_adapter, load_adapter
    from guardrail.engine.cache import compile_adapter

    typer.echo(compile_adapter(load_adapter(find_adapter(adapter)), out))


if __name__ == "__main__":
    main()
