"""The forms in which a text is read: as written and, where that differs, with its disguise taken off.

People hide words from a classifier in ways that a language model still reads: look-alike letters, letters set apart, digits for
letters, invisible characters, piled-up accents (Unicode TR 36 and TR 39 describe them). The normalised form undoes that. It is
scored beside the text as written, only where a word came out differently: plain text of any script, accents, emoji and code have
one view.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_WORD = re.compile(r"[^\W_]+")


def views(text: str) -> tuple[str, ...]:
    """The text as written and, only where its words differ, normalised."""
    normal = normalise(text)
    if normal == text or _WORD.findall(unicodedata.normalize("NFC", text)) == _WORD.findall(normal):
        return (text,)
    return (text, normal)


def normalise(text: str) -> str:
    """The text with its disguise taken off; plain ASCII text comes back as it is."""
    if not text.isascii():
        composed = unicodedata.normalize("NFC", _visible(text))
        text = _lookalikes_folded(_STRAY_MARKS.sub("", _latin_forms(composed)))
    return _leet_folded(_spelling_joined(text))


# --- invisible characters ---------------------------------------------------------------------------------------------

_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f")
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = re.compile("[\u200c\u200d]+")


def _visible(text: str) -> str:
    """Without invisible characters; a message in tag characters, which models read ("ASCII smuggling"), is written out."""
    text = _TAGS.sub(_tags_written_out, _FLAG.sub("\U0001f3f4", text))
    return _JOINERS.sub(_joiners_in_place, _INVISIBLE.sub("", text))


def _tags_written_out(tags: re.Match[str]) -> str:
    return " " + "".join(chr(ord(tag) - 0xE0000) for tag in tags[0])


def _joiners_in_place(run: re.Match[str]) -> str:
    """Nothing beside a letter of Latin, Greek or Cyrillic, which do not use joiners; Persian, Hindi and emoji do."""
    before, after = run.string[run.start() - 1 : run.start()], run.string[run.end() : run.end() + 1]
    return "" if min(before or "\u0530", after or "\u0530") < "\u0530" else run[0]


# --- Latin letters in another form: fullwidth, mathematical, circled, squared, raised ---------------------------------

_STRAY_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
"""Combining diacritics that could not be composed with their letter, as those of most orthographies can."""
_BOXED = re.compile("[\U0001f150-\U0001f169]{2,}|[\U0001f170-\U0001f189]{2,}")
_LONE_INDICATOR = re.compile("(?<![\U0001f1e6-\U0001f1ff])[\U0001f1e6-\U0001f1ff](?![\U0001f1e6-\U0001f1ff])")
"""A regional indicator by itself is a letter in a box; a pair of them is a flag."""
_SIGNS = frozenset("™℠℡№℻ªº℀℁℃℄℅℆℉ℹⓂ")


def _latin_forms(text: str) -> str:
    """Compatibility forms (NFKC) of Latin letters and digits as these; those of other scripts stay, they hide nothing."""
    text = _LONE_INDICATOR.sub(lambda found: chr(ord(found[0]) - 0x1F1E6 + ord("a")), text)
    text = _BOXED.sub(lambda run: "".join(chr((ord(box) - 0x1F150) % 32 + ord("a")) for box in run[0]), text)
    return "".join(map(_latin_form, text))


@lru_cache(maxsize=4096)
def _latin_form(character: str) -> str:
    if character.isascii() or character in _SIGNS or unicodedata.category(character) == "No":
        return character
    form = unicodedata.normalize("NFKC", character)
    return form if any(part.isascii() and part.isalnum() for part in form) else character


# --- letters of other scripts that look like Latin ones ---------------------------------------------------------------

_TWINS = {
    "a": "аαᴀꭺ", "b": "ʙ", "c": "сϲᴄꮯ", "d": "ԁᴅꮷ", "e": "еҽᴇꮛ", "f": "ꜰ", "g": "ɡɢց", "h": "һհʜ", "i": "іιɪ", "j": "јϳᴊ",
    "k": "κᴋ", "l": "ӏʟ", "m": "ᴍ", "n": "ոɴ", "o": "оοօᴏ", "p": "рρᴘ", "q": "ԛզ", "r": "ʀ", "s": "ѕꜱ", "t": "ᴛ", "u": "υսᴜ",
    "v": "νѵᴠ", "w": "ԝᴡ", "x": "хχ", "y": "уүʏ", "z": "ᴢ",
    "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СϹᏟ", "D": "Ꭰ", "E": "ЕΕᎬ", "F": "Ϝ", "G": "ԌᏀ", "H": "НΗᎻ", "I": "ІΙӀ", "J": "ЈᎫ",
    "K": "КΚᏦ", "L": "Ꮮ", "M": "МΜᎷ", "N": "Ν", "O": "ОΟՕ", "P": "РΡᏢ", "Q": "Ԛ", "R": "Ꭱ", "S": "ЅՏᏚ", "T": "ТΤᎢ", "U": "Ս",
    "V": "ѴᏙ", "W": "ԜᎳ", "X": "ХΧ", "Y": "ҮΥ", "Z": "ΖᏃ",
}  # fmt: skip
"""Latin letter -> letters that cannot be told from it."""
_SIMILAR = {
    "b": "вЬьъ",
    "e": "єε",
    "h": "нћ",
    "k": "к",
    "m": "м",
    "n": "пη",
    "o": "σ",
    "r": "гᴦ",
    "t": "тτ",
    "u": "ц",
    "w": "шωա",
    "y": "γ",
}
"""Latin letter -> letters that pass for it only between Latin ones."""
_TWIN_LETTERS = frozenset("".join(_TWINS.values()))
_TO_LATIN = str.maketrans({o: latin for table in (_TWINS, _SIMILAR) for latin, others in table.items() for o in others})
_STRANGE_WORD = re.compile(r"(?<![^\W_])[^\W_]*[^\W_\x00-\u00ff][^\W_]*")


def _lookalikes_folded(text: str) -> str:
    """Latin spelling for words that mix Latin letters with look-alikes, or that consist of look-alikes.

    A word wholly of another script's letters is left alone unless such words outnumber the plain ones of that script: `сор` is
    Russian in a Russian text, and a disguise in an English one.
    """
    words = [word[0] for word in _STRANGE_WORD.finditer(text)]
    plain = Counter(_script(word) for word in words if not _look_latin(word) and not _mixed(word))
    twins = Counter(_script(word) for word in words if _look_latin(word) and len(word) > 1)
    disguised = {script for script, count in twins.items() if count > plain[script]}
    return _STRANGE_WORD.sub(lambda word: _to_latin(word[0], disguised), text)


def _to_latin(word: str, disguised: set[str]) -> str:
    fold = _mixed(word) or (_script(word) in disguised and _look_latin(word))
    return word.translate(_TO_LATIN) if fold else word


def _mixed(word: str) -> bool:
    """Whether a word has ASCII letters and besides them nothing but look-alikes."""
    return word.translate(_TO_LATIN).isascii() and any(letter.isascii() and letter.isalpha() for letter in word)


def _look_latin(word: str) -> bool:
    """Whether a word could be read as Latin: nothing but look-alikes, most of them twins."""
    letters = _letters(word)
    twins = sum(letter in _TWIN_LETTERS for letter in letters)
    return word.translate(_TO_LATIN).isascii() and 2 * twins > len(letters)


@lru_cache(maxsize=4096)
def _script(word: str) -> str:
    """Script of a word's first letter beyond Latin-1, by its Unicode name: `CYRILLIC`, `GREEK`, `LATIN`."""
    return unicodedata.name(next(letter for letter in word if letter > "\u00ff"), "").partition(" ")[0]


# --- letters set apart ------------------------------------------------------------------------------------------------

_LETTER = "[A-Za-z\u00c0-\u024f]"
_DOTTED = re.compile(rf"(?<!\w){_LETTER}(?P<gap> ?[.\-_*·•~|/] ?){_LETTER}(?:(?P=gap){_LETTER})*(?!\w)")
_SPACED = re.compile(rf"(?<!\S){_LETTER}(?:\s{{1,3}}{_LETTER}(?!\w)){{3,}}")
_ABBREVIATIONS = frozenset({"aka", "btw", "diy", "fyi", "iid", "qed", "rip", "rsvp", "wrt", "www"})
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def _spelling_joined(text: str) -> str:
    """`h.o.w  t.o` and `h o w  t o` as words; acronyms (`U.S.S.`), abbreviations (`a.k.a.`) and `a b c d` stay."""
    runs = [_letters(run[0]) for run in _DOTTED.finditer(text)]
    shouted = sum(len(run) >= 3 and run.isupper() for run in runs) >= 2 and 2 * sum(map(len, runs)) > sum(map(str.isalpha, text))
    if shouted or any(_is_spelled(run) for run in runs):
        text = _DOTTED.sub(lambda run: _letters(run[0]), text)
    return _SPACED.sub(_words_of_spaced, text)


def _is_spelled(run: str) -> bool:
    return len(run) >= 3 and not run.isupper() and run.lower() not in _ABBREVIATIONS and run.lower() not in _ALPHABET


def _letters(run: str) -> str:
    return "".join(filter(str.isalpha, run))


def _words_of_spaced(run: re.Match[str]) -> str:
    """The narrowest gaps separate letters, wider ones words."""
    if _letters(run[0]).lower() in _ALPHABET:
        return run[0]
    narrow = min(map(len, re.findall(r"\s+", run[0])))
    return " ".join(map(_letters, re.split(rf"\s{{{narrow + 1},}}", run[0])))


# --- digits for letters -----------------------------------------------------------------------------------------------

_LEET_WORD = re.compile(r"(?<![\w@$])[A-Za-z013457@$]*(?:[A-Za-z][013457@$]|[0134][A-Za-z])[A-Za-z013457@$]*(?!\w)")
_INSIDE = re.compile(r"(?<=[A-Za-z])(?:[01347]|00|33|5{1,2})(?=[A-Za-z])")
_CODE = re.compile(r"(?:[A-Za-z]\d+)+|[\da-fA-F]+|0[xX].*")
"""Episodes (S01E05) and hexadecimal."""
_FROM_LEET = str.maketrans("013457@$", "oieastas")


def _leet_folded(text: str) -> str:
    """`k1rk` and `m4k3` in letters, if one word of the text is surely written so: `log4j`, `w3c` alone are not."""
    words = [word[0] for word in _LEET_WORD.finditer(text)]
    return _LEET_WORD.sub(lambda word: _in_letters(word[0]), text) if any(map(_is_leet, words)) else text


def _is_leet(word: str) -> bool:
    digits = "".join(_INSIDE.findall(word))
    sure = len(digits) >= 2 or any(digit in "013" for digit in digits)
    return sure and len(word) >= 4 and not _CODE.fullmatch(word) and 2 * sum(map(str.isalpha, word)) > len(word)


def _in_letters(word: str) -> str:
    return word if 2 * sum(map(str.isalpha, word)) < len(word) else word.translate(_FROM_LEET)
