"""Import-instructions: queries with constraints, from JSONL of one's own or from VerInstruct, become `instructions`.

In: records, each with its place. Out: instructions, exact repetitions left out. VerInstruct's soft constraints get the
category that the taxonomy names for their key (paper, table 7). Its hard ones come with Python code, which is not run
here: it is written to a file of checkers, for whoever trusts it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from tjd import tables
from tjd.checkers import Checker, validate
from tjd.checkers.arguments import nearest
from tjd.config import Subset
from tjd.errors import CheckerError, DataError
from tjd.tables import Row
from tjd.taxonomy import Category, verinstruct_category

Placed = Iterable[tuple[str, Row]]

KINDS = {"hard": ("rule",), "soft": ("soft",), "mix": ("rule", "soft")}
SCHEMA = pa.schema(
    [
        *tables.INSTRUCTIONS,
        pa.field("source_id", pa.string()),  # the record's own key, null if it has none
        pa.field("split", pa.string()),  # as given; null lets a digest of query_id decide
    ]
)

_KIND = re.compile(r"\[(llm|rule)\]")
_KEYED = re.compile(r"(?:\d+\.)?\s*([A-Za-z][A-Za-z_-]*)\s*:\s*(.+)", re.DOTALL)
_CODE_PREFIX = "verinstruct:"
_CODE_FILE = '''\
"""The code that comes with VerInstruct's hard constraints. It is from a data set: read it before you run it."""

SOURCES = {{
{sources}
}}


def _checker(source):
    scope = {{}}

    def check(response, *, prompt):
        if "check_following" not in scope:
            exec(source, scope)
        return bool(scope["check_following"](prompt, response))

    return check


CHECKERS = {{name: _checker(source) for name, source in SOURCES.items()}}
'''


def from_jsonl(
    records: Placed, taxonomy: Mapping[str, Category], own: Mapping[str, Checker] | None = None
) -> Iterator[Row]:
    """Read records of one's own.

    Args:
        records: With `query` or `instruction`, and `constraints`, a list of {kind, text, category, checker, kwargs}: of a
            soft one only `text` must be there, of a rule only `checker`. Without an `instruction` it is the query with
            the constraints' texts behind it.
        taxonomy: What a category must be in.
        own: The user's own checkers.

    Raises:
        DataError: A record lacks one of these, or a rule's checker would not take its kwargs; the message names the place.
    """
    ids: set[str] = set()
    for place, record in records:
        if (key := _key(record, "instruction_id")) in ids:
            raise DataError(f"{place} repeats the instruction_id '{key}'; keys must be unique")
        if key is not None:
            ids.add(key)
        query, instruction = _text(record, "query", place), _text(record, "instruction", place)
        if not query and not instruction:
            raise DataError(f"{place} lacks both 'query' and 'instruction'; it has {', '.join(record) or 'nothing'}")
        listed = _field(record, "constraints", place)
        if not isinstance(listed, list):
            raise DataError(f"'constraints' of {place} must be a list, not {listed!r}")
        constraints = [_constraint(each, place, taxonomy, own) for each in listed]
        texts = [constraint["text"] for constraint in constraints if constraint["text"]]
        yield _row(
            record,
            place,
            query=query or instruction,
            instruction=instruction or "\n".join([query, *texts]),
            constraints=constraints,
            source=_text(record, "source", place) or None,
        )


def from_verinstruct(
    records: Placed, taxonomy: Mapping[str, Category], keep_code: Callable[[str, str], None]
) -> Iterator[Row]:
    """Read VerInstruct, in the form that the scripts of THU-KEG/VerIF read.

    Args:
        records: With `prompt`, and two lists of equal length: `checkers` ("[llm] Desired_Writing_Style: ..." or
            "[rule] ...") and `functions` (code that defines `check_following(instruction, response)`).
        taxonomy: Its `verinstruct` keys give a soft constraint its category; null where none does.
        keep_code: Told the name and the code of each hard constraint.

    Raises:
        DataError: A record lacks a field, or its lists differ in length.
    """
    for place, record in records:
        prompt = _prompt(record, place)
        checkers, functions = (_list(record, name, place) for name in ("checkers", "functions"))
        if len(checkers) != len(functions):
            raise DataError(f"{place} has {len(checkers)} checkers but {len(functions)} functions; fetch the data anew")
        pairs = zip(checkers, functions, strict=True)
        constraints = [each for each in (_foreign_constraint(*pair, taxonomy, keep_code) for pair in pairs) if each]
        yield _row(record, place, query=prompt, instruction=prompt, constraints=constraints, source="verinstruct")


def keep(rows: Iterable[Row], subset: Subset) -> Iterator[Row]:
    """Keep the constraints of a kind, the rows that have one, and of equal rows the first."""
    seen: set[str] = set()
    for row in rows:
        row["constraints"] = [each for each in row["constraints"] if each["kind"] in KINDS[subset]]
        if row["constraints"] and row["instruction_id"] not in seen:
            seen.add(row["instruction_id"])
            yield row


def checkers_file(sources: Mapping[str, str]) -> str:
    """A Python file of checkers, as `--checkers` takes it, from code that comes with the data."""
    return _CODE_FILE.format(
        sources="\n".join(f"    {name!r}: {source!r}," for name, source in sorted(sources.items()))
    )


def _row(record: Row, place: str, *, query: str, instruction: str, constraints: list[Row], source: str | None) -> Row:
    query_id = _key(record, "query_id") or tables.text_id(query)
    digest = tables.text_id(query_id, instruction, json.dumps(constraints, sort_keys=True))
    instruction_id = _key(record, "instruction_id") or digest
    listed = [{"constraint_id": f"{instruction_id}/{number}"} | each for number, each in enumerate(constraints)]
    return {
        "instruction_id": instruction_id,
        "query_id": query_id,
        "query": query,
        "language": _text(record, "language", place) or None,
        "source": source,
        "instruction": instruction,
        "constraints": listed,
        "error": None,
        "cost_usd": 0.0,
        "n_prompt_tokens": 0,
        "n_completion_tokens": 0,
        "source_id": _key(record, "id"),
        "split": _text(record, "split", place) or None,
    }


def _constraint(given: Any, place: str, taxonomy: Mapping[str, Category], own: Mapping[str, Checker] | None) -> Row:
    if not isinstance(given, dict):
        raise DataError(f"a constraint of {place} is not an object but {given!r}")
    for name in given:
        if name not in tables.CONSTRAINT.names:
            hint = nearest(name, tables.CONSTRAINT.names) or f"it may have {', '.join(tables.CONSTRAINT.names)}"
            raise DataError(f"a constraint of {place} has the key '{name}'; {hint}")
    kind = given.get("kind") or ("rule" if given.get("checker") else "soft")
    if kind not in ("rule", "soft"):
        raise DataError(f"the kind of a constraint of {place} is '{kind}'; it must be 'rule' or 'soft'")
    here = f"a constraint of {place}"
    key, text, category = _key(given, "constraint_id"), _text(given, "text", here), _text(given, "category", here)
    named = {} if key is None else {"constraint_id": key}
    if kind == "soft":
        if not text:
            raise DataError(f"a soft constraint of {place} has no text")
        if category and category not in taxonomy:
            hint = nearest(category, taxonomy) or f"known: {', '.join(taxonomy)}"
            raise DataError(f"a soft constraint of {place} has the unknown category '{category}'; {hint}")
        return named | _soft(text, category or None)
    kwargs = _kwargs(given.get("kwargs"), place)
    try:
        validate(given.get("checker"), kwargs, checkers=own)
    except CheckerError as exc:
        raise DataError(f"{place}: {exc}") from exc
    return named | _rule(given["checker"], kwargs, text or None)


def _kwargs(given: Any, place: str) -> Row:
    """An object, as it is or as JSON; null is an empty one."""
    try:
        kwargs = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError:
        kwargs = given
    if not isinstance(kwargs, dict):
        raise DataError(f"the kwargs of a rule of {place} must be an object, not {given!r}")
    return kwargs


def _foreign_constraint(
    checker: str, function: str, taxonomy: Mapping[str, Category], keep_code: Callable[[str, str], None]
) -> Row | None:
    """A constraint of VerInstruct; null where its text says NULL, as where the data's writer found nothing to ask."""
    marked = _KIND.search(checker)
    text = _KIND.sub("", checker).strip()
    keyed = _KEYED.fullmatch(text)
    category = verinstruct_category(keyed[1], taxonomy) if keyed else None
    if keyed and category:
        text = keyed[2].strip()
    if text in ("", "NULL"):
        return None
    if marked and marked[1] == "rule":
        name = _CODE_PREFIX + tables.text_id(function)
        keep_code(name, function)
        return _rule(name, {}, text)
    return _soft(text, category)


def _soft(text: str, category: str | None) -> Row:
    return {"kind": "soft", "category": category, "text": text, "checker": None, "kwargs": None}


def _rule(checker: str, kwargs: Mapping[str, Any], text: str | None) -> Row:
    given = {name: value for name, value in kwargs.items() if value is not None}
    return {
        "kind": "rule",
        "category": None,
        "text": text,
        "checker": checker,
        "kwargs": json.dumps(given, ensure_ascii=False, sort_keys=True),
    }


def _field(record: Row, name: str, place: str) -> Any:
    if record.get(name) is None:
        hint = nearest(name, record) or f"it has {', '.join(record) or 'nothing'}"
        raise DataError(f"{place} lacks '{name}'; {hint}")
    return record[name]


def _text(record: Row, name: str, place: str) -> str:
    value = record.get(name) or ""
    if not isinstance(value, str):
        raise DataError(f"'{name}' of {place} must be a text, not {value!r}")
    return value


def _key(record: Row, name: str) -> str | None:
    """A key may be a number."""
    return None if record.get(name) is None else str(record[name])


def _list(record: Row, name: str, place: str) -> list[str]:
    value = _field(record, name, place)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DataError(f"'{name}' of {place} must be a list of texts, not {str(value)[:60]}")
    return value


def _prompt(record: Row, place: str) -> str:
    """A prompt is a text, or a conversation whose last message counts."""
    prompt = _field(record, "prompt", place)
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1].get("content")
    if not isinstance(prompt, str):
        raise DataError(f"'prompt' of {place} must be a text or a list of messages, not {str(record['prompt'])[:60]}")
    return prompt
