"""Valid kwargs for every checker, shared by the tests of this folder."""

from tjd.checkers import SUITES

CHECKERS = sorted(SUITES["ifeval"])

_BY_NAME = {
    "capital_frequency": 3,
    "capital_relation": "at least",
    "end_phrase": "the end.",
    "first_word": "the",
    "forbidden_words": ["river", "c++"],
    "frequency": 2,
    "keyword": "river",
    "keywords": ["river", "a.b"],
    "language": "en",
    "last_word": "end",
    "let_frequency": 3,
    "let_relation": "less than",
    "letter": "e",
    "max_words": 30,
    "min_words": 2,
    "m": 2,
    "n": 1,
    "N": 3,
    "n_end": 9,
    "n_sent": 1,
    "n_start": 2,
    "n_words": 4,
    "nth_paragraph": 2,
    "options": "yes/no/maybe",
    "percentage": 40,
    "phrase": "the quick brown fox",
    "postscript_marker": "P.S.",
    "prompt_to_repeat": "Write about the river.",
    "reference_text": "A river runs to the sea.",
    "relation": "at least",
    "section_spliter": "Section",
    "sep": "...",
    "small_n": 2,
    "word": "river",
}


def valid_kwargs(checker: str) -> dict[str, object]:
    """Kwargs that the checker takes."""
    from tjd.checkers.arguments import read_signature

    signature = read_signature(SUITES["ifeval"][checker])
    return {
        name: _BY_NAME.get(name, f"word{name[-1]}" if name.startswith("keyword") else 2)
        for name in sorted(signature.kinds)
    }
