from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from training.data import Example, read_jsonl
from training.dataset import assemble, compose
from training.names import PARTS, Names, build_names, part_of
from training.near import near_duplicates
from training.recipe import load_recipe
from training.run import Run, open_run
from training.split import check_disjoint, split_examples
from training.topic import SHARED, read_topic


def test_one_seed_gives_one_data_set(prepared: Run, recipe_file: Path, tmp_path: Path) -> None:
    """The same seed writes the same bytes, another seed others."""
    again = open_run(str(recipe_file), runs=tmp_path / "again", adapters=tmp_path)
    other = open_run(str(recipe_file), ["seed=5"], runs=tmp_path / "other", adapters=tmp_path)
    for run in (again, other):
        compose(run)
        assemble(run)
    for part in PARTS:
        assert again.file(part).read_bytes() == prepared.file(part).read_bytes()
    assert other.file("train").read_bytes() != prepared.file("train").read_bytes()


def test_shared_templates_are_filled_from_both_sides_alike(prepared: Run) -> None:
    """A shared form occurs as often with a name of the topic as with another: it says nothing about the label."""
    shared = {template.id for template in read_topic(prepared.topic("topic")).templates if template.label == SHARED}
    composed = read_jsonl(prepared.composed / "train.jsonl")
    counts = Counter((example.template, example.label) for example in composed if example.template in shared)
    assert counts
    for template in {template for template, _ in counts}:
        assert counts[template, "related"] == counts[template, "not_related"]


def test_every_name_of_a_kind_occurs_about_equally(prepared: Run) -> None:
    """Composition covers all names of the part before it repeats any."""
    topic, names = read_topic(prepared.topic("topic")), _names(prepared)
    own = {
        fact.name
        for fact in topic.facts
        if (fact.side, fact.kind) == ("related", "openings") and _is_in(fact.name, names, "train")
    }
    texts = [" ".join((*example.context, example.input)) for example in read_jsonl(prepared.composed / "train.jsonl")]
    counts = [sum(name in text for text in texts) for name in own]
    assert len(own) > 3
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 1


def test_costume_templates_keep_their_own_label(prepared: Run) -> None:
    """A template with a label of its own is filled with the topic's names and keeps the label."""
    own = [example for part in PARTS for example in read_jsonl(prepared.composed / f"{part}.jsonl") if example.area == "costume"]
    assert own
    assert {example.label for example in own} == {"not_related"}


def test_parts_share_no_name_and_no_template(prepared: Run) -> None:
    """No tracked name and no template of a part occurs in another, in whatever text."""
    names = _names(prepared)
    parts = {part: prepared.examples(part) for part in PARTS}
    found = {
        part: {entity for example in rows for entity in names.mentions([*example.context, example.input])}
        for part, rows in parts.items()
    }
    forms = {part: {example.template for example in rows if example.template} for part, rows in parts.items()}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not found[one] & found[other]  # type: ignore[index]
        assert not forms[one] & forms[other]  # type: ignore[index]
    assert all(found.values())
    assert forms["train"]


def test_overlap_is_caught() -> None:
    """The check that guards the promise fails on a name in two parts."""
    names = Names({"capablanca": "capablanca"}, {"capablanca": "train"})
    row = Example("Capablanca again", "related")
    with pytest.raises(AssertionError, match="capablanca"):
        check_disjoint({"train": [row], "test": [row]}, names)


def test_messages_follow_their_names() -> None:
    """A message goes to the part of its names, and out when they disagree."""
    names = Names({"lasker": "lasker", "keres": "keres"}, {"lasker": "train", "keres": "test"})
    messages = [
        Example("Lasker's best game", "related"),
        Example("was KERES strong", "related"),
        Example("Lasker or Keres", "related"),
    ]
    split = split_examples({part: [] for part in PARTS}, messages, names, 0.1, 0)
    assert [example.input for example in split.parts["train"]] == ["Lasker's best game"]
    assert [example.input for example in split.parts["test"]] == ["was KERES strong"]
    assert split.dropped["names of several parts"] == 1


def test_names_that_are_common_words_or_famous_belong_to_train() -> None:
    """A word that texts use in lower case is no name; a name that many messages mention stays in train."""
    messages = [Example(f"The data of Mr Spock, file {number}", "related") for number in range(50)]
    for seed in range(20):
        names = build_names(["Data", "Spock", "T'Pau", "Q"], messages, 0.4, seed)
        assert names.parts["spock"] == "train"
        assert {"data", "q"}.isdisjoint(names.phrases)
        assert names.mentions(["T'Pau met Q"]) == ("t pau",)


def test_surname_stands_for_the_whole_family() -> None:
    """Two names with one last word are one entity, and the last word alone mentions it."""
    names = build_names(["Beverly Crusher", "Wesley Crusher"], [], 0.3, 0)
    assert names.mentions(["crusher!"]) == names.mentions(["Wesley"]) == names.mentions(["Beverly Crusher"]) == ("crusher",)


def test_conflicting_labels_are_dropped_and_told() -> None:
    """The same text under two labels is used under neither, and both places are named."""
    messages = [Example("Same text", "related", origin="a.txt:1"), Example("same text!", "not_related", origin="b.txt:2")]
    split = split_examples({part: [] for part in PARTS}, messages, Names({}, {}), 0.1, 0)
    assert not any(split.parts.values())
    assert "a.txt:1 (related) and b.txt:2 (not_related)" in split.conflicts[0]


def test_near_duplicates_are_found_across_owners_only() -> None:
    """A text that differs in a letter or two is caught in another part, and left alone in its own."""
    text = "where did the captain of the second ship hide the old map of the quadrant"
    texts = [text, text.replace("hide", "hides"), "an entirely different sentence about bread", text + "s"]
    assert near_duplicates(texts, ["train", "train", "test", "test"], 0.8) == {3}
    assert near_duplicates(texts, ["train"] * 4, 0.8) == set()


def test_data_card_counts_what_the_files_hold(prepared: Run) -> None:
    """The data card's sums are those of the JSONL files."""
    card = (prepared.folder / "DATA.md").read_text()
    counts = [len(prepared.examples(part)) for part in PARTS]
    assert f"| examples | {counts[0]} | {counts[1]} | {counts[2]} |" in card
    assert "messages of other, not_related" in card


def test_held_out_share_is_kept_over_many_names() -> None:
    """The hash puts about `share` of the keys into test and as many into validation."""
    counts = Counter(part_of(0.1, 7, f"name {number}") for number in range(10_000))
    assert abs(counts["test"] - 1000) < 120
    assert abs(counts["validation"] - 1000) < 120


def _names(run: Run) -> Names:
    recipe, _ = load_recipe(str(run.recipe_file))
    topic = read_topic(run.topic("topic"))
    borrowed = read_topic(run.topic("other")).messages
    kept = [message for message in borrowed if message.label == "related"]
    return build_names((fact.name for fact in topic.facts), [*topic.messages, *kept], recipe.data.held_out, recipe.seed)


def _is_in(name: str, names: Names, part: str) -> bool:
    return (names.parts_of([name]) or {"train"}) == {part}
