"""Judge responses while others of the same batch are still being written (paper, 4.2).

In: the judges as a scoring function, and each response as soon as it has ended. Out: the same scoring function to the reward,
whose verdicts mostly are there already. A group shares its instruction's tokens only if it is judged together, so responses
wait for the rest of their group, or until so many wait that judging pays. What is judged together follows from the responses
alone, never from the clock: rounding, and with it every verdict, is the same in each run.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from transformers import PreTrainedTokenizerBase, StoppingCriteriaList

from tjd.integrations.trl import Score, judged_rows, same
from tjd.rewards import Verdict
from tjd.tables import Row

EVERY = 8  # tokens between two looks at what has ended: on a GPU each look waits for it


class Ahead:
    """A scoring function with a thread of its own; `score` is what the reward calls, at the end of each batch."""

    def __init__(self, score: Score, enough: int) -> None:
        """Wrap `score`; `enough` responses are judged even where their groups are not whole."""
        self._score, self._enough = score, enough
        self._judge = ThreadPoolExecutor(
            1, "judge"
        )  # one: what a decoder is while it reads trees holds for all threads
        self.begin([])

    def begin(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Start a batch: the row of the dataset of each response to be written."""
        self._inputs = inputs
        self._unwritten = Counter(row["instruction_id"] for row in inputs)
        self._waiting: dict[str, list[list[Row]]] = {}  # instruction to what judges are asked of its responses
        self._asked: dict[tuple[Any, ...], tuple[Future[Sequence[Verdict]], int]] = {}
        self.share: float | None = None  # of the rows that `score` was asked for, those judged ahead

    def written(self, responses: Iterable[tuple[int, str]]) -> None:
        """Take responses that have ended, each with its place in the batch."""
        for place, response in responses:
            name = self._inputs[place]["instruction_id"]
            self._unwritten[name] -= 1
            self._waiting.setdefault(name, []).append(judged_rows(response, self._inputs[place]))
        enough = sum(map(len, self._waiting.values())) >= self._enough
        ready = [name for name in self._waiting if enough or not self._unwritten[name]]
        self._ask(row for name in ready for rows in self._waiting.pop(name) for row in rows)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """The verdicts on rows: those that are there or on their way, and the rest now."""
        ahead = sum(same(row) in self._asked for row in rows)
        self.share = ahead / len(rows)
        self._ask(rows)
        asked = (self._asked[same(row)] for row in rows)
        return [future.result()[place] for future, place in asked]

    def close(self) -> None:
        """End the thread, after what it is at."""
        self._judge.shutdown(cancel_futures=True)

    def _ask(self, rows: Iterable[Mapping[str, Any]]) -> None:
        new = {key: row for row in rows if (key := same(row)) not in self._asked}
        if new:
            future = self._judge.submit(self._score, list(new.values()))
            self._asked |= {key: (future, place) for place, key in enumerate(new)}


def watch(
    generate: Callable[..., Any],
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    written: Callable[[list[tuple[int, str]]], None],
) -> Callable[..., Any]:
    """Wrap the `generate` of a transformers model, so that `written` is told of responses that have ended.

    What is generated stays the same: the watcher is one more stopping criterion, which stops nothing.
    """

    def watched(*args: Any, **kwargs: Any) -> Any:
        start: int | None = None
        ended: set[int] = set()

        def look(ids_B_T: Any, scores: Any, **_: Any) -> bool:
            nonlocal start
            start = ids_B_T.shape[1] - 1 if start is None else start
            if (ids_B_T.shape[1] - start) % EVERY:
                return False
            found = []
            for place, ids in enumerate(ids_B_T[:, start:].tolist()):
                length = next((n for n, token in enumerate(ids, 1) if token in ends), None)
                if length is not None and place not in ended:
                    ended.add(place)
                    found.append((place, str(tokenizer.decode(ids[:length], skip_special_tokens=True))))
            written(found)
            return False

        return generate(*args, **kwargs, stopping_criteria=StoppingCriteriaList([look]))

    return watched
