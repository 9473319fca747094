"""Synthesize: the teacher writes soft constraints for each query and weaves them into an instruction.

In: queries. Out: instructions, one per query. As in the paper (section 4.1), with two additions: categories are
assigned in balance over the table, and rule constraints that a query already has are kept and shown to the teacher.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, islice, tee
from typing import Any

from tjd import tables
from tjd.checkers import Checker, validate
from tjd.config import SynthesizeConfig
from tjd.errors import CheckerError, DataError, MissingExtraError
from tjd.prompts import Prompt
from tjd.tables import Row
from tjd.taxonomy import Category, choose
from tjd.teacher import Ask, Completion, Request, once_more, reading, user

VARIABLES = ("n", "categories", "query", "rules")
EMPTY = Completion(None, "", None, 0, 0, 0.0, error="the query is empty")
FIELDS = tuple(field.name for field in tables.CONSTRAINT)

Constraint = dict[str, Any]


def synthesize(
    rows: Iterable[Row],
    prompt: Prompt,
    again: Prompt,
    ask: Ask,
    config: SynthesizeConfig,
    taxonomy: Mapping[str, Category],
    n_before: int = 0,
) -> Iterator[Row]:
    """Turn each query into an instruction with soft constraints.

    Args:
        rows: QUERIES. A column `category` fixes the first category of a row that has one; a column `constraints` is kept.
        prompt: Its variables are `VARIABLES`.
        again: Its variable is `reason`; asked once where a completion cannot be used.
        ask: The teacher.
        config: See `SynthesizeConfig`.
        taxonomy: Every known category by name.
        n_before: So many rows at the start belong to other parts of the table: they are counted in the balance of
            categories, and nothing is asked about them.

    Yields:
        INSTRUCTIONS, in the order of the other `rows`. Where the teacher failed, `instruction` is null, `error` says why, and
        only the constraints that the query brought are left.

    Raises:
        ConfigError: An unknown category is asked for.
        DataError: A row names an unknown category, or its constraints are not a list of constraints.
        BackendError: The teacher failed past its retries.
    """
    chosen = choose(dict(taxonomy), config.category)
    ahead, behind = tee(islice(_assigned(rows, chosen, taxonomy, config), n_before, None))
    requests = (request_of(row, categories, prompt, config, taxonomy) for row, categories in ahead if row["query"])
    completions = ask(requests, once_more(lambda request, completion: read(completion, *request.note)[1], again))
    for row, categories in behind:
        completion = next(completions) if row["query"] else EMPTY
        yield _instruction(row, completion, categories)


def request_of(
    row: Row, categories: Sequence[str], prompt: Prompt, config: SynthesizeConfig, taxonomy: Mapping[str, Category]
) -> Request:
    """The request for one query."""
    described = [f"{taxonomy[name].definition} For example: {taxonomy[name].example}" for name in categories]
    wanted = [f"{i}. {name}: {text}" for i, (name, text) in enumerate(zip(categories, described, strict=True), 1)]
    rules = [f"- {constraint['text'] or constraint['checker']}" for constraint in given_constraints(row)]
    text = prompt.render(
        n=str(len(categories)),
        categories="\n".join(wanted),
        query=row["query"],
        rules="\n".join(rules) or "(none)",
    )
    note = (tuple(categories), row["query"])
    return Request(user(text), config.temperature, max_tokens=config.max_tokens, seed=config.seed, note=note)


def read(completion: Completion, categories: Sequence[str], query: str) -> tuple[dict[str, Any] | None, str | None]:
    """The constraints and the instruction in a completion, or null and what is wrong with it."""
    if completion.text is None:
        return None, completion.error or "the call failed"
    found, reason = reading.json_object(completion.text, completion.finish_reason)
    if found is None:
        return None, reason
    constraints = found.get("constraints")
    if not isinstance(constraints, list) or not all(
        isinstance(c, dict) and _is_text(c.get("text")) for c in constraints
    ):
        return None, "'constraints' must be a list of objects with a 'category' and a 'text'"
    if [str(c.get("category")).strip().lower() for c in constraints] != [name.lower() for name in categories]:
        return None, f"'constraints' must have the categories {', '.join(categories)}, in this order"
    if not _is_text(found.get("instruction")):
        return None, "'instruction' must be a text that is not empty"
    if found["instruction"].casefold().split() == query.casefold().split():
        return None, "'instruction' is the query alone; it must contain the constraints"
    return {"instruction": found["instruction"].strip(), "texts": [c["text"].strip() for c in constraints]}, None


def require_usable(
    place: str, row: Row, taxonomy: Mapping[str, Category], own: Mapping[str, Checker] | None = None
) -> None:
    """Check what a query brings before anything is paid for; a checker whose packages are missing here is trusted.

    Args:
        place: Of the row, for messages.
        row: Of QUERIES.
        taxonomy: What its `category` must be in.
        own: The user's own checkers.

    Raises:
        DataError: The category or a checker is unknown, a checker would not take its kwargs, or the constraints are none.
    """
    _fixed_category(row, taxonomy, place)
    for constraint in given_constraints(row, place):
        if constraint["kind"] != "rule":
            continue
        try:
            kwargs = json.loads(constraint["kwargs"] or "{}")
        except ValueError:
            kwargs = None
        if not isinstance(kwargs, dict):
            raise DataError(f"{place}: the kwargs of a rule must be an object, not {constraint['kwargs']!r}")
        try:
            with suppress(MissingExtraError):
                validate(constraint["checker"], kwargs, checkers=own)
        except CheckerError as exc:
            raise DataError(f"{place}: {exc}") from exc


def given_constraints(row: Row, place: str | None = None) -> list[Constraint]:
    """The constraints that a query brings, completed with ids and with kwargs as JSON.

    Raises:
        DataError: They are not a list of constraints; the message names the place, or else the query's id.
    """
    place = place or f"query {row['query_id']}"
    given = row.get("constraints")
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise DataError(f"{place}: 'constraints' must be a list of {{{', '.join(FIELDS)}}}")
    completed, seen = [], Counter[str]()
    taken = {str(item.get("constraint_id")) for item in given}
    for item in given:
        constraint = {name: item.get(name) for name in FIELDS}
        kind = constraint["kind"] = constraint["kind"] or ("rule" if constraint["checker"] else "soft")
        if kind not in ("rule", "soft") or not (constraint["checker"] if kind == "rule" else constraint["text"]):
            raise DataError(f"{place}: a rule needs a checker, a soft constraint needs a text")
        if isinstance(constraint["kwargs"], dict):
            constraint["kwargs"] = tables.kwargs_text(constraint["kwargs"])
        if odd := [name for name, value in constraint.items() if not isinstance(value, str | None)]:
            wanted = "an object" if odd[0] == "kwargs" else "a text"
            raise DataError(f"{place}: the {odd[0]} of a constraint must be {wanted}, not {constraint[odd[0]]!r}")
        constraint["constraint_id"] = constraint["constraint_id"] or _new_id(row, kind, seen[kind], taken)
        seen[kind] += 1
        completed.append(constraint)
    return completed


def rejected(row: Row, reason: str) -> Row:
    """A row of REJECTED, from a query or from an instruction."""
    return {
        "instruction_id": row["query_id"],
        "cost_usd": 0.0,
        "n_prompt_tokens": 0,
        "n_completion_tokens": 0,
        **row,
        "constraints": given_constraints(row),
        "reason": reason,
    }


def _assigned(
    rows: Iterable[Row], chosen: Sequence[str], taxonomy: Mapping[str, Category], config: SynthesizeConfig
) -> Iterator[tuple[Row, tuple[str, ...]]]:
    """Give each row `per_query` categories: always those used least so far, ties broken by the seed."""
    chance, used = random.Random(config.seed), Counter[str]()
    for row in rows:
        fixed = _fixed_category(row, taxonomy, f"query {row['query_id']}")
        rest = [name for name in chosen if name != fixed]
        order = sorted(rest, key=lambda name: (used[name], chance.random()))
        cycle = order if fixed is None else [fixed, *order]
        categories = tuple(cycle[k % len(cycle)] for k in range(config.per_query))
        used.update(categories)
        yield row, categories


def _fixed_category(row: Row, taxonomy: Mapping[str, Category], place: str) -> str | None:
    """The category that a row names for itself."""
    fixed = str(row.get("category") or "").strip() or None
    if fixed is not None and fixed not in taxonomy:
        raise DataError(f"{place} has the unknown category '{fixed}'; known: {', '.join(taxonomy)}")
    return fixed


def _instruction(row: Row, completion: Completion, categories: Sequence[str]) -> Row:
    written, error = read(completion, categories, row["query"])
    given = given_constraints(row)
    new = []
    if written:
        n_soft = sum(constraint["kind"] == "soft" for constraint in given)
        taken = {constraint["constraint_id"] for constraint in given}
        for k, (category, text) in enumerate(zip(categories, written["texts"], strict=True), n_soft):
            key = {"constraint_id": _new_id(row, "soft", k, taken), "kind": "soft"}
            new.append({**dict.fromkeys(FIELDS), **key, "category": category, "text": text})
    return {
        **row,
        "instruction_id": row["query_id"],
        "instruction": written["instruction"] if written else None,
        "constraints": [*given, *new],
        "error": error,
        "cost_usd": completion.cost_usd,
        "n_prompt_tokens": completion.n_prompt_tokens,
        "n_completion_tokens": completion.n_tokens,
    }


def _new_id(row: Row, kind: str, number: int, taken: set[str]) -> str:
    """The first id from a number on that no constraint of the query has; it is taken from now on."""
    key = next(key for key in (f"{row['query_id']}/{kind}-{k}" for k in count(number)) if key not in taken)
    taken.add(key)
    return key


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
