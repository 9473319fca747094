"""The language of a text: langdetect's method with seed 0, and its profiles.

langdetect draws n-grams at random; unseeded, as the official checkers run it, short texts change language from run to
run. Here each call has its own generator with the same seed, so a text has one language in every thread and process.
The package supplies the profiles and folds characters; reading n-grams and weighing them is ours, and several times
as fast.

Source: Nakatani, langdetect 1.0.9, whose answer at seed 0 this reproduces.
"""

import json
import random
import re
from functools import cache, lru_cache
from itertools import chain, compress
from operator import add, and_, not_
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tjd.checkers.optional import import_extra

SEED = 0
_TRIALS = 7
_MOST_CHARACTERS = 10_000
_MOST_DRAWS = 1_000
_CONVERGED = 0.99999
_UNLIKELY = 0.1

_URL = re.compile(r"https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}")
_MAIL = re.compile(r"[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}")
_LATIN = re.compile("[A-z]")
_NOT_LATIN = re.compile("[\u0300-\u1dff\u1f00-\U0010ffff]")


class _Profiles(NamedTuple):
    languages: list[str]  # L
    rows: dict[str, int]  # n-gram -> its row; from 1, so that no row is false
    frequencies_N_L: np.ndarray


class _Folding(dict[int, str]):
    """Folds characters as langdetect does, for `str.translate`, remembering each."""

    def __missing__(self, code: int) -> str:
        folded = self[code] = import_extra("langdetect.utils.ngram").NGram.normalize(chr(code))
        return folded


_FOLDING = _Folding()


@cache
def _profiles() -> _Profiles:
    folder = Path(import_extra("langdetect").__file__).parent / "profiles"
    profiles: list[dict[str, Any]] = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.iterdir()) if file.name[0] != "."
    ]
    ngrams = {ngram for profile in profiles for ngram in profile["freq"]}
    rows = {ngram: row for row, ngram in enumerate(sorted(ngrams - {" "}), start=1)}
    frequencies_N_L = np.zeros((1 + len(rows), len(profiles)))
    for index, profile in enumerate(profiles):
        for ngram, frequency in profile["freq"].items():
            if ngram in rows and len(ngram) <= 3:
                frequencies_N_L[rows[ngram], index] = frequency / profile["n_words"][len(ngram) - 1]
    return _Profiles([profile["name"] for profile in profiles], rows, frequencies_N_L)


def _clean(text: str) -> str:
    """Drop addresses, what lies past 10,000 characters, and Latin letters in a text of another script."""
    if "@" in text:
        text = _MAIL.sub(" ", _URL.sub(" ", text))
    elif "://" in text:
        text = _URL.sub(" ", text)
    text = import_extra("langdetect.utils.ngram").NGram.normalize_vi(text)
    text = re.sub(" +", " ", text[:_MOST_CHARACTERS])
    if len(_LATIN.findall(text)) * 2 < len(_NOT_LATIN.findall(text)):
        text = _LATIN.sub("", text)
    return text


def _ngrams(text: str, rows: dict[str, int]) -> list[int]:
    """List the rows of the known n-grams of up to 3 characters, in order; those within capitals left out."""
    text = " " + re.sub(" +", " ", text.translate(_FOLDING)).lstrip(" ")
    pairs = list(map(add, text, text[1:]))
    ending_here = zip(text[1:], pairs, chain([""], map(add, pairs, text[2:])), strict=False)  # blank text: none
    capital = list(map(str.isupper, text))
    kept = compress(ending_here, map(not_, map(and_, capital, capital[1:])))
    return list(filter(None, map(rows.get, chain.from_iterable(kept))))


def _draw(ngrams: list[int], profiles: _Profiles, generator: random.Random) -> np.ndarray:
    """Weigh the languages by n-grams drawn at random, five between two looks, until one of them is certain."""
    factors_D_L = np.empty((6, len(profiles.languages)))  # the weights so far, and those of five n-grams
    weights_L = factors_D_L[0]
    weights_L[:] = 1.0 / len(profiles.languages)
    smoothing = (0.5 + generator.gauss(0.0, 1.0) * 0.05) / 10_000
    limit, draw_bits = len(ngrams), generator.getrandbits
    n_bits = limit.bit_length()
    used_D_L = factors_D_L[:2]  # one n-gram before the first look
    for _ in range(0, _MOST_DRAWS + 1, 5):
        new_D_L = used_D_L[1:]
        drawn = []
        for _ in range(len(new_D_L)):
            while (place := draw_bits(n_bits)) >= limit:  # as `random.choice` does, whatever future Pythons do
                pass
            drawn.append(ngrams[place])
        profiles.frequencies_N_L.take(drawn, axis=0, out=new_D_L, mode="clip")  # no mode is as fast: all rows exist
        new_D_L += smoothing
        # row after row, and summed from the left, so that rounding is langdetect's
        product_L = np.multiply.reduce(used_D_L, axis=0)
        values = product_L.tolist()
        total = sum(values)
        np.divide(product_L, total, out=weights_L)
        if max(values) / total > _CONVERGED:
            break
        used_D_L = factors_D_L
    return weights_L


@lru_cache(maxsize=16)
def detect(text: str) -> str | None:
    """Tell the most likely language, in langdetect's codes ("en", "zh-cn"); None for a text without a letter to go by.

    Raises:
        MissingExtraError: langdetect is not installed.
    """
    profiles = _profiles()
    ngrams = _ngrams(_clean(text), profiles.rows)
    if not ngrams:
        return None
    generator = random.Random(SEED)
    weights_L = np.zeros(len(profiles.languages))
    for _ in range(_TRIALS):
        weights_L += _draw(ngrams, profiles, generator) / _TRIALS
    best = int(weights_L.argmax())
    return profiles.languages[best] if weights_L[best] > _UNLIKELY else "unknown"
