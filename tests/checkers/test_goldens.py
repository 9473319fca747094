"""Verdicts agree with our own golden file, and with the official checkers where their goldens are at hand."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tjd.checkers import SUITES, Suite, Verdict, strict_and_loose, verdict
from tjd.checkers.arguments import read_signature

OWN = Path(__file__).parents[1] / "golden" / "checkers.jsonl"
CASES = [json.loads(line) for line in OWN.read_text(encoding="utf-8").splitlines()]
OPTIONS = ("suite", "mode", "fixed")
MENDED = {checker for suite in SUITES.values() for checker, run in suite.items() if read_signature(run).can_be_fixed}


@pytest.mark.parametrize("checker", sorted({case["checker"] for case in CASES}))
def test_own_goldens(checker: str) -> None:
    for case in CASES:
        if case["checker"] == checker:
            options = {name: case[name] for name in OPTIONS if name in case}
            found = verdict(checker, case["kwargs"], case["response"], **options)
            assert found.followed is case["expected"], (case, found)
            assert (found.reason is None) == (found.followed is not None)


def test_own_goldens_cover_every_checker_three_ways() -> None:
    expected = {checker: Counter[Any]() for checker in SUITES["ifeval"]}
    for case in CASES:
        if case["checker"] in expected:
            expected[case["checker"]][case["expected"]] += 1
            expected[case["checker"]]["empty"] += case["response"] == ""
    assert all(counts[True] and counts[False] and counts["empty"] for counts in expected.values())


def test_the_documentation_lists_what_fixed_mends() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    section = text.partition("## What `--fixed` mends")[2].partition("\nNot mended")[0]
    first_cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\S+:\S+)`", " ".join(first_cells))) == sorted(MENDED)


def test_own_goldens_show_what_fixed_mends() -> None:
    """Every checker with a mended variant has a case on which that variant and the official behaviour differ."""
    shown = set()
    for case in CASES:
        if case.get("fixed"):
            options = {name: case[name] for name in OPTIONS if name in case and name != "fixed"}
            official = verdict(case["checker"], case["kwargs"], case["response"], **options)
            shown |= {case["checker"]} if official.followed is not case["expected"] else set()
    assert shown >= MENDED


def official_rows(suite: Suite) -> list[dict[str, Any]]:
    folder = os.environ.get("TJD_SHARED_DATA")
    path = Path(folder or ".") / "goldens" / f"{suite}.parquet"
    if not folder or not path.is_file():
        pytest.skip("TJD_SHARED_DATA does not lead to the official goldens")
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("suite", ["ifeval", "ifbench", "iftrain", pytest.param("multi_if", marks=pytest.mark.slow)])
def test_agrees_with_official_verdicts(suite: Suite) -> None:
    differing, unstable = [], []
    rows = official_rows(suite)
    for row in rows:
        found = strict_and_loose(row["instruction_id"], json.loads(row["kwargs"]), row["response"], suite=suite)
        if found != (Verdict(row["strict"]), Verdict(row["loose"])):
            entry = (row["prompt_id"], row["instruction_id"], row["response"][:200], found)
            (differing if row["stable"] else unstable).append(entry)
    print(f"{suite}: {len(rows)} rows, unstable ones that differ: {unstable or 'none'}")  # noqa: T201
    assert not differing


@pytest.mark.parametrize("suite", ["ifeval", "iftrain"])
def test_regex_agrees_with_re_on_official_keywords(suite: Suite) -> None:
    import regex

    for row in official_rows(suite)[::7]:
        kwargs = json.loads(row["kwargs"])
        values = (value if isinstance(value, list) else [value] for value in kwargs.values())
        for keyword in (word for words in values for word in words if isinstance(word, str) and len(word) < 40):
            try:
                pattern = re.compile(keyword, re.IGNORECASE)
            except re.error:
                continue
            ours = [found.span() for found in regex.finditer(keyword, row["response"], regex.IGNORECASE)]
            assert ours == [found.span() for found in pattern.finditer(row["response"])], (keyword, row["response"])
