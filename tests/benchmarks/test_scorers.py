"""Figures: by hand on a few rows; what could not be decided is left out and counted."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tjd.benchmarks import BENCHMARKS, cfbench, followbench, followbench_rules
from tjd.benchmarks.cfbench import ItemScores, item_scores, read_official
from tjd.benchmarks.figures import ALL, Figure
from tjd.metrics import resample_weights

Row = dict[str, Any]
Verdicts = Sequence[bool | None]


def row(strict: Verdicts, loose: Verdicts | None = None, *, checker: str = "punctuation:no_comma", **more: Any) -> Row:
    pairs = zip(strict, strict if loose is None else loose, strict=True)
    verdicts = [{"checker": checker, "followed": s, "followed_loose": m, "error": None} for s, m in pairs]
    return {"query_id": "q", "part": None, "turn": None, "level": None, "language": "en", "details": None,
            "verdicts": verdicts, **more}  # fmt: skip


def figures(benchmark: str, rows: list[Row]) -> dict[tuple[str, str], Figure]:
    found = BENCHMARKS[benchmark].figures(rows, np.ones((1, len(rows)), np.float32))
    assert len({(f.metric, f.group) for f in found}) == len(found)
    return {(f.metric, f.group): f for f in found}


def brief(figure: Figure) -> tuple[float | None, int, int]:
    value = float(figure.values_R[0])
    return None if np.isnan(value) else value, figure.n, figure.n_invalid


def test_ifeval_pools_constraints_and_counts_what_is_null() -> None:
    found = figures(
        "ifeval",
        [
            row([True, True]),
            row([False, True], [True, True]),
            row([False], checker="keywords:existence"),
            row([True, None]),  # one constraint unknown: so is the prompt, and the other constraint still counts
        ],
    )
    assert brief(found["prompt_level_strict_acc", ALL]) == brief(found["ISR", ALL]) == (1 / 3, 3, 1)
    assert brief(found["prompt_level_loose_acc", ALL]) == (2 / 3, 3, 1)
    assert brief(found["inst_level_strict_acc", ALL]) == (4 / 6, 6, 1)
    assert brief(found["inst_level_loose_acc", ALL]) == (5 / 6, 6, 1)
    assert brief(found["inst_level_strict_acc", "category=punctuation"]) == (4 / 5, 5, 1)
    assert brief(found["inst_level_strict_acc", "checker=keywords:existence"]) == (0.0, 1, 0)


def test_where_nothing_was_decided_there_is_no_value() -> None:
    found = figures("ifeval", [row([None])])
    assert brief(found["ISR", ALL]) == (None, 0, 1)


def test_multi_if_by_turn_and_language() -> None:
    found = figures(
        "multi-if",
        [
            row([True], turn=1),
            row([True, False], turn=2),
            row([False], [True], turn=1, language="fr"),
        ],
    )
    assert brief(found["prompt_level_strict_acc", "turn=1"]) == (0.5, 2, 0)
    assert brief(found["prompt_level_strict_acc", "language=fr, turn=1"]) == (0.0, 1, 0)
    assert brief(found["inst_level_strict_acc", "language=en"]) == (2 / 3, 3, 0)
    assert brief(found["average", "turn=1"]) == ((0.5 + 0.5 + 1 + 1) / 4, 2, 0)
    assert brief(found["prompt_level_strict_acc", "turn=3"]) == (None, 0, 0)


def group(part: str, key: str, *levels: Verdicts) -> list[Row]:
    return [row(v, part=part, level=n, query_id=f"{part}:{key}") for n, v in enumerate(levels, start=1)]


def test_followbench_hsr_ssr_and_csl() -> None:
    rows = [
        *group("style", "1", [True], [True, True], [True, False, True], [True] * 4, [False] * 5),
        *group("style", "2", [False], [True, False], [True] * 3, [True] * 4, [True] * 5),
        *group("content", "1", *[[True]] * 5),  # decided by code: one verdict a level
        *group("example", "1", [True], [False], [True], [True], [True]),
    ]
    found = figures("followbench", rows)
    assert brief(found["HSR", "category=style, level=1"]) == (0.5, 2, 0)
    assert brief(found["SSR", "category=style, level=2"]) == (0.75, 2, 0)
    assert brief(found["SSR", "category=style, level=3"]) == ((2 / 3 + 1) / 2, 2, 0)
    assert brief(found["CSL", "category=style"]) == (1.0, 2, 0)  # 2 levels in a row, and 0
    assert brief(found["CSL", ALL]) == ((2 + 0 + 5 + 1) / 4, 4, 0)
    assert brief(found["HSR", "level=2"]) == (2 / 4, 4, 0)
    assert brief(found["SSR", "level=2"]) == ((1 + 0.5 + 1) / 3, 3, 0)
    assert ("SSR", "category=example, level=1") not in found
    assert brief(found["ISR", ALL]) == (15 / 20, 20, 0)
    assert ("HSR", "weighted") not in found  # for want of categories


def test_the_official_aggregate_of_followbench_weighs_levels_and_leaves_out_the_examples() -> None:
    rows = [
        *group("style", "1", [True], [False, True], [True] * 3, [False] * 4, [True] * 5),
        *(row for part in ("content", "situation", "format", "mixed") for row in group(part, "1", *[[True]] * 5)),
        *group("example", "1", *[[False]] * 5),
    ]
    found = figures("followbench", rows)
    assert brief(found["HSR", "weighted"]) == (pytest.approx((4 + (1 + 3 + 5) / 15) / 5), 25, 0)
    assert brief(found["SSR", "weighted"]) == (pytest.approx((4 + (1 + 2 * 0.5 + 3 + 5) / 15) / 5), 25, 0)


def test_followbench_leaves_out_what_the_judge_left_open() -> None:
    rows = [
        *group("style", "1", [True], [None, None], [True] * 3, [True] * 4, [True] * 5),
        *group("style", "2", [False], [None, None], [True] * 3, [True] * 4, [True] * 5),
    ]
    found = figures("followbench", rows)
    assert brief(found["HSR", "level=2"]) == (None, 0, 2)
    assert brief(found["CSL", ALL]) == (0.0, 1, 1)  # the second group ends at level 1, whatever came after it


@pytest.mark.parametrize(
    ("scores", "parsing", "primary", "expected"),
    [
        ([1, 1, 1], "1", [True, False, False], (1.0, 1.0, 1.0)),
        ([0, 1, 1], "1", [True, False, False], (0.67, 0.0, 0.0)),
        ([1, 1, 0], "1", [True, False, False], (0.67, 0.0, 0.0)),  # 0.5 + 0.5 * 0.5 is not above 0.8
        ([1, 1, 1, 0], "1", [True, False, False, False], (0.75, 0.0, 1.0)),  # 0.5 + 0.5 * 0.67 is
        ([1, 1], "1", [True, True], (1.0, 1.0, 1.0)),
        ([1, 1, 1, 1, 0], "1", [False] * 5, (0.8, 0.0, 0.0)),
        ([1, 1, 1, 1, 1, 0], "1", [False] * 6, (0.83, 0.0, 1.0)),
        ([1], "0", [True, False], (1.0, 1.0, 1.0)),
        ([0], "-1", [True, False], (0.0, 0.0, 0.0)),
    ],
)
def test_cfbench_scores_of_one_prompt(scores: Any, parsing: Any, primary: Any, expected: ItemScores) -> None:
    assert item_scores(scores, parsing, primary) == expected


def test_cfbench_figures_by_split() -> None:
    details = json.dumps({"gold": "", "primary": [True, False]})
    rows = [
        row([True, True], part="easy", details=details),
        row([True, False], part="easy", details=details),
        row([False, True], part="hard", details=details),
        row([None, None], part="hard", details=details),
    ]
    found = figures("cfbench", rows)
    assert brief(found["CSR", ALL]) == (2 / 3, 3, 1)
    assert brief(found["ISR", ALL]) == (1 / 3, 3, 1)
    assert brief(found["PSR", "split=easy"]) == (0.5, 2, 0)
    assert brief(found["CSR", "split=hard"]) == (0.5, 1, 1)


CRITERIA = {"constraints": [{"text": "是一首诗"}, {"text": "介绍了茶 "}]}


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("是一首诗\t1\n\n介绍了茶\t0", [True, False]),
        ("是一首诗\t1.0\n介绍了茶 \t 0 \n", [True, False]),
        ("是一首诗\t1", None),
        ("是一首诗\t1\n\n介绍了茶\t2", None),
        ("介绍了茶\t1\n\n是一首诗\t1", None),
        ("好的\n是一首诗\t1\n\n介绍了茶\t0", None),
        ("是一首诗\t1\n\n介绍了茶\t0\n完毕", None),
        ("", None),
    ],
)
def test_a_cfbench_judgement_is_read_whole_or_not_at_all(text: str, verdicts: list[bool] | None) -> None:
    found, reason = cfbench.read_judgement(CRITERIA, text)
    assert found == (verdicts or [None, None])
    assert (reason is None) == (verdicts is not None)


def test_the_official_cfbench_reading_forgets_zeros_where_it_falls_back() -> None:
    assert read_official("a\t1\n\nb\t0", ["a", "b"]) == ([1.0, 0.0], "1")
    assert read_official("well:\n\na\t1\n\nb\t0", ["a", "b"]) == ([1.0], "0")
    assert read_official("a\t0", ["a", "b"]) == ([0.0], "-1")


def test_a_followbench_judgement_is_never_run_as_code() -> None:
    assert followbench.read_judgement({"level": 2}, "[print('x'), 'YES']")[0] == [None, None]
    assert followbench.read_judgement({"level": 2}, "[" * 5000 + "]" * 5000)[0] == [None, None]
    assert followbench.read_judgement({"level": 2}, "[['YES'], 'YES']")[0] == [None, None]


@given(st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4).map(tuple), st.integers(0, 5))
def test_the_order_of_rows_changes_no_figure(verdicts: tuple[bool | None, ...], shift: int) -> None:
    rows = [row([v], query_id=str(i)) for i, v in enumerate([*verdicts, True])]
    turned = rows[shift % len(rows) :] + rows[: shift % len(rows)]
    assert brief(figures("ifeval", rows)["ISR", ALL]) == brief(figures("ifeval", turned)["ISR", ALL])


def test_prompts_of_a_conversation_are_resampled_together() -> None:
    rows = [row([turn == 1], turn=turn, query_id=query_id) for query_id in "ab" for turn in (1, 2)]
    weights_RN = resample_weights([r["query_id"] for r in rows], n_resamples=50)
    isr = BENCHMARKS["multi-if"].figures(rows, weights_RN)[0]
    assert set(isr.values_R) == {0.5}


def test_resamples_of_a_single_group_say_nothing() -> None:
    rows = [row([True], turn=1, query_id="a"), row([False], turn=2, query_id="a"), row([None], turn=1, query_id="b")]
    weights_RN = resample_weights([r["query_id"] for r in rows], n_resamples=50)
    isr = BENCHMARKS["multi-if"].figures(rows, weights_RN)[0]
    assert brief(isr) == (0.5, 2, 1)
    assert np.isnan(isr.values_R[1:]).all()


@pytest.mark.parametrize(
    ("name", "answer", "level", "target", "followed"),
    [
        ("E2E", "name[x]", 1, "name[x]", True),
        ("E2E", "name[x] ", 1, "name[x]", False),
        ("BBH_logical", "not (A) but (B)", 1, "(B)", True),
        ("gsm_8k", "it costs 14", 1, "$14", False),
        ("gigaword", "rain in the north for the whole day", 5, "", True),
        ("gigaword", "rain in the north for the whole Day", 2, "", True),
        ("gigaword", "rain in the north for the whole Day", 3, "", False),
        ("xsum", "Rain is falling. It is wet.", 1, "", False),
        ("example", "BOT: 4 {x}", 1, "{instruction}\nBOT: {answer}", True),
        ("example", "BOT: 4\n", 1, "{instruction}\nBOT: {answer}", False),
        ("example", "{'a': '4'}", 1, "{instruction}\n{{'a': '{answer}'}}", True),
        ("format_22", "1. a\n\n2. b\n\n3. c", 2, "", True),
        ("format_22", "1. a\n\n2. b\n\n3. c", 3, "", False),
    ],
)
def test_followbench_rules(name: str, answer: str, level: int, target: str, followed: bool) -> None:
    assert followbench_rules.CHECKS[name](answer, level, target) is followed


def test_a_followbench_target_that_cannot_be_read_is_null_with_the_reason() -> None:
    strict, loose = followbench.check("followbench:CONLL2003", "Bonn", 1, "Bonn, Berlin")
    assert strict == loose
    assert strict.followed is None
    assert (strict.reason or "").startswith("followbench:CONLL2003: the target cannot be read (")
