"""Turn the demo's source tables into the tables of the design, and its votes into a recorded teacher.

    python data/demo/convert.py FOLDER      # FOLDER holds instructions.parquet and labels.parquet

The recorded teacher answers rendered prompts. To learn which, the real stages are run with a teacher that notes each
request and gives the answer that the source table has for that row.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tjd import checkers, prompts, tables, taxonomy
from tjd.config import LabelConfig, SynthesizeConfig
from tjd.stages import label, synthesize
from tjd.tables import Row
from tjd.teacher import Completion, Request
from tjd.teacher.recorded import entry, write_recording

HERE = Path(__file__).parent
FRONTIER = "a frontier model"
RULES = [  # rule constraints that a small model breaks at first and can learn: text, checker, kwargs
    ("Use fewer than 20 words.", "length_constraints:number_words", {"num_words": 20, "relation": "less than"}),
    ("Do not use any commas.", "punctuation:no_comma", {}),
    ("Write everything in lower case.", "change_case:english_lowercase", {}),
    ('Do not use the word "and".', "keywords:forbidden_words", {"forbidden_words": ["and"]}),
]


def main(source: Path) -> None:
    """Write queries, pool and recording beside this script."""
    instructions = pq.read_table(source / "instructions.parquet").to_pylist()
    labels = pq.read_table(source / "labels.parquet").to_pylist()
    queries = [query_of(row) for row in instructions]
    pool = [response_of(row) for row in labels]
    text = pa.string()
    extra = pa.schema({"category": text, "split": text, "constraints": pa.list_(tables.CONSTRAINT)})
    schema = tables.output_schema("queries", like=extra)
    source_of = tables.provenance(
        "demo data", {}, {p.stem: tables.file_digest(p) for p in source.glob("*.parquet")}, {}
    )
    tables.write_rows(queries, str(HERE / "queries.parquet"), schema, source_of)
    schema = tables.output_schema("responses", like=pa.schema({"written_as": text, "split": text}))
    tables.write_rows(pool, str(HERE / "pool.parquet"), schema, source_of)
    entries = [*recorded_instructions(queries, instructions), *recorded_verdicts(pool, labels)]
    n = write_recording(entries, str(HERE / "recorded.parquet"), source_of)
    print(f"{len(queries)} queries, {len(pool)} responses, {n} recorded completions")


def query_of(row: Row) -> Row:
    """A query; those of the training split bring a rule constraint, a digest of the id decides which."""
    digest = int(tables.text_id(row["query_id"]), 16)
    rules = []
    if row["split"] == "train":
        said, checker, kwargs = RULES[digest % len(RULES)]
        rules = [{"kind": "rule", "text": said, "checker": checker, "kwargs": json.dumps(kwargs)}]
    kept = {name: row[name] for name in ("query_id", "query", "language", "category", "split")}
    return kept | {"source": "tjd demo", "constraints": rules}


def response_of(row: Row) -> Row:
    """A response of the pool with its one soft constraint."""
    soft = {
        "constraint_id": row["constraint_id"],
        "kind": "soft",
        "category": row["category"],
        "text": row["constraint"],
    }
    soft |= {"checker": None, "kwargs": None}
    names = ("response_id", "instruction_id", "query_id", "query", "instruction", "response", "model", "condition",
             "finish_reason", "language", "written_as", "split")  # fmt: skip
    return {name: row[name] for name in names} | {"constraints": [soft], "source": "tjd demo"}


def recorded_instructions(queries: list[Row], instructions: list[Row]) -> Iterator[Row]:
    """What the teacher wrote for each query, with the rules' wording appended."""
    noted: list[Row] = []

    def ask(requests: Iterable[Request], again: object = None) -> Iterator[Completion]:
        for request, query, row in zip(requests, queries, instructions, strict=True):
            said = " ".join([row["instruction"], *(rule["text"] for rule in query["constraints"])])
            soft = [{"category": row["category"], "text": row["constraint"]}]
            answer = json.dumps({"constraints": soft, "instruction": said}, ensure_ascii=False)
            noted.append(entry(request, answer, model=FRONTIER, source="rebuilt from the table of instructions"))
            yield Completion(answer, FRONTIER, "stop")

    templates = [prompts.load("synthesize.v1", synthesize.VARIABLES), prompts.load("again.v1", ["reason"])]
    done = list(synthesize.synthesize(queries, *templates, ask, SynthesizeConfig(), taxonomy.load()))
    assert all(row["instruction"] for row in done)
    yield from noted


def recorded_verdicts(pool: list[Row], labels: list[Row]) -> Iterator[Row]:
    """Yes or No for every blind vote."""
    noted: list[Row] = []
    votes = max(len(row["votes"]) for row in labels)

    def ask(requests: Iterable[Request], again: object = None) -> Iterator[Completion]:
        slots = ((row, vote) for row in labels for vote in range(votes))
        for request, (row, vote) in zip(requests, slots, strict=True):
            if vote >= len(row["votes"]):
                yield Completion(None, FRONTIER, error="not in the recording")
                continue
            answer = "Yes" if row["votes"][vote] else "No"
            noted.append(entry(request, answer, model=FRONTIER, source="rebuilt from the blind votes"))
            yield Completion(answer, FRONTIER, "stop")

    templates = [prompts.load("label.pointwise.v1", label.VARIABLES["pointwise"]), prompts.load("again.v1", ["reason"])]
    done = list(label.label(pool, *templates, ask, LabelConfig(votes=votes), checkers.verdict))
    assert [row["followed"] for row in done] == [row["followed"] for row in labels]
    yield from noted


if __name__ == "__main__":
    main(Path(sys.argv[1]))
