from __future__ import annotations

from pathlib import Path

import pytest

from training.data import Example, normalise, read_jsonl, write_jsonl
from training.errors import TrainingError

CARD = '{"input": "Who is Spock?", "label": "related"}\n{"input": "What is 2 + 2?", "label": "not_related"}\n'


def test_original_cards_jsonl_is_read(tmp_path: Path) -> None:
    """The original model card's two keys are enough."""
    path = tmp_path / "card.jsonl"
    path.write_text(CARD)
    assert read_jsonl(path) == [Example("Who is Spock?", "related"), Example("What is 2 + 2?", "not_related")]


def test_jsonl_round_trip(tmp_path: Path) -> None:
    """What is written is read back the same, and plain rows hold the card's keys only."""
    examples = [
        Example("a\nb ü", "related", ("c", "d"), "area", "register", "facts", ("e",), "t {x}", "f:1"),
        Example("z", "not_related"),
    ]
    path = tmp_path / "sub" / "rows.jsonl"
    write_jsonl(path, examples)
    assert read_jsonl(path) == examples
    assert path.read_text().splitlines()[1] == '{"input": "z", "label": "not_related"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "rows.jsonl:2: not JSON"),
        ('{"label": "related"}', 'needs "input"'),
        ('{"input": "x", "label": "yes"}', "label 'yes' is neither"),
    ],
)
def test_bad_rows_name_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    """A row that cannot be read is said with its place."""
    path = tmp_path / "rows.jsonl"
    path.write_text(CARD.splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(TrainingError) as caught:
        read_jsonl(path)
    assert reason in str(caught.value)
    assert "rows.jsonl:2" in str(caught.value)


def test_normalise_folds_case_width_and_marks() -> None:
    """Texts that read the same have one key."""
    assert normalise("  ＷＨＯ is\tSpock?!") == normalise("who is spock") == "who is spock"
