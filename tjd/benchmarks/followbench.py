"""FollowBench: 820 instructions, groups of five levels, each level one constraint more than the one before.

Code decides some sources and the examples (`followbench_rules`); a judge decides the rest: it sees how the instruction
grew and says, constraint by constraint, whether the answer follows it.

Source: Jiang et al., arXiv:2310.20410. Departures: where the judge cannot be read a level is undecided and left out
(the official script adds -1); the prompt of the judge is our own.
"""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tjd.benchmarks import followbench_rules, sources
from tjd.benchmarks.figures import ALL, NOTHING, Figure, Tally, chosen, isr, prompt_level, share
from tjd.checkers import Verdict
from tjd.errors import DataError
from tjd.tables import Row

HOWTO = "FollowBench is the folder data/ of YJiangcm/FollowBench (six files named *_constraints.json): give that folder"
CATEGORIES = ("content", "situation", "style", "format", "mixed", "example")
COLUMNS = ("example_id", "category", "source", "level", "instruction", "target")
LEVELS = (1, 2, 3, 4, 5)
CHECKER = "followbench:"  # before the name of a check
PROMPT = "followbench.v1"
VARIABLES = ("n", "path", "response")
YES = "YES"
NOT_YES = ("NO", "PARTIAL", "MAYBE", "UNKNOWN", "N/A")

# our categories of the constraints that a judge decides; the situations are mostly reasoning, and belong to none
TAXONOMY = {"content": "semantic", "style": "style", "format": "layout", "example": "structure"}


def read(source: str) -> list[Row]:
    """Read levels 1 to 5 of all six categories; the levels of a group share one `query_id`.

    Raises:
        DataError: The folder or one of its files is missing, or has another form.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"there is no folder {source}; {HOWTO}")
    return [row for category in CATEGORIES for row in _category(folder, category)]


def check(checker: str, answer: str, level: int, target: str) -> tuple[Verdict, Verdict]:
    """The verdict of a level, twice: FollowBench has no loose mode."""
    decide = followbench_rules.CHECKS[checker.removeprefix(CHECKER)]
    try:
        verdict = Verdict(decide(answer, level, target))
    except (ValueError, SyntaxError) as error:
        verdict = Verdict(None, f"{checker}: the target cannot be read ({error})")
    return verdict, verdict


def ask(row: Row, response: str) -> dict[str, str]:
    """The variables of the judge's prompt."""
    path = json.loads(row["details"])["path"]
    steps = "\n\n".join(f'<step number="{i}">\n{text}\n</step>' for i, text in enumerate(path))
    return {"n": str(row["level"]), "path": steps, "response": response}


def read_judgement(row: Row, text: str) -> tuple[list[bool | None], str | None]:
    """Read the last line as the official script does: YES or NO at level 1, else a list of as many words as constraints.

    Returns:
        A verdict per constraint; nulls and the reason if the line cannot be read.
    """
    level = row["level"]
    lines = text.strip("`").strip().split("\n")
    if level == 1:
        found = [YES in lines[-1]] if YES in lines[-1] or "NO" in lines[-1] else None
    else:
        found = _listed(lines[-1], level)
    if found is None:
        return [None] * level, f"the last line is not a list of {level} of YES or NO"
    return list(found), None


def figures(rows: Sequence[Row], weights_RN: np.ndarray) -> list[Figure]:
    """HSR and SSR of each category and level, CSL of each category, and what pools them.

    HSR is the share of instructions whose constraints are all followed, SSR the mean share of followed constraints, CSL
    the number of levels followed in a row from the first. The group `weighted` is the official aggregate: levels weigh 1
    to 5, and the five categories other than the examples weigh the same; it needs rows of all of them.
    """
    found = [isr(rows, weights_RN), *_by_level(rows, weights_RN, ""), _csl(rows, weights_RN, ALL)]
    official: dict[str, list[Figure]] = {"HSR": [], "SSR": []}
    for category in (category for category in CATEGORIES if any(row["part"] == category for row in rows)):
        own, weights = chosen(rows, weights_RN, lambda row, c=category: row["part"] == c)
        by_level = _by_level(own, weights, f"category={category}, ")
        found += [*by_level, _csl(own, weights, f"category={category}")]
        if category != "example":
            for metric, figures_C in official.items():
                levels = [figure for figure in by_level if figure.metric == metric]
                figures_C.append(_averaged(metric, levels, LEVELS))
    if len(official["HSR"]) == len(CATEGORIES) - 1:
        found += [_averaged(metric, figures_C) for metric, figures_C in official.items()]
    return found


def _category(folder: Path, category: str) -> list[Row]:
    path = sources.find(folder, f"{category}_constraints.json", HOWTO)
    records = sources.checked(sources.read_file(path), COLUMNS, str(path), HOWTO)
    by_level = {(record["example_id"], record["level"]): record for record in records}
    return [
        _instruction(category, by_level, example_id, level)
        for example_id, level in by_level
        if level >= 1  # 0 is the seed of a group
    ]


def _instruction(category: str, by_level: dict[tuple[int, int], Row], example_id: int, level: int) -> Row:
    record = by_level[example_id, level]
    name = followbench_rules.check_name(category, example_id, record["source"])
    if name is not None:
        kwargs = {"level": level, "target": record["target"]}
        constraints, path = [sources.rule(CHECKER + name, kwargs)], None
    else:
        try:
            steps = [by_level[example_id, step] for step in range(level + 1)]
        except KeyError as exc:
            raise DataError(f"followbench {category} {example_id} has no level {exc.args[0][1]}; {HOWTO}") from exc
        path = [step["instruction"] for step in steps]
        constraints = [_added(category, steps[step], path[step - 1 : step + 1]) for step in range(1, level + 1)]
    return sources.instruction_row(
        f"followbench:{category}:{example_id}:{level}",
        record["instruction"],
        constraints,
        query_id=f"followbench:{category}:{example_id}",
        language="en",
        part=category,
        level=level,
        details=None if path is None else json.dumps({"path": path}, ensure_ascii=False),
    )


def _added(category: str, record: Row, steps: Sequence[str]) -> Row:
    """The constraint that a level adds: the data gives it by the two instructions only."""
    kind = record["category"].split(", ")[-1] if category == "mixed" else category
    before, after = steps
    return sources.soft(
        f"What the second of these requests asks beyond the first.\n\n1. {before}\n\n2. {after}", TAXONOMY.get(kind)
    )


def _listed(line: str, n: int) -> list[bool] | None:
    found = re.search(r"\[.*\]", line)
    try:
        words: Any = ast.literal_eval(found[0]) if found else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(words, list) or len(words) != n or not all(word in (YES, *NOT_YES) for word in words):
        return None
    return [word == YES for word in words]


def _by_level(rows: Sequence[Row], weights_RN: np.ndarray, prefix: str) -> list[Figure]:
    found = []
    for level in LEVELS:
        own, weights = chosen(rows, weights_RN, lambda row, n=level: row["level"] == n)
        group = f"{prefix}level={level}"
        found.append(share("HSR", group, map(prompt_level, own), weights))
        if not own or any(row["part"] != "example" for row in own):  # the examples have no SSR
            found.append(share("SSR", group, map(_soft, own), weights))
    return found


def _soft(row: Row) -> Tally:
    """The share of a row's constraints that are followed; of a level that code decides, all or nothing."""
    if row["part"] == "example":
        return NOTHING
    verdicts = [verdict["followed"] for verdict in row["verdicts"]]
    return Tally(invalid=1) if None in verdicts else Tally(sum(verdicts) / len(verdicts), 1.0)


def _averaged(metric: str, parts: Sequence[Figure], weights: Sequence[int] | None = None) -> Figure:
    """A mean of figures over different rows."""
    values_R = np.average([figure.values_R for figure in parts], axis=0, weights=weights)
    return Figure(metric, "weighted", values_R, sum(f.n for f in parts), sum(f.n_invalid for f in parts))


def _csl(rows: Sequence[Row], weights_RN: np.ndarray, group: str) -> Figure:
    by_group: dict[str, dict[int, Tally]] = {}
    for row in rows:
        by_group.setdefault(row["query_id"], {})[row["level"]] = prompt_level(row)
    tallies = [  # a group is counted at its first level
        _consecutive(by_group[row["query_id"]]) if row["level"] == LEVELS[0] else NOTHING for row in rows
    ]
    return share("CSL", group, tallies, weights_RN)


def _consecutive(levels: dict[int, Tally]) -> Tally:
    """How many levels are followed in a row from the first; undecided if one is before the row ends."""
    for level in LEVELS:
        if level not in levels or levels[level].invalid:
            return Tally(invalid=1)
        if not levels[level].hits:
            return Tally(level - 1.0, 1.0)
    return Tally(float(len(LEVELS)), 1.0)
