"""Near-duplicates: whether a text was seen before, but for a few words, case or punctuation.

In: texts, one after the other. Out: the key of the first one before it that is as similar as a threshold asks. MinHash
signatures and their index are rensa's; of a text nothing else is kept (about 3.5 KB each, however long it is).
"""

import re
import unicodedata

SHINGLE = 3  # words of a run; two texts are as similar as their sets of runs (Jaccard index)
SIGNATURE = 128  # hashes of a text: the standard error of a similarity of 0.8 is 0.035
BANDS = 32  # of 4 hashes; a pair is compared if one is equal: more than 99.9% of those with a similarity of 0.8

_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Japanese, Chinese: a character is a word
_PUNCTUATION = ".,;:!?'\"\u2018\u2019\u201c\u201d\u3001\u3002"  # other signs carry meaning: C++ and C# differ
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s{_PUNCTUATION}]")


class Seen:
    """The texts so far; of several that are alike, the first."""

    def __init__(self, threshold: float, seed: int) -> None:
        """Start empty. The seed is of the hashes: the same one gives the same answers."""
        from rensa import RMinHash, RMinHashDeduplicator  # type: ignore[attr-defined]

        self._sign = lambda: RMinHash(num_perm=SIGNATURE, seed=seed)
        self._index = RMinHashDeduplicator(threshold, SIGNATURE, use_lsh=True, num_bands=BANDS, seed=seed)

    def like(self, key: str, text: str) -> str | None:
        """The key of the first text so far that this one is a near-duplicate of; if there is none, keep it."""
        runs = shingles(text)
        if not runs:
            return None
        signature = self._sign()
        signature.update(runs)
        if alike := self._index.get_duplicates(signature):
            return min(alike).partition(" ")[2]
        self._index.add(f"{self._index.len():012} {key}", signature)
        return None


def shingles(text: str) -> set[str]:
    """The runs of words of a text, in any case; of a text with fewer words, all of it."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, min(len(words), 1)))}
