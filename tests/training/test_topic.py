from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import TrainingError
from training.topic import read_messages, read_topic

HERE = Path(__file__).parent


def test_messages_keep_their_section_turns_and_escapes() -> None:
    """A line becomes an example with the header's label, its earlier turns, and its escapes resolved."""
    messages = {message.origin: message for message in read_messages(HERE / "topic" / "messages")}
    follow_up = next(message for message in messages.values() if message.input == "and his best game?")
    assert (follow_up.label, follow_up.area, follow_up.register) == ("related", "follow_up", "fragment")
    assert follow_up.context == ("Who was Capablanca?",)
    texts = {message.input for message in messages.values()}
    assert {"# a heading, not a comment", "first line\nsecond line"} <= texts
    assert not any(text.startswith("Earlier turns come first") for text in texts)


def test_topic_reads_facts_of_both_sides() -> None:
    """A fact knows its side, its kind and its attributes."""
    topic = read_topic(HERE / "topic")
    lasker = next(fact for fact in topic.facts if fact.name == "Emanuel Lasker")
    assert (lasker.side, lasker.kind, lasker.values["country"]) == ("related", "people", "Germany")
    assert {fact.side for fact in topic.facts} == {"related", "not_related"}


BAD = {
    "no header": ("messages/a.txt", "hello\n", "a.txt:1: a message before the first"),
    "unknown label": ("messages/a.txt", "## maybe | a | b\nhello\n", "a.txt:1: label 'maybe' is unknown. Fix: use one of"),
    "short header": ("messages/a.txt", "# x\n## related | a\nhello\n", "a.txt:2: header"),
    "empty turn": ("messages/a.txt", "## related | a | b\nok\nhello |||\n", "a.txt:3: an empty turn"),
    "unspaced turns": ("messages/a.txt", "## related | a | b\none|||two\n", "a.txt:2: an empty turn"),
    "columns": ("facts/related/ships.csv", "ship,class\nA,B\n", "ships.csv:1: columns"),
    "fields": ("facts/related/ships.csv", "name,class\nOne,B\nTwo,B,C\n", "ships.csv:3: 3 fields where the first line names 2"),
    "no name": ("facts/related/ships.csv", "name,class\n ,B\n", "ships.csv:2: the name is empty"),
    "kind": (
        "facts/templates.txt",
        "## related | a | b\nwho is {people}\n",
        "templates.txt:2: {people} needs facts/related/people.csv",
    ),
    "no placeholder": ("facts/templates.txt", "## related | a | b\nhello\n", "templates.txt:2: a template without a placeholder"),
}


@pytest.mark.parametrize("case", BAD)
def test_format_errors_name_file_and_line(case: str, tmp_path: Path) -> None:
    """What is wrong in a topic folder is said with its place."""
    file, text, expected = BAD[case]
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TrainingError) as caught:
        read_topic(tmp_path)
    assert expected in str(caught.value)


def test_shared_template_needs_both_sides(tmp_path: Path) -> None:
    """A shared template that one side cannot fill would let the form decide: it is an error."""
    for side in ("related", "not_related"):
        (tmp_path / "facts" / side).mkdir(parents=True)
    (tmp_path / "facts" / "related" / "ships.csv").write_text("name,class\nVictory,first rate\n")
    (tmp_path / "facts" / "not_related" / "ships.csv").write_text("name\nArgo\n")
    (tmp_path / "facts" / "templates.txt").write_text("## shared | a | b\nwas {ships} a {ships.class}\n")
    with pytest.raises(TrainingError, match=r"templates.txt:2: \{ships\} needs facts/not_related/ships.csv with \['class'"):
        read_topic(tmp_path)


def test_unreadable_text_is_an_error(tmp_path: Path) -> None:
    """A file that is not UTF-8 is named."""
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages" / "a.txt").write_bytes(b"## related | a | b\nol\xe9\n")
    with pytest.raises(TrainingError, match=r"a\.txt: not UTF-8"):
        read_topic(tmp_path)
