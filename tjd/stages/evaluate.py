"""Evaluate: models on the benchmarks. Each answers every prompt, code and a judge give verdicts, the metrics follow.

In: BENCHMARK_INSTRUCTIONS. Out: EVALUATIONS, which keep every response, judgement and verdict, and from them
BENCHMARK_SCORES. In a conversation each turn sees the model's own answers to the turns before it. Nothing that failed
counts as 0: it is null with a reason, left out of the metrics and counted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np

from tjd.benchmarks import BENCHMARKS, Judging, rule_verdicts, verdict_row
from tjd.benchmarks.figures import ALL, Figure
from tjd.benchmarks.responses import Responses
from tjd.config import EvaluateConfig
from tjd.metrics import estimate, resample_weights
from tjd.prompts import Prompt
from tjd.tables import Row
from tjd.teacher import Again, Ask, Completion, Message, Request, once_more, reading, user
from tjd.teacher.plan import UNASKED

AVERAGE = "average"

Respond = Callable[[Sequence[Row]], list[Completion]]
"""A model's answers to BENCHMARK_INSTRUCTIONS, in their order."""


def take(rows: Sequence[Row], limit: int) -> list[Row]:
    """About so many rows: whole conversations and whole groups of levels, spread over parts and languages."""
    if not limit:
        return list(rows)
    sizes: dict[str, int] = {}
    queues: dict[Any, dict[str, None]] = {}
    for row in rows:
        sizes[row["query_id"]] = sizes.get(row["query_id"], 0) + 1
        queues.setdefault((row["part"], row["language"]), {})[row["query_id"]] = None
    kept: set[str] = set()
    n = 0
    for unit in (unit for turn in zip_longest(*queues.values()) for unit in turn if unit is not None):
        if n >= limit:
            break
        kept.add(unit)
        n += sizes[unit]
    return [row for row in rows if row["query_id"] in kept]


def live(ask: Ask, config: EvaluateConfig) -> Respond:
    """Answers of a model that can be asked; turn by turn, all conversations at once."""

    def respond(rows: Sequence[Row]) -> list[Completion]:
        answers: dict[str, Completion] = {}
        dialogues: dict[str, tuple[Message, ...] | None] = {}  # so far; null once an answer is missing
        for turn in sorted({row["turn"] or 1 for row in rows}):
            now = [row for row in rows if (row["turn"] or 1) == turn]
            before = [dialogues.get(_dialogue(row), ()) for row in now]
            asked = [
                (row, (*d, *user(row["instruction"]))) for row, d in zip(now, before, strict=True) if d is not None
            ]
            requests = [
                Request(messages, config.temperature, 1.0, config.max_tokens, config.seed) for _, messages in asked
            ]
            for (row, messages), completion in zip(asked, ask(requests), strict=True):
                text = None if completion.text is None else reading.without_thinking(completion.text)
                answers[row["instruction_id"]] = replace(completion, text=text)
                said = Message(role="assistant", content=text or "(nothing)")  # some providers refuse an empty turn
                dialogues[_dialogue(row)] = None if text is None else (*messages, said)
        missing = Completion(None, "", None, 0, 0, 0.0, error="an earlier turn has no answer")
        return [answers.get(row["instruction_id"], missing) for row in rows]

    return respond


def foreseen(ask: Ask) -> Ask:
    """In a dry run: answers as long as they may become stand in for those that were not asked for.

    So the later turns, and the judge's reading of them, are planned too.
    """

    def stand_in(requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        listed = list(requests)
        for request, completion in zip(listed, ask(listed, again), strict=True):
            unasked = completion.error == UNASKED
            yield replace(completion, text=" word" * request.max_tokens, error=None) if unasked else completion

    return stand_in


def recorded(responses: Responses) -> Respond:
    """Answers that a file holds, as they are."""

    def respond(rows: Sequence[Row]) -> list[Completion]:
        found = [responses.find(row) for row in rows]
        return [Completion(text, responses.model, cost_usd=0.0, error=error) for text, error in found]

    return respond


def evaluate(
    rows: Sequence[Row],
    models: Iterable[tuple[str, Respond]],
    judge: tuple[str, Ask] | None,
    prompts: Mapping[str, Prompt],
    again: Prompt,
    config: EvaluateConfig,
) -> list[Row]:
    """Let every model answer every prompt, and give each of its constraints a verdict.

    Args:
        rows: BENCHMARK_INSTRUCTIONS.
        models: Public name and answers, taken one after the other.
        judge: Name and `ask` of who decides soft constraints; null if the benchmarks have none.
        prompts: The judge's, by benchmark.
        again: Its variable is `reason`; asked once where a judgement cannot be read.
        config: Sampling.

    Returns:
        EVALUATIONS, by model, then in the order of `rows`. A verdict is null, with a reason in its `error`, where the
        model failed, a checker could not decide, or the judge failed or could not be read.

    Raises:
        BackendError: A model or the judge failed past its retries.
    """
    found = [
        _answered(name, row, completion)
        for name, respond in models
        for row, completion in zip(rows, respond(rows), strict=True)
    ]
    if judge is not None:
        _judge(found, *judge, prompts, again, config)
    return found


def score(evaluations: Sequence[Row], seed: int = 0) -> list[Row]:
    """The metrics of each model on each benchmark, with 95% bootstrap intervals over prompts.

    Conversations and groups of levels are drawn whole. Where a model was run on all five benchmarks, the mean of their
    ISR is added (the paper's average); they are resampled independently.

    Args:
        evaluations: EVALUATIONS.
        seed: Of the bootstrap.

    Returns:
        BENCHMARK_SCORES, in the order of the models and benchmarks in `evaluations`.
    """
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in evaluations:
        parts.setdefault((row["model"], row["benchmark"]), []).append(row)
    scores: list[Row] = []
    rates: dict[str, list[Figure]] = {}
    for (model, benchmark), rows in parts.items():
        draws = seed + list(BENCHMARKS).index(benchmark)  # another bootstrap each, the same for all models
        weights_RN = resample_weights([row["query_id"] for row in rows], seed=draws)
        for figure in BENCHMARKS[benchmark].figures(rows, weights_RN):
            scores.append(_score_row(model, benchmark, figure))
            if (figure.metric, figure.group) == ("ISR", ALL):
                rates.setdefault(model, []).append(figure)
    for model, figures in rates.items():
        if len(figures) == len(BENCHMARKS):
            values_R = np.mean([figure.values_R for figure in figures], axis=0)
            n, n_invalid = sum(f.n for f in figures), sum(f.n_invalid for f in figures)
            scores.append(_score_row(model, AVERAGE, Figure("ISR", ALL, values_R, n, n_invalid)))
    return scores


def _dialogue(row: Row) -> str:
    """What a row's conversation is known by: its own, unless it is a turn of one."""
    return row["query_id"] if row["turn"] else row["instruction_id"]


def _answered(model: str, row: Row, completion: Completion) -> Row:
    return {
        **row,
        "model": model,
        "response": completion.text,
        "finish_reason": completion.finish_reason,
        "n_tokens": None if completion.text is None else completion.n_tokens,
        "verdicts": rule_verdicts(row, completion.text),
        "judge": None,
        "judgement": None,
        "error": completion.error,
        "cost_usd": completion.cost_usd,
        "n_prompt_tokens": completion.n_prompt_tokens,
        "n_completion_tokens": completion.n_tokens,
    }


def _judge(
    rows: Sequence[Row], judge: str, ask: Ask, prompts: Mapping[str, Prompt], again: Prompt, config: EvaluateConfig
) -> None:
    """Fill in the verdicts of the soft constraints."""
    judged = [
        row for row in rows if row["response"] is not None and any(c["kind"] == "soft" for c in row["constraints"])
    ]
    requests = (_question(row, prompts, config) for row in judged)
    if_unreadable = once_more(lambda request, completion: _read(request.note, completion)[1], again)
    for row, completion in zip(judged, ask(requests, if_unreadable), strict=True):
        verdicts, reason = _read(row, completion)
        row["judge"], row["judgement"] = judge, completion.text
        row["verdicts"] = [
            verdict_row(constraint, followed, followed, reason)
            for constraint, followed in zip(row["constraints"], verdicts, strict=True)
        ]
        used = {
            "cost_usd": completion.cost_usd,
            "n_prompt_tokens": completion.n_prompt_tokens,
            "n_completion_tokens": completion.n_tokens,
        }
        for name, more in used.items():
            row[name] = None if row[name] is None or more is None else row[name] + more


def _question(row: Row, prompts: Mapping[str, Prompt], config: EvaluateConfig) -> Request:
    values = _judging(row).ask(row, row["response"])
    text = prompts[row["benchmark"]].render(**values)
    return Request(user(text), max_tokens=config.judge_max_tokens, seed=config.seed, note=row)


def _read(row: Row, completion: Completion) -> tuple[list[bool | None], str | None]:
    """The judge's verdicts, one per constraint; nulls and the reason if they cannot be read."""
    nulls: list[bool | None] = [None] * len(row["constraints"])
    if completion.text is None:
        return nulls, completion.error or "the call failed"
    if completion.finish_reason == "length":  # the end may be missing
        return nulls, reading.CUT
    return _judging(row).read(row, reading.without_thinking(completion.text))


def _judging(row: Row) -> Judging:
    judging = BENCHMARKS[row["benchmark"]].judging
    assert judging is not None  # only its rows have soft constraints
    return judging


def _score_row(model: str, benchmark: str, figure: Figure) -> Row:
    found = estimate(figure.values_R)  # no interval: no value either, though there is one
    numbers = {"value": float(figure.values_R[0]), "low": found.low, "high": found.high}
    return {
        "model": model,
        "benchmark": benchmark,
        "metric": figure.metric,
        "group": figure.group,
        **{name: None if np.isnan(number) else number for name, number in numbers.items()},
        "n": figure.n,
        "n_invalid": figure.n_invalid,
    }
