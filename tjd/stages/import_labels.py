"""Import-labels: a foreign table of verdicts becomes `labels`.

In: any table with a query, a constraint, a response and a verdict a row, under whatever names. Out: labels, with the
foreign columns that were not mapped kept as they are, under `source_NAME` where the name is one that is filled here.
"""

from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from tjd import tables
from tjd.errors import DataError
from tjd.records import VERDICTS, verdict_in
from tjd.tables import Row

REQUIRED = ("query", "constraint", "response", "followed")
OPTIONAL = ("query_id", "response_id", "constraint_id", "category", "model", "language", "source", "teacher", "context")
FILLED = (  # by this stage, mapped or not
    *("query_id", "response_id", "constraint_id", "instruction_id", "instruction"),
    *("kind", "votes", "agreement", "mode"),
)


def import_labels(rows: Iterable[Row], columns: Mapping[str, str], kept: Mapping[str, str]) -> Iterator[Row]:
    """Map each row.

    Args:
        rows: Of the foreign table.
        columns: Our name to theirs, for `REQUIRED` and any of `OPTIONAL`. A `context` (the dialogue so far) is put before
            the query. Without a `query_id` a digest of the query is taken, and likewise for the other keys.

        kept: See `kept_of`.

    Raises:
        DataError: A verdict is not a yes or a no, a constraint is null, or two rows have the same keys.
    """
    seen: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, start=1):
        found: Row = {ours: _text(row[theirs]) for ours, theirs in columns.items()}
        if found["constraint"] is None:
            raise DataError(
                f"row {number} has no constraint; leave it out with --where '{columns['constraint']}!=null'"
            )
        context = found.pop("context", None)
        query = found["query"] or ""
        if context:
            query = f"{context}\n\n{query}"
        found |= {"query": query, "instruction": query, "followed": _verdict(row[columns["followed"]], number)}
        found["kind"] = "soft"
        found["query_id"] = found.get("query_id") or tables.text_id(query)
        found["instruction_id"] = tables.text_id(found["query_id"], query)
        model = found.get("model") or ""
        found["response_id"] = found.get("response_id") or tables.text_id(query, str(found["response"]), model)
        found["constraint_id"] = found.get("constraint_id") or tables.text_id(found["constraint"])
        key = (found["response_id"], found["constraint_id"])
        if key in seen:
            raise DataError(
                f"row {number} repeats response_id '{key[0]}', constraint_id '{key[1]}': a column given for a key must not "
                "name two responses or two constraints; leave it out to take digests of the texts"
            )
        seen.add(key)
        found["votes"] = [] if found["followed"] is None else [found["followed"]]
        found["agreement"] = None if found["followed"] is None else 1.0
        found["mode"] = "pointwise"
        yield {name: row[theirs] for theirs, name in kept.items()} | found


def columns_of(found: pa.Schema, given: Mapping[str, str | None]) -> dict[str, str]:
    """Our names to theirs: as given, or the column of the same name.

    Raises:
        DataError: A required column is missing, or a given one does not exist.
    """
    columns = {}
    for ours in (*REQUIRED, *OPTIONAL):
        theirs = given.get(ours) or ours
        if theirs in found.names:
            columns[ours] = theirs
        elif given.get(ours) or ours in REQUIRED:
            flag = f"--{ours.replace('_', '-')}"
            raise DataError(f"the table has no column '{theirs}' for {flag}; it has {', '.join(found.names)}")
    return columns


def kept_of(found: pa.Schema, columns: Mapping[str, str]) -> dict[str, str]:
    """Foreign columns that were not mapped to the names they keep: `source_NAME` where ours is filled, or of another type."""
    ours, filled = {field.name: field.type for field in tables.LABELS}, {*columns, *FILLED}
    kept = {}
    for field in found:
        if field.name not in columns.values():
            fits = field.name not in filled and tables.castable(field.type, ours.get(field.name, field.type))
            kept[field.name] = field.name if fits else f"source_{field.name}"
    return kept


def schema(found: pa.Schema, kept: Mapping[str, str]) -> pa.Schema:
    """The columns of the output: those of labels, then the foreign ones."""
    return tables.output_schema("labels", like=pa.schema([found.field(f).with_name(name) for f, name in kept.items()]))


def _verdict(value: object, number: int) -> bool | None:
    try:
        return verdict_in(value)
    except ValueError as exc:
        raise DataError(f"row {number} has the verdict {value!r}; it must be {VERDICTS}") from exc


def _text(value: object) -> str | None:
    return None if value is None else str(value)
