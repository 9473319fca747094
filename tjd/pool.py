"""The pool: how often responses follow their constraints, by model and condition, and what to sample where they rarely do.

In: labels, or responses with rules. Out: counts of verdicts by category, model and condition; a judge learns nothing of a
category whose verdicts are all alike. The paper (section 4.1) asks for a heterogeneous pool; how to fill one up where a
verdict is rare is ours.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tjd.checkers import verdict
from tjd.config import ONE_SIDED, SampleConfig
from tjd.tables import Row

WORTHWHILE = 1.1  # times the share so far: what a source must give that cannot reach the target, to be worth its calls
LABELLED = ("instruction_id", "category", "model", "condition", "followed")  # what is read of labels

Cell = tuple[str | None, str | None, str | None]  # category (null for rules), model, condition
Verdicts = Counter[bool | None]
Place = tuple[str, str, str]  # instruction_id, model, condition


class Acceptance:
    """Verdicts by category, model and condition."""

    def __init__(self) -> None:
        """Start empty."""
        self.cells: dict[Cell, Verdicts] = defaultdict(Counter)

    def of_labels(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass LABELS on, counting."""
        for row in rows:
            category = row.get("category") if row.get("kind") != "rule" else None
            self.cells[category, row.get("model"), row.get("condition")][row["followed"]] += 1
            yield row

    def of_rules(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass RESPONSES on, counting those that follow all of their rules."""
        for row in rows:
            rules = [c for c in row.get("constraints") or () if c["kind"] == "rule"]
            if rules and row["response"] is not None:
                self.cells[None, row["model"], row["condition"]][_all_followed(row, rules)] += 1
            yield row

    def by_category(self) -> dict[str, Verdicts]:
        """Verdicts on soft constraints, by category in the order of its name."""
        total: dict[str, Verdicts] = defaultdict(Counter)
        for (category, _, _), verdicts in self.cells.items():
            if category is not None:
                total[category].update(verdicts)
        return dict(sorted(total.items()))

    def one_sided(self) -> dict[str, float]:
        """The categories in which one verdict has a share under `ONE_SIDED`, with the share that is followed."""
        shares = {category: share_followed(verdicts) for category, verdicts in self.by_category().items()}
        return {
            name: share for name, share in shares.items() if share is not None and min(share, 1 - share) < ONE_SIDED
        }


def share_followed(verdicts: Verdicts) -> float | None:
    """Among those that are known; null if none is."""
    known = verdicts[True] + verdicts[False]
    return verdicts[True] / known if known else None


@dataclass(frozen=True, slots=True)
class Shortage:
    """A category in which a verdict is too rare, and what is planned."""

    category: str
    followed: bool  # the verdict that is rare
    share: float  # of it among the labels so far
    expected: float  # of it when what is planned for it and for the shortages before it is carried out
    n: int  # responses that are planned for it
    sources: Sequence[tuple[str, str]]  # models and conditions that raise its share
    reachable: bool  # one gives it more often than the target, so that enough responses would do


class Plan:
    """Further responses per instruction, model and condition, to make the rarer verdict of each category less rare."""

    def __init__(
        self, labels: Iterable[Row], instructions: Iterable[Row], models: Sequence[str], config: SampleConfig
    ) -> None:
        """Plan from the labels so far.

        Args:
            labels: LABELS; read once.
            instructions: INSTRUCTIONS; read once.
            models: Public names of those that can be asked.
            config: `target_balance` is the share to reach; `n` the most responses to plan per instruction, model and
                condition; the order in which instructions are drawn on is by `seed`.
        """
        self._config = config
        self._next: dict[Place, int] = {}  # the first seed that was not asked yet
        self._extra: Counter[Place] = Counter()
        acceptance = Acceptance()
        for row in acceptance.of_labels(labels):
            place = (row["instruction_id"], row["model"], row["condition"])
            if row.get("seed") is not None:
                self._next[place] = max(self._next.get(place, config.seed), row["seed"] + 1)
        short = {
            category: verdicts
            for category, verdicts in acceptance.by_category().items()
            if (share := share_followed(verdicts)) is not None and min(share, 1 - share) < config.target_balance
        }
        constraints = _constraints(instructions, short)
        sources = [(model, condition) for model in models for condition in config.condition]
        self.shortages = []
        for category, verdicts in short.items():
            seen = {source: acceptance.cells.get((category, *source), Counter()) for source in sources}
            self.shortages.append(self._fill(category, verdicts, constraints[category], seen))

    def seeds(self, row: Mapping[str, Any], model: str, condition: str) -> range:
        """Of the responses to ask for; they go on where the labels end, so that nothing is asked twice."""
        place = (row["instruction_id"], model, condition)
        start = self._next.get(place, self._config.seed)
        return range(start, start + self._extra[place])

    def _fill(
        self,
        category: str,
        verdicts: Verdicts,
        constraints: Mapping[str, int],
        seen: Mapping[tuple[str, str], Verdicts],
    ) -> Shortage:
        """Plan responses, a round over the instructions after the other, until the share is to be expected.

        Where the sources that are expected to give the rarer verdict more often than the target are not enough, those
        follow that gave it and are expected to give it clearly more often than so far: the share rises, if not to the target.
        """
        target, followed = self._config.target_balance, verdicts[True] < verdicts[False]
        rates = {source: _rate(found, followed) for source, found in seen.items()}
        rare, total = float(verdicts[followed]), verdicts[True] + verdicts[False]
        share = rare / total
        for (key, model, condition), n_planned in self._extra.items():  # for categories that an instruction has besides
            rare += rates[model, condition] * n_planned * constraints.get(key, 0)
            total += n_planned * constraints.get(key, 0)
        strong = [source for source, rate in rates.items() if rate > target]
        may = [source for source, found in seen.items() if found[followed] or share_followed(found) is None]
        weak = [source for source in may if source not in strong and rates[source] > WORTHWHILE * share]
        ids = sorted(constraints)
        random.Random(self._config.seed).shuffle(ids)
        sources, n = [], 0
        by_rate = sorted(weak, key=lambda source: -rates[source])
        for wave, most in [(strong, target), *(([source], rates[source]) for source in by_rate)]:
            if rare >= most * total:  # from these it would get no less rare
                continue
            sources += wave
            for turn in range(self._config.n * len(wave)):
                for position, key in enumerate(ids):
                    if rare >= most * total:
                        break
                    source = wave[(position + turn) % len(wave)]  # each instruction comes to each source
                    if self._extra[key, *source] < self._config.n:
                        self._extra[key, *source] += 1
                        n += 1
                        rare += rates[source] * constraints[key]
                        total += constraints[key]
        return Shortage(category, followed, share, rare / total, n, sources, bool(strong))


def _constraints(instructions: Iterable[Row], categories: Iterable[str]) -> dict[str, dict[str, int]]:
    """How many constraints of a category each instruction has, for those that have any."""
    found: dict[str, dict[str, int]] = {category: {} for category in categories}
    for row in instructions:
        soft = Counter(c["category"] for c in row.get("constraints") or () if c["kind"] == "soft")
        for category in found.keys() & soft.keys() if row["instruction"] else ():
            found[category][row["instruction_id"]] = soft[category]
    return found


def _rate(found: Verdicts, followed: bool) -> float:
    """How often a verdict is expected after those found: (k + 1) / (n + 2), so 1/2 where untried."""
    return (found[followed] + 1) / (found[True] + found[False] + 2)


def _all_followed(row: Row, rules: Iterable[Mapping[str, Any]]) -> bool | None:
    """Whether a response follows all rules; null if one cannot be decided and none is broken."""
    prompt = row.get("instruction") or row["query"]
    found = []
    for rule in rules:
        try:
            kwargs = json.loads(rule["kwargs"] or "{}")
        except ValueError:
            found.append(None)
        else:
            found.append(verdict(rule["checker"], kwargs, row["response"], prompt=prompt).followed)
    return False if False in found else None if None in found else True
