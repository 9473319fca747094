"""CFBench: 1,000 Chinese prompts, each with criteria that a judge checks; some are primary, the others secondary.

Source: Zhang et al., arXiv:2408.01122. Departures: the official script, when no round of judging can be read, keeps the
lines that say 1 and forgets those that say 0, or scores the prompt 0; here such a prompt is undecided and left out
(`read_official` and `item_scores` give the official figures from recorded judgements). The judge's prompt is our own.
"""

import json
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from tjd.benchmarks import sources
from tjd.benchmarks.figures import ALL, Figure, Tally, chosen, isr, share
from tjd.errors import DataError
from tjd.tables import Row

HOWTO = "CFBench is data/cfbench_data.json of PKU-Baichuan-MLSystemLab/CFBench: give that file or its folder"
COLUMNS = ("idx", "prompt", "gold", "split", "criteria")
PROMPT = "cfbench.v1"
VARIABLES = ("query", "reference", "response", "criteria")
PRIMARY = "主需"
SPLITS = ("easy", "hard")
ENOUGH = 0.8  # above this share of followed secondary criteria the user's need counts as met

Parsing = Literal["1", "0", "-1"]  # as the official script calls it: read whole; only lines that say 1; not read

# our categories by type, or by type and subtype; what is not listed (counts of words, unreasonable demands, actions) is
# outside the taxonomy
TAXONOMY = {
    "内容约束": "semantic",
    "否定约束": "semantic",
    "风格约束": "style",
    "example约束": "structure",
    "格式约束": "layout",
    "语言约束": "linguistic",
    "语言约束/语用语言约束": "language",
    "场景约束/角色场景约束": "style",
    "数值约束/段落数值约束": "layout",
    "数值约束/文档数值约束": "layout",
}

_SCORED = re.compile(r"([^\t]+)\t[ ]*([01](?:\.0)?)[ ]*(?:\n|\Z)")


class ItemScores(NamedTuple):
    """The three scores of one prompt."""

    csr: float  # share of criteria followed, rounded to two decimals as the official script does before it goes on
    isr: float  # 1 if all are
    psr: float  # 1 if the primary ones are, and enough of the others


def read(source: str) -> list[Row]:
    """Read the prompts with their criteria; see `sources.read_rows`."""
    return [_instruction(row) for row in sources.read_rows(source, "cfbench_data.json", COLUMNS, HOWTO)]


def ask(row: Row, response: str) -> dict[str, str]:
    """The variables of the judge's prompt."""
    criteria = "\n\n".join(constraint["text"] for constraint in row["constraints"])
    reference = json.loads(row["details"])["gold"] or "（无）"  # noqa: RUF001
    return {"query": row["query"], "reference": reference, "response": response, "criteria": criteria}


def read_judgement(row: Row, text: str) -> tuple[list[bool | None], str | None]:
    """Read one score per criterion, in order, whole or not at all; blank lines and outer spaces do not matter.

    Returns:
        A verdict per criterion; nulls and the reason if any line is not in the form that was asked for.
    """
    criteria = [constraint["text"].strip() for constraint in row["constraints"]]
    text = text.strip()
    found = list(_SCORED.finditer(text))
    whole = "".join(match[0] for match in found) == text
    if not whole or [match[1].strip() for match in found] != criteria:
        return [None] * len(criteria), f"not {len(criteria)} lines of a criterion as given, a tab, and 0 or 1"
    return [float(match[2]) == 1 for match in found], None


def read_official(text: str, criteria: Sequence[str]) -> tuple[list[float], Parsing]:
    """Read a judgement as the official script does in its last round.

    Returns:
        The scores, and how they came about: all of them ("1"), only the lines that say 1 ("0"), or a single 0 ("-1").
    """
    parts = [part.split("\t") for part in text.split("\n\n")]
    scores = [_score(part[1]) for part in parts if len(part) == 2]
    names = [part[0] for part in parts]
    if names == list(criteria) and len(scores) == len(parts) and None not in scores:
        return [score for score in scores if score is not None], "1"
    lines = [line.split("\t") for line in text.split("\n")]
    ones = [score for line in lines if len(line) == 2 and (score := _score(line[1]))]
    return (ones, "0") if ones else ([0.0], "-1")


def item_scores(scores: Sequence[float], parsing: Parsing, primary: Sequence[bool]) -> ItemScores:
    """The scores of one prompt from those of its criteria, with the official script's roundings.

    Args:
        scores: 0 or 1 each; in the order of `primary` where `parsing` is "1".
        parsing: From `read_official`.
        primary: Whether each criterion is.
    """
    csr = round(float(np.mean(scores)), 2)
    if parsing == "-1":
        psr = 0.0
    elif parsing == "0" or not any(primary):
        psr = float(csr > ENOUGH)
    else:
        pairs = list(zip(scores, primary, strict=True))
        others = [score for score, is_primary in pairs if not is_primary]
        met = all(score for score, is_primary in pairs if is_primary)
        psr = float(met and (not others or 0.5 + 0.5 * round(float(np.mean(others)), 2) > ENOUGH))
    return ItemScores(csr, float(csr >= 1), psr)


def figures(rows: Sequence[Row], weights_RN: np.ndarray) -> list[Figure]:
    """CSR, ISR and PSR, of all prompts and of the easy and the hard ones."""
    found = [isr(rows, weights_RN)]
    for split in (None, *SPLITS):
        own, weights = chosen(rows, weights_RN, lambda row, s=split: s in (None, row["part"]))
        scores = [_scores_of(row) for row in own]
        group = ALL if split is None else f"split={split}"
        for metric in ("CSR", "ISR", "PSR"):
            tallies = [Tally(invalid=1) if s is None else Tally(getattr(s, metric.lower()), 1.0) for s in scores]
            if (metric, group) != ("ISR", ALL):  # there already
                found.append(share(metric, group, tallies, weights))
    return found


def _instruction(row: Row) -> Row:
    for criterion in row["criteria"]:
        if len(criterion) != 4:
            raise DataError(f"cfbench {row['idx']}: a criterion is not [text, priority, type, subtype]; {HOWTO}")
    texts = [(text, _category(kind, subtype)) for text, _, kind, subtype in row["criteria"]]
    details = {"gold": row["gold"] or "", "primary": [c[1] == PRIMARY for c in row["criteria"]]}
    return sources.instruction_row(
        f"cfbench:{row['idx']}",
        row["prompt"],
        [sources.soft(text, category) for text, category in texts],
        language="zh",
        part=row["split"],
        details=json.dumps(details, ensure_ascii=False),
    )


def _category(kind: str, subtype: str) -> str | None:
    return TAXONOMY.get(f"{kind}/{subtype}") or TAXONOMY.get(kind)


def _score(text: str) -> float | None:
    try:
        score = float(text)
    except ValueError:
        return None
    return score if score in (0, 1) else None


def _scores_of(row: Row) -> ItemScores | None:
    verdicts = [verdict["followed"] for verdict in row["verdicts"]]
    if None in verdicts:
        return None
    return item_scores([float(v) for v in verdicts], "1", json.loads(row["details"])["primary"])
