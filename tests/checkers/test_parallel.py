"""Questions are taken as they are needed, and answered in order."""

from collections.abc import Iterator
from itertools import islice

import pytest

from tjd.checkers import Verdict
from tjd.checkers.parallel import Question, decide


def endless_questions(taken: list[int]) -> Iterator[Question]:
    while True:
        taken.append(len(taken))
        kwargs = f'{{"num_words": {len(taken)}, "relation": "at least"}}'
        yield Question("length_constraints:number_words", kwargs, "one two three")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_without_end(workers: int) -> None:
    taken: list[int] = []
    answers = decide(endless_questions(taken), workers=workers)
    found = list(islice(answers, 3000))
    answers.close()  # type: ignore[attr-defined]  # a generator: stops its processes
    assert found == [(Verdict(n < 3),) * 2 for n in range(3000)]
    assert len(taken) < 3000 + 256 * 4 * workers + 256


def test_no_questions() -> None:
    assert list(decide([])) == []
