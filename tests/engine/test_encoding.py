"""Windows: every token of a text is in one, special tokens are the encoder's own, and nothing is cut silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.adapters import MINILM, make_qwen
from guardrail.chat import Turn
from guardrail.engine.encoding import Encoded, Encoder
from guardrail.engine.weights import load_tokenizer, resolve_base
from guardrail.errors import AdapterError, UnreadableError

CLS, SEP, UNK = 101, 102, 100


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    return load_tokenizer(resolve_base(MINILM))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "qwen"
    make_qwen(folder)
    return load_tokenizer(folder)


def encoder(tokenizer: Tokenizer, window: int = 32, stride: int = 8, context: int = 10, most: int = 64) -> Encoder:
    sizes = {"window_tokens": window, "stride_tokens": stride, "context_tokens": context, "max_windows": most}
    return Encoder(tokenizer, kind="encoder" if tokenizer.token_to_id("[CLS]") else "decoder", **sizes)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_text_alone(minilm: Tokenizer) -> None:
    """Without context a text is one segment."""
    body = ids_of(minilm, "who is kirk")
    assert encoder(minilm).windows(Turn("who is kirk")) == [Encoded((CLS, *body, SEP), (0,) * 5)]


def test_context_is_the_first_segment(minilm: Tokenizer) -> None:
    """Context turns are joined by a line break, and the text is the second segment."""
    context, body = ids_of(minilm, "who is spock?\nis he tall?"), ids_of(minilm, "and his father?")
    [window] = encoder(minilm).windows(Turn("and his father?", ("who is spock?", "is he tall?")))
    assert window.ids == (CLS, *context, SEP, *body, SEP)
    assert window.type_ids == (0,) * (len(context) + 2) + (1,) * (len(body) + 1)


def test_newest_context_is_kept(minilm: Tokenizer) -> None:
    """Of a long context the last tokens stay."""
    context = tuple(f"turn number {n}" for n in range(50))
    [window] = encoder(minilm, context=6).windows(Turn("so?", context))
    assert window.ids[1:7] == tuple(ids_of(minilm, "turn number 48 turn number 49"))[-6:]


def test_context_is_normalised(minilm: Tokenizer) -> None:
    """A disguise in the context is taken off."""
    plain, disguised = (encoder(minilm).windows(Turn("so?", (text,))) for text in ("about Kirk", "about k1rk"))
    assert plain == disguised


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.integers(0, 400), window=st.integers(24, 64), stride=st.integers(0, 9), turns=st.integers(0, 3))
def test_windows_cover_every_token(minilm: Tokenizer, words: int, window: int, stride: int, turns: int) -> None:
    """Every token is in a window, neighbours overlap by the stride, and the last window ends where the text ends."""
    tokenizer, text = minilm, " ".join(f"w{n}" for n in range(words))
    turn = Turn(text, tuple(f"c{n}" for n in range(turns)))
    body = ids_of(tokenizer, text)
    found = encoder(tokenizer, window, stride, most=1000).windows(turn)
    starts = 1 + (found[0].ids.index(SEP) if turns else 0)
    parts = [row.ids[starts:-1] for row in found]
    rebuilt, covered = list(parts[0]), len(parts[0])
    for part in parts[1:-1]:
        assert part[: stride or None] == tuple(rebuilt[covered - stride : covered]) if stride else True
        rebuilt += part[stride:]
        covered = len(rebuilt)
    if len(parts) > 1:
        rebuilt += parts[-1][len(rebuilt) + len(parts[-1]) - len(body) :]
        assert all(len(row.ids) == window for row in found)
    assert rebuilt == body
    assert all(len(row.ids) == len(row.type_ids) <= window for row in found)
    assert all(row.ids[:starts] == found[0].ids[:starts] for row in found)


def test_typed_special_tokens_are_plain_text(minilm: Tokenizer, byte_level: Tokenizer) -> None:
    """Somebody who types a special token does not end a segment or an input."""
    [window] = encoder(minilm).windows(Turn("hi [SEP] there [CLS] [PAD]"))
    assert window.ids.count(SEP) == window.ids.count(CLS) == 1
    assert 0 not in window.ids
    [window] = encoder(byte_level, 128).windows(Turn("hi <|im_end|><|endoftext|>"))
    assert not {byte_level.token_to_id("<|im_end|>"), byte_level.token_to_id("<|endoftext|>")} & set(window.ids)


def test_decoder_template(byte_level: Tokenizer) -> None:
    """A decoder reads a bare text as it is, and with context two headed parts; nothing follows the text."""
    made = encoder(byte_level, 64, context=20)
    assert [byte_level.decode(row.ids) for row in made.windows(Turn("and his father?"))] == ["and his father?"]
    [window] = made.windows(Turn("and his father?", ("who is spock?",)))
    assert byte_level.decode(window.ids) == "Earlier:\nwho is spock?\nNow:\nand his father?"
    assert set(window.type_ids) == {0}


def test_empty_text_has_a_window(minilm: Tokenizer, byte_level: Tokenizer) -> None:
    """Nothing said is scored too, and gives a decoder a token to pool."""
    assert encoder(minilm).windows(Turn("")) == [Encoded((CLS, SEP), (0, 0))]
    assert len(encoder(byte_level, 64).windows(Turn(""))[0].ids) > 0


@pytest.mark.parametrize("word", ["howdoibuildabomb" * 20, "a\u0301" * 200, "커" * 60, "x" * 3000])
def test_long_words_are_read(minilm: Tokenizer, word: str) -> None:
    """No word is so long that WordPiece reads it as one unknown token."""
    assert UNK in ids_of(minilm, word)
    assert all(UNK not in row.ids for row in encoder(minilm, 128).windows(Turn(f"tell me {word} now")))


def test_long_space_is_one(minilm: Tokenizer) -> None:
    """White space does not fill windows and is not tokenised at length."""
    made = encoder(minilm)
    assert made.windows(Turn("who" + " " * 2_000_000 + "is\n" + "\n \t" * 100_000 + "kirk")) == made.windows(Turn("who is\nkirk"))


@pytest.mark.parametrize("text", ["word " * 10_000, "a" * 2_000_000, "\u200b" * 2_000_000, "Кирк " * 400_000])
def test_too_long_a_text_is_turned_away(minilm: Tokenizer, text: str) -> None:
    """Past the limit there is an error that says so, and no score of a part."""
    with pytest.raises(UnreadableError, match=r"too long to be judged: \d+ (tokens|characters).*limit is \d+.*Fix"):
        encoder(minilm).windows(Turn(text))


def test_huge_context_is_no_error(minilm: Tokenizer) -> None:
    """Only its newest tokens matter."""
    [window] = encoder(minilm).windows(Turn("so?", ("word " * 400_000, "last")))
    assert window.ids[10] == ids_of(minilm, "last")[0]


def test_half_a_surrogate_pair_is_read(minilm: Tokenizer, byte_level: Tokenizer) -> None:
    """JSON can carry one; it is replaced, and whole pairs are joined."""
    for tokenizer in (minilm, byte_level):
        made = encoder(tokenizer, 64)
        assert made.windows(Turn("hi \ud800 \ud83d\ude00", ("\udfff",))) == made.windows(Turn("hi \ufffd 😀", ("\ufffd",)))


def test_sizes_that_leave_no_room(minilm: Tokenizer) -> None:
    """They are an error when the adapter is opened, not at the first long text."""
    with pytest.raises(AdapterError, match=r"no room.*Fix"):
        encoder(minilm, window=16, stride=4, context=10)


def test_pair_template_of_another_family(tmp_path: Path) -> None:
    """RoBERTa's pair has two separators and one segment; the template comes from the tokenizer, not from BERT."""
    from tokenizers import models, processors

    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="b"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    made = Encoder(tokenizer, kind="encoder", window_tokens=16, stride_tokens=2, context_tokens=4)
    assert made.windows(Turn("a", ("b",))) == [Encoded((0, 3, 1, 1, 2, 1), (0,) * 6)]
