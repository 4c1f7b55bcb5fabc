"""Views: disguises are taken off, plain text stays as it is."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from guardrail.engine.views import normalise, views

DISGUISED = [
    ("ｈｏｗ ｔｏ", "how to", "fullwidth"),
    ("𝓚𝓲𝓻𝓴 𝕬𝖓𝖉 𝟙", "Kirk And 1", "mathematical"),
    ("ⓗⓞⓦ 🄷🄾🅆 🅷🅾🆆", "how HOW how", "circled and squared"),
    ("ʰᵒʷ ᴋɪʀᴋ", "how kirk", "raised and small capitals"),
    ("🇭 🇴 🇼 🇹 🇴", "howto", "single regional indicators"),
    ("k\u200bi\u2060r\ufeffk", "kirk", "zero-width characters"),
    ("k\u200di\u200cr\ufe0fk\u00ad", "kirk", "joiners, selectors, soft hyphens beside Latin letters"),
    ("\u202eKirk\u202c", "Kirk", "direction marks alone"),
    ("hi" + "".join(chr(0xE0000 + ord(letter)) for letter in "tax"), "hi tax", "tag characters"),
    ("k̶i̶r̶k̶ z̷̡͎a̶̡l̸g̷o̸", "kirk zalgo", "marks through and under letters"),
    ("Кirk and Ѕроck", "Kirk and Spock", "Cyrillic among Latin letters"),
    ("what does Ѕроск say", "what does Spock say", "a whole word of look-alikes"),
    ("Κιrκ", "Kirk", "Greek among Latin letters"),
    ("һоԝ tо ոսԁе", "how to nude", "rarer look-alikes"),
    ("h o w  t o  m a k e", "how to make", "letters set apart by spaces"),
    ("h.o.w t.o", "how to", "by dots"),
    ("a b-o-m-b", "a bomb", "by hyphens"),
    ("H.O.W T.O M.A.K.E", "HOW TO MAKE", "in capitals, all of the text"),
    ("k1rk", "kirk", "a digit for a letter"),
    ("h0w t0 m4k3 a pa55port", "how to make a passport", "digits for letters throughout"),
    ("ｋ１ｒｋ", "kirk", "one disguise over another"),
]
PLAIN = [
    "Who is captain Kirk of the Enterprise?",
    "What is 2 + 2? x² is not ½, see № 5…",
    "café, naïve, Dvořák, Łódź, Ærøskøbing, Tiếng Việt có dấu",
    "cafe\u0301 written with a combining accent",
    "❤️ 👨‍👩‍👧 1️⃣ 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 🇺🇸🇬🇧 ™️ ℹ️ Ⓜ️ 🅿️ 🆎 👍🏽 ☺️",
    "Кто такой капитан Кирк? А он кто, и рост у него какой? Там сор.",
    "нет",
    "Ποιος είναι ο κάπτεν Κερκ και τι κάνει το πλήρωμα;",
    "谁是柯克船长？我想知道。",
    "カーク船長は誰ですか、ガギグ",
    "می‌خواهم بدانم که او کیست",
    "हिन्दी में बताओ",
    "น้ำทำอะไร",
    "커크 선장은 누구입니까 ㅋㅋㅋ",
    "מִי הוּא קירק",
    "U.S.S. Enterprise NCC-1701-D and J.R.R. Tolkien",
    "a.k.a. e.g. i.e. 5 p.m. w.r.t. x.y.z",
    "options a b c d, plan B, vitamin C, I am a U2 fan",
    "S01E05 s3e1 r2d2 7of9 mp3 4k utf8 h264 sha256 log4j w3c 1st 10th a11y i18n x86_64 B2B CO2",
    "for i in range(10): x[i] = y_1 * z0 + f(a, b)  # a.b.c",
    "SELECT a1, b2 FROM t0 WHERE id = '3f2a1b4c-11e4' AND n = 0x1F3A;",
    "git clone git@example.org:foo/bar.git && echo $HOME $1",
    "5 μm, ΔT, TGF-β1, α particle, β-carotene",
    "USB-кабель для ноутбука",
    "T'Pol's D'deridex-class ship; Jean-Luc; o'clock",
    "",
]


@pytest.mark.parametrize(("written", "meant", "how"), DISGUISED, ids=[how for *_, how in DISGUISED])
def test_disguise_is_taken_off(written: str, meant: str, how: str) -> None:
    """The normalised form reads as a reader does."""
    assert normalise(written) == meant


@pytest.mark.parametrize(("written", "meant", "how"), DISGUISED, ids=[how for *_, how in DISGUISED])
def test_disguised_text_has_two_views(written: str, meant: str, how: str) -> None:
    """The text as written is scored too, first; invisible marks around whole words disguise nothing."""
    assert views(written) == ((written,) if how == "direction marks alone" else (written, meant))


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_has_one_view(text: str) -> None:
    """Accents, emoji, other scripts, abbreviations, maths and code cost nothing extra."""
    assert views(text) == (text,)


def test_no_letter_of_another_script_is_a_disguise_by_itself() -> None:
    """Of all letters that do not mean a Latin one, only the invisible ones (Hangul fillers) make a second view."""
    every = [chr(code) for code in range(0x370, sys.maxunicode) if unicodedata.category(chr(code)) in ("Lo", "Ll", "Lu")]
    alike = ("CJK UNIFIED", "HANGUL SYLLABLE", "TANGUT", "CUNEIFORM")
    letters = [letter for letter in every if not unicodedata.name(letter, "").startswith(alike)]
    meant = {letter: unicodedata.normalize("NFKC", letter) + normalise(letter * 3) for letter in letters}
    foreign = [letter for letter in letters if not any(part.isascii() for part in meant[letter])]
    assert {letter for letter in foreign if len(views(letter * 3)) > 1} == set("\u115f\u1160\u3164\uffa0")


def test_normalising_twice_changes_nothing() -> None:
    """The normalised form is plain."""
    assert all(normalise(normalise(written)) == normalise(written) for written, *_ in DISGUISED)


@pytest.mark.parametrize(
    "piece", ["a", "a1", "a.", "a ", "a  ", "а", "a\u0301\u0302", "\u200d", "\U000e0061", "Кirk ", "🏴", "\n \n", "0а"]
)
def test_long_text_does_not_stall(piece: str) -> None:
    """The time grows with the length, not with its square: else 130,000 characters of the worst kinds would take minutes."""
    assert views(piece * (130_000 // len(piece)))
