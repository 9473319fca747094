"""Screening and balance as a user meets them: real tables, and a teacher behind a real server."""

import json
import re

import pyarrow.parquet as pq
import pytest

from tests.server import Reply, serve
from tests.test_cli import RECORDED, fails, tjd, write
from tjd import tables
from tjd.teacher import Request, user
from tjd.teacher.recorded import entry, write_recording

MODEL = "openai/gpt-4o-mini"
RIVERS = [f"Name a river of country {name} and say where it ends." for name in ("one", "two", "three", "four", "five")]


def weaves_and_verifies(body, before):
    """Weaves "be NUMBER" into a query; finds that two goes wrong, and mumbles about three."""
    text = body["messages"][0]["content"]
    query = re.search(r"<query>\n(.*)\n</query>", text)[1]
    if "Answer three questions" not in text:
        category = next(name for name in ("style", "structure", "semantic") if f"1. {name}: " in text)
        woven = {"constraints": [{"category": category, "text": "Be warm."}], "instruction": f"{query} Be warm."}
        return Reply(json.dumps(woven))
    if "three" in query:
        return Reply("Well, perhaps.")
    why = "It is about wine." if "two" in query else ""
    return Reply(json.dumps({"why": why, "same_request": not why, "contained": [True], "compatible": True}))


@pytest.fixture
def server(monkeypatch, tmp_path):
    with serve(weaves_and_verifies) as running:
        monkeypatch.setenv("OPENAI_API_BASE", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("TJD_CACHE", str(tmp_path / "cache"))
        yield running


def test_what_is_rejected_does_not_reach_the_output(server, tmp_path, monkeypatch):
    queries = write(
        tmp_path / "queries.parquet",
        [{"query_id": f"q{i}", "query": q} for i, q in enumerate([*RIVERS, RIVERS[0].upper(), f" {RIVERS[1]}"])],
    )
    out, rejected = tmp_path / "instructions.parquet", tmp_path / "rejected.parquet"
    command = ("synthesize", queries, "-t", MODEL, "--dedup", 0.8, "--verify", "--max-invalid", 0.5)
    result = tjd(*command, "-o", out, "--rejected", rejected)
    assert result.exit_code == 0, result.output
    rows = tables.open_table(str(out), "instructions").read().to_pylist()
    assert [(row["query_id"], row["verified"]) for row in rows] == [
        ("q0", True), ("q2", None), ("q3", True), ("q4", True),
    ]  # fmt: skip
    assert rows[1]["instruction"] == f"{RIVERS[2]} Be warm."
    assert rows[1]["error"] == "could not be verified: not a JSON object"
    assert [(row["query_id"], row["reason"]) for row in tables.open_table(str(rejected), "rejected").rows()] == [
        ("q1", "it asks for something else: It is about wine."),
        ("q5", "near-duplicate query: like that of q0"),
        ("q6", "near-duplicate query: like that of q1"),
    ]
    told = "rejected: 3 of 7 rows (2 near-duplicate query, 1 it asks for something else)"
    assert f"{told} -> {rejected}" in result.stderr
    assert "soft constraints left: " in result.stderr
    kept_unread = "1 instruction kept without a check (mostly: could not be verified: not a JSON object)"
    assert f"warning: {kept_unread}" in result.stderr
    assert len(server.calls) == 5 + 6  # nothing is asked of near-duplicates, one check is asked for again
    assert "verify.v1" in json.loads(pq.read_schema(out).metadata[b"tjd"])["prompts"]
    assert "rejected" in tjd("show", rejected).output

    again, rejected_again = tmp_path / "again.parquet", tmp_path / "rejected-again.parquet"
    monkeypatch.setenv("TJD_CACHE", str(tmp_path / "another"))
    assert tjd(*command, "--concurrency", 1, "-o", again, "--rejected", rejected_again).exit_code == 0
    assert again.read_bytes() == out.read_bytes()
    assert rejected_again.read_bytes() == rejected.read_bytes()

    plain = tjd("synthesize", queries, "-t", MODEL, "--verify", "-o", again)
    assert plain.exit_code == 5
    assert "; --rejected FILE keeps them" in plain.stderr
    assert (
        "could not be verified; see the column 'error', name another --verifier, or raise --max-invalid" in plain.stderr
    )


def test_a_query_that_is_there_twice_is_rejected_as_a_near_duplicate_is(server, tmp_path):
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps({"query": q}) for q in [*RIVERS, RIVERS[0]]))
    out, rejected = tmp_path / "out.parquet", tmp_path / "rejected.parquet"
    command = ("synthesize", tmp_path / "q.jsonl", "-t", MODEL, "-o", out)
    assert "row 6 of" in fails(3, *command)
    result = tjd(*command, "--dedup", 0.8, "--rejected", rejected)
    assert result.exit_code == 0, result.output
    assert pq.read_table(out).num_rows == len(server.calls) == 5
    [row] = tables.open_table(str(rejected), "rejected").rows()
    assert row["query"] == RIVERS[0]
    assert row["reason"] == f"near-duplicate query: like that of {tables.text_id(RIVERS[0])}"


def test_another_model_may_verify_and_no_path_is_kept(server, tmp_path):
    [query] = queries = [{"query_id": "q", "query": RIVERS[0]}]
    table = write(tmp_path / "queries.parquet", queries)
    assert tjd("synthesize", table, "-t", MODEL, "--verify", "-o", tmp_path / "a.parquet").exit_code == 0
    check = server.calls[-1]["messages"][0]["content"]
    answer = json.dumps({"why": "", "same_request": True, "contained": [False], "compatible": True})
    recording = tmp_path / "verifier.parquet"
    write_recording([entry(Request(user(check)), answer, model="v", source="a test")], str(recording), {})
    command = ("synthesize", table, "-t", MODEL, "--verify", "--verifier", f"recorded:{recording}")
    rejected = tmp_path / "rejected.parquet"
    result = tjd(*command, "-o", tmp_path / "b.parquet", "--rejected", rejected)
    assert result.exit_code == 0, result.output
    assert pq.read_table(tmp_path / "b.parquet").num_rows == 0
    [row] = pq.read_table(rejected).to_pylist()
    assert (row["query"], row["reason"], row["verified"]) == (query["query"], "it lacks a constraint", False)
    assert len(server.calls) == 2  # the instruction came from the cache
    footer = pq.read_schema(rejected).metadata[b"tjd"].decode()
    assert footer == pq.read_schema(tmp_path / "b.parquet").metadata[b"tjd"].decode()
    assert json.loads(footer)["config"]["verifier"] == f"recorded:{tables.file_digest(recording)[:12]}"
    assert str(tmp_path) not in footer


def test_constraints_are_checked_before_anything_is_asked(server, tmp_path):
    rows = [
        {"query": f"What is {i}?", "constraints": [{"kind": "soft" if i < 30 else "sotf", "text": "x"}]}
        for i in range(31)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("synthesize", tmp_path / "q.jsonl", "-t", MODEL, "--concurrency", 1, "-o", tmp_path / "out.parquet")
    told = f"row 31 of {tmp_path / 'q.jsonl'}: a rule needs a checker, a soft constraint needs a text"
    assert fails(3, *command) == told
    assert server.calls == []


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"constraints": [{"text": "x", "checker": "no:such"}]}, ": unknown checker 'no:such'; "),
        (
            {"constraints": [{"checker": "length_constraints:number_words", "kwargs": {"n_words": 3}}]},
            ": length_constraints:number_words ",
        ),
        (
            {"constraints": [{"checker": "change_case:english_lowercase", "kwargs": "["}]},
            ": the kwargs of a rule must be ",
        ),
        ({"category": "mood"}, " has the unknown category 'mood'; known: style, "),
    ],
)
def test_checkers_and_categories_are_checked_before_anything_is_asked(server, tmp_path, more, told):
    queries, out = tmp_path / "q.jsonl", tmp_path / "out.parquet"
    queries.write_text("\n".join(map(json.dumps, [{"query": "Why?", "split": "test"}, {"query": "Who?"} | more])))
    command = ("synthesize", queries, "-t", MODEL, "-o", out)
    assert fails(3, *command).startswith(f"row 2 of {queries}{told}")
    assert server.calls == []
    assert tjd(*command, "--where", "split=test", "--dry-run").exit_code == 0


def test_rules_of_ones_own_are_known_by_their_file(server, tmp_path):
    queries, own, out = tmp_path / "q.jsonl", tmp_path / "own.py", tmp_path / "out.parquet"
    queries.write_text(json.dumps({"query": RIVERS[0], "constraints": [{"text": "Short.", "checker": "my:short"}]}))
    own.write_text("CHECKERS = {'my:short': lambda response, *, most=3: len(response.split()) <= most}\n")
    command = ("synthesize", queries, "-t", MODEL, "-o", out)
    assert "unknown checker 'my:short'; " in fails(3, *command)
    result = tjd(*command, "--checkers", own)
    assert result.exit_code == 0, result.output
    [row] = pq.read_table(out).to_pylist()
    assert [constraint["checker"] for constraint in row["constraints"]] == ["my:short", None]
    assert json.loads(pq.read_schema(out).metadata[b"tjd"])["inputs"]["checkers"] == tables.file_digest(own)


def test_a_dry_run_plans_a_check_for_each_instruction_that_is_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    queries = write(tmp_path / "q.parquet", [{"query_id": f"q{i}", "query": q} for i, q in enumerate([*RIVERS, None])])
    result = tjd("synthesize", queries, "-t", RECORDED, "--verify", "--dry-run", "-o", tmp_path / "out.parquet")
    assert re.search(r"recorded:\w+ +│ +10 │ +0 │", result.stdout), result.output


def test_screening_flags_that_contradict(tmp_path):
    queries, out = write(tmp_path / "q.parquet", [{"query_id": "q", "query": "Why?"}]), tmp_path / "out.parquet"
    synthesize = ("synthesize", queries, "-t", RECORDED, "-o", out)
    assert fails(2, *synthesize, "--verifier", MODEL) == "--verifier needs --verify"
    assert fails(2, *synthesize, "--dedup", 0.3) == "--dedup must lie in [0.5, 1], or be 0 to reject none, not 0.3"
    assert fails(2, *synthesize, "--rejected", out) == f"--out and --rejected are both {out}; name two files"
    line = fails(3, *synthesize, "--rejected", tmp_path / "no" / "r.parquet")
    assert line == f"the folder of {tmp_path / 'no' / 'r.parquet'} does not exist; create it first"
    assert not out.exists()


WARM = {"constraint_id": "w", "kind": "soft", "category": "style", "text": "Be warm.", "checker": None, "kwargs": None}
SHORT = {
    "constraint_id": "s", "kind": "rule", "category": None, "text": "Few words.",
    "checker": "length_constraints:number_words", "kwargs": '{"relation": "less than", "num_words": 4}',
}  # fmt: skip


def responds_and_judges(body, before):
    """Follows the constraint when it is shown; of bare queries the third response on."""
    text = body["messages"][0]["content"]
    if "Answer with one word, Yes or No" in text:
        return Reply("Yes" if "warmly" in text.partition("<response>")[2] else "No")
    warm = "Be warm." in text or body["seed"] >= 2
    return Reply(f"warmly yours {body['seed']}" if warm else f"here is the river {body['seed']}")


def test_rounds_of_sampling_until_both_verdicts_are_there(server, tmp_path):
    server.script = responds_and_judges
    rows = [
        {"instruction_id": f"i{i}", "query_id": f"q{i}", "query": q, "instruction": f"{q} Be warm.", "error": None,
         "cost_usd": None, "constraints": [WARM, SHORT], "language": None, "source": None}
        for i, q in enumerate(RIVERS)
    ]  # fmt: skip
    instructions = write(tmp_path / "instructions.parquet", rows, tables.INSTRUCTIONS)
    first, labels = tmp_path / "first.parquet", tmp_path / "labels.parquet"
    sample = ("sample", instructions, "-m", MODEL)
    result = tjd(*sample, "--n", 2, "--condition", "without_constraint", "-o", first)
    assert result.exit_code == 0, result.output
    assert re.search(r"\(rules\) +│ openai/gpt-4o-mini +│ without_constraint +│ +10 │ +0\.00 │ +0 ", result.stderr)
    result = tjd("label", first, "-t", MODEL, "-o", labels)
    assert result.exit_code == 0, result.output
    assert re.search(r"style +│ openai/gpt-4o-mini +│ without_constraint +│ +10 │ +0\.00 │ +0 ", result.stderr)
    assert "warning: style is one-sided: 0% of its verdicts are 'followed'" in result.stderr

    second = tmp_path / "second.parquet"
    n_calls = len(server.calls)
    result = tjd(*sample, "--labels", labels, "--target-balance", 0.3, "-o", second)
    assert result.exit_code == 0, result.output
    assert (
        "plan: style has 0.0% followed; 5 responses by openai/gpt-4o-mini with_constraint should make it"
        in result.stderr
    )
    assert "warning: that is short of 30%; raise --n" in result.stderr
    new = pq.read_table(second).to_pylist()
    assert [(row["condition"], row["seed"]) for row in new] == [("with_constraint", 0)] * 5
    assert len(server.calls) == n_calls + 5
    source = json.loads(pq.read_schema(second).metadata[b"tjd"])
    assert source["inputs"]["labels"] == tables.file_digest(labels)

    # of what never followed, no more is asked for
    bare = (*sample, "--condition", "without_constraint", "--labels", labels, "--target-balance", 0.3)
    line = fails(2, *bare, "-o", tmp_path / "none.parquet")
    assert line.startswith(
        "style has 0.0% followed, and no response of these models and conditions is expected to raise"
    )
    assert not (tmp_path / "none.parquet").exists()
    assert len(server.calls) == n_calls + 5

    # a further round goes on with the seeds where the labels end, and asks nothing twice
    bare = (*sample, "--condition", "without_constraint", "--labels", labels, "--n", 3, "--target-balance", 0.05)
    result = tjd(*bare, "-o", second)
    assert result.exit_code == 0, result.output
    new = pq.read_table(second).to_pylist()
    old = {row["response_id"] for row in pq.read_table(first).to_pylist()}
    assert {row["seed"] for row in new} <= {2, 3, 4}
    assert new
    assert not old & {row["response_id"] for row in new}
    assert all(count == 1 for count in server.asked.values())


def test_nothing_is_sampled_where_nothing_is_short(tmp_path):
    instruction = {"instruction_id": "i", "query": "Why?", "instruction": "Why? Be warm.", "constraints": [WARM]}
    schema = tables.output_schema("instructions")
    table = write(tmp_path / "i.parquet", [instruction], schema)
    rows = [
        {"response_id": f"r{i}", "constraint_id": "w", "instruction_id": "i", "category": "style", "kind": "soft",
         "model": "m", "condition": "with_constraint", "followed": bool(i)}
        for i in range(2)
    ]  # fmt: skip
    labels, out = write(tmp_path / "labels.parquet", rows), tmp_path / "out.parquet"
    command = ("sample", table, "-m", RECORDED, "-o", out)
    result = tjd(*command, "--labels", labels, "--target-balance", 0.4)
    assert result.exit_code == 0, result.output
    assert "plan: every category has 40% of its rarer verdict already; there is nothing to sample" in result.stderr
    assert pq.read_table(out).num_rows == 0
    assert fails(2, *command, "--labels", labels) == "--labels and --target-balance go together"
    assert fails(2, *command, "--target-balance", 0.3) == "--labels and --target-balance go together"
    missing = write(tmp_path / "bare.parquet", [{k: v for k, v in row.items() if k != "condition"} for row in rows])
    assert "lacks the column 'condition'" in fails(3, *command, "--labels", missing, "--target-balance", 0.3)
