"""Label: one verdict per (response, constraint), by code for a rule and by the teacher for a soft constraint.

In: responses with their constraints. Out: labels. As in the paper (section 3.3) the teacher sees one constraint at a
time; mode `batch` shows it all soft constraints of a response at once, which is cheaper and less exact. Unlike the
paper, a verdict can be missing: what cannot be read is null with a reason, never a "no". The teacher may be a panel, of
which each member has all votes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, tee
from typing import Any

from tjd.config import LabelConfig, Mode
from tjd.prompts import Prompt
from tjd.tables import Row
from tjd.teacher import Ask, Completion, Request, once_more
from tjd.teacher.verdicts import Asked, Ballot, read, unreadable, verdict_request

NEED = ("response_id", "query", "response", "constraints")
TIED = "votes are tied"
LOST = "votes unreadable: "  # in `error`, before why a vote failed where that is not all there is to tell

Check = Callable[..., tuple[bool | None, str | None]]
"""Checker, kwargs, response, and `prompt=` what the model was asked; whether the rule is followed, or null and why."""

Constraint = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What is known of one constraint, and how."""

    mode: str  # "pointwise", "batch" or "rule"
    votes: Sequence[bool | None] = ()
    followed: bool | None = None
    agreement: float | None = None
    error: str | None = None
    cost_usd: float | None = 0.0
    n_prompt_tokens: int | None = 0
    n_completion_tokens: int | None = 0
    teacher: str | None = None
    teachers: Sequence[str] = ()  # of `votes`
    rationale: str | None = None
    soft: float | None = None


def label(
    rows: Iterable[Row], prompt: Prompt, again: Prompt, ask: Ask, config: LabelConfig, check: Check
) -> Iterator[Row]:
    """Give each (response, constraint) a verdict.

    Args:
        rows: RESPONSES.
        prompt: Its variables are `teacher.verdicts.VARIABLES[config.mode]`; its form is that of `config`.
        again: Its variable is `reason`; asked once where a completion cannot be read.
        ask: The teacher, or a panel of as many as `config` names: `votes` holds the first vote of each, then the second.
        config: Votes are asked with the seeds `config.seed`, `config.seed + 1`, ...
        check: Decides a rule.

    Yields:
        LABELS, in the order of `rows` and of their constraints. `followed` is null, with a reason in `error`, where the
        response is null, no vote can be read, votes are tied, or the checker failed.

    Raises:
        PromptError: The prompt names other variables.
        BackendError: The teacher failed past its retries.
    """
    ahead, behind = tee(rows)
    requests = (
        request
        for row in ahead
        for question in questions(row, config.mode)
        for request in requests_of(row, question, prompt, config)
    )
    completions = ask(requests, once_more(unreadable, again))
    for row in behind:
        opinions: dict[int, Opinion] = {}
        for question in questions(row, config.mode):
            votes = list(islice(completions, config.n_votes))
            opinions |= zip(question, _tallied(votes, len(question), config), strict=True)
        for place, constraint in enumerate(row["constraints"] or ()):
            opinion = opinions.get(place) or _unasked(row, constraint, config.mode, check)
            yield _labelled(row, constraint, opinion)


def questions(row: Row, mode: Mode) -> list[list[int]]:
    """Which constraints of a response the teacher is asked about together, by their place in the list."""
    if row["response"] is None:
        return []
    places = [i for i, c in enumerate(row["constraints"] or ()) if c["kind"] == "soft" and c["text"]]
    if mode == "pointwise":
        return [[place] for place in places]
    return [places] if places else []


def requests_of(row: Row, question: Sequence[int], prompt: Prompt, config: LabelConfig) -> list[Request]:
    """One request per vote."""
    texts = [row["constraints"][place]["text"] for place in question]
    how = (config.format, config.rationale)
    asked = verdict_request(prompt, config.mode, row["query"] or "", row["response"], texts, *how)
    request = replace(asked, temperature=config.temperature, max_tokens=config.max_tokens, logprobs=config.logprobs)
    return [replace(request, seed=config.seed + vote) for vote in range(config.votes)]


def majority(votes: Sequence[bool | None]) -> tuple[bool | None, float | None]:
    """The verdict of most readable votes, and the share that agrees; null where none is readable, or they are tied."""
    readable = [vote for vote in votes if vote is not None]
    if not readable:
        return None, None
    n_yes = sum(readable)
    n_no = len(readable) - n_yes
    return (None if n_yes == n_no else n_yes > n_no), max(n_yes, n_no) / len(readable)


def certain_majority(votes: Sequence[bool | None]) -> bool | None:
    """The verdict of more than half of all votes, whatever the unreadable ones would have said; null if there is none."""
    return next((side for side in (True, False) if 2 * votes.count(side) > len(votes)), None)


def _tallied(completions: Sequence[Completion], n: int, config: LabelConfig) -> list[Opinion]:
    """One opinion per constraint of a question; cost and tokens of a completion are shared equally by them."""
    asked = Asked(None if config.mode == "pointwise" else n, config.format)
    readings = [read(completion, asked) for completion in completions]
    first_reason = next((reason for _, reason in readings if reason), None)
    teachers = [completion.model for completion in completions]
    cost_usd = _total([completion.cost_usd for completion in completions])
    prompt_tokens = _shares(_total([completion.n_prompt_tokens for completion in completions]), n)
    tokens = _shares(_total([completion.n_tokens for completion in completions]), n)
    opinions = []
    for place, ballots in enumerate(zip(*(ballots for ballots, _ in readings), strict=True)):
        votes = [ballot.followed for ballot in ballots]
        followed, agreement = majority(votes)
        tied = followed is None and agreement is not None
        lost = f"{votes.count(None)} of {len(votes)} {LOST}{first_reason}" if None in votes else None
        error = "; ".join(filter(None, (TIED, lost))) if tied else first_reason
        if config.ground_truth and lost:
            followed, error = certain_majority(votes), lost
        softs = [ballot.soft for ballot in ballots if ballot.soft is not None]
        opinions.append(
            Opinion(
                config.mode,
                votes,
                followed,
                agreement,
                error,
                None if cost_usd is None else cost_usd / n,
                prompt_tokens[place],
                tokens[place],
                teacher=" + ".join(dict.fromkeys(teachers)),
                teachers=teachers,
                rationale=_rationale(ballots, followed),
                soft=sum(softs) / len(softs) if softs else None,
            )
        )
    return opinions


def _total(values: Sequence[Any]) -> Any:
    """The sum; null if one is."""
    return None if None in values else sum(values)


def _shares(total: int | None, n: int) -> list[int | None]:
    """`n` whole numbers that differ by one at most and sum to the total; nulls if it is null."""
    return [None if total is None else total // n + (place < total % n) for place in range(n)]


def _rationale(ballots: Sequence[Ballot], followed: bool | None) -> str | None:
    """The reason of the first vote that agrees with the verdict; of the first vote, where there is no verdict."""
    given = [ballot for ballot in ballots if ballot.rationale and followed in (None, ballot.followed)]
    return given[0].rationale if given else None


def _unasked(row: Row, constraint: Constraint, mode: Mode, check: Check) -> Opinion:
    """The opinion where no teacher is needed, or where there is nothing to ask it."""
    kind = constraint["kind"]
    how = "rule" if kind == "rule" else mode
    if kind not in ("rule", "soft"):
        return Opinion(how, error=f"the kind of a constraint is 'rule' or 'soft', not '{kind}'")
    if row["response"] is None:
        reason = row.get("error")
        return Opinion(how, error="there is no response" + (f": {reason}" if reason else ""))
    if kind == "soft":
        return Opinion(how, error="the constraint has no text")
    try:
        kwargs = json.loads(constraint["kwargs"] or "{}")
    except ValueError:
        return Opinion(how, error="the kwargs of the rule are not JSON")
    prompt = row.get("instruction") or row["query"]
    followed, error = check(constraint["checker"], kwargs, row["response"], prompt=prompt)
    return Opinion(how, followed=followed, error=error)


def _labelled(row: Row, constraint: Constraint, opinion: Opinion) -> Row:
    about = {name: constraint[name] for name in ("constraint_id", "kind", "category", "checker", "kwargs")}
    verdict = {
        "constraint": constraint["text"],
        "followed": opinion.followed,
        "votes": list(opinion.votes),
        "agreement": opinion.agreement,
        "mode": opinion.mode,
        "teacher": opinion.teacher,
        "teachers": list(opinion.teachers),
        "rationale": opinion.rationale,
        "soft": opinion.soft,
        "error": opinion.error,
        "cost_usd": opinion.cost_usd,
        "n_prompt_tokens": opinion.n_prompt_tokens,
        "n_completion_tokens": opinion.n_completion_tokens,
    }
    return {**row, **about, **verdict}
