"""Parts of a table, each made by a command of its own, and joined into what one run writes, to the byte."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.server import serve
from tests.test_cli import RECORDED, fails, tjd
from tests.test_interrupted import FEW_WORDS, WARM, moody
from tjd import shards, tables
from tjd.config import Shard
from tjd.errors import DataError

ROOT = Path(__file__).parent.parent


def in_parts(out, n, *arguments):
    """Run a command part by part, the last part first; the paths of the parts."""
    parts = []
    for number in range(n, 0, -1):
        part = out.with_name(f"{out.stem}-{number}-of-{n}.parquet")
        done = tjd(*arguments, "--shard", f"{number}/{n}", "-o", part)
        assert done.exit_code == 0, done.output
        assert f"(part {number} of {n})" in done.stderr
        parts.append(part)
    return parts


def joined(out, n, *arguments):
    whole, together = out / "whole.parquet", out / "together.parquet"
    assert tjd(*arguments, "-o", whole).exit_code == 0
    done = tjd("concat", *in_parts(together, n, *arguments), "-o", together)
    assert done.exit_code == 0, done.output
    assert together.read_bytes() == whole.read_bytes()
    return pq.ParquetFile(whole)


@pytest.fixture
def served(monkeypatch, cache):
    with serve(moody) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        yield server


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory):
    """Responses enough for several row groups of ours, in row groups that are not."""
    rows = [
        {"response_id": f"r{i}", "query": "what?", "response": f"say {i}" + " so" * (i % 12), "constraints": [FEW_WORDS],
         "model": "ab"[i % 2]}
        for i in range(2 * tables.ROWS_PER_GROUP + 500)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("shards") / "many.parquet"
    schema = tables.output_schema("responses")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=1000)
    return path


def test_label_in_parts_is_the_whole_in_the_same_row_groups(many_rows, tmp_path):
    whole = joined(tmp_path, 3, "label", many_rows, "-t", RECORDED)
    assert [whole.metadata.row_group(i).num_rows for i in range(3)] == [4096, 4096, 500]


def test_check_in_parts_after_where_and_limit_is_the_whole(many_rows, tmp_path):
    chosen = ("--where", "model=a", "--limit", "4000", "--workers", "1")
    assert joined(tmp_path, 3, "check", many_rows, *chosen).metadata.num_rows == 4000


def test_synthesize_in_parts_asks_what_the_whole_asks(served, tmp_path):
    rows = [
        {"query_id": f"q{i}", "query": f"what {i}?" if i % 6 else None, "category": "semantic" if i % 5 == 0 else None}
        for i in range(23)
    ]
    queries = tmp_path / "queries.parquet"
    pq.write_table(pa.Table.from_pylist(rows), queries)
    command = ("synthesize", queries, "-t", "openai/gpt-4o-mini", "--max-invalid", "1", "--seed", "7")
    assert tjd(*command, "-o", tmp_path / "first.parquet").exit_code == 0
    n_calls = len(served.calls)
    joined(tmp_path, 4, *command)
    assert len(served.calls) == n_calls  # had a part assigned another category, it would have asked anew


def test_sample_of_several_models_in_parts_is_the_whole(served, tmp_path):
    rows = [{"instruction_id": f"i{i}", "query": f"what {i}?", "instruction": f"What {i}? Be warm."} for i in range(7)]
    source = tmp_path / "instructions.parquet"
    tables.write_rows(rows, str(source), tables.output_schema("instructions"), {})
    models = ("-m", "openai/gpt-4o-mini", "-m", "openai/gpt-4o", "--n", "2")
    whole = joined(tmp_path, 3, "sample", source, *models).read().to_pylist()
    assert [row["model"] for row in whole] == ["openai/gpt-4o-mini"] * 28 + ["openai/gpt-4o"] * 28
    assert len(served.calls) == 56  # the parts found every answer of the whole in the cache


def test_more_parts_than_rows_and_parts_without_a_rule(tmp_path):
    rows = [
        {"response_id": f"r{i}", "query": "what?", "response": "so", "constraints": [FEW_WORDS if i == 1 else WARM]}
        for i in range(3)
    ]
    source = tmp_path / "responses.parquet"
    tables.write_rows(rows, str(source), tables.output_schema("responses"), {})
    assert joined(tmp_path, 5, "check", source, "--workers", "1").metadata.num_rows == 1


@pytest.mark.slow
def test_standard_input_can_be_parted(many_rows, tmp_path):
    whole = tmp_path / "whole.parquet"
    assert tjd("check", many_rows, "--workers", "1", "-o", whole).exit_code == 0
    code = "from tjd.cli import main; main()"
    for number in (1, 2):
        command = [sys.executable, "-c", code, "check", "-", "--workers", "1", "--shard", f"{number}/2", "-o", "-"]
        done = subprocess.run(command, input=many_rows.read_bytes(), capture_output=True, check=True)
        (tmp_path / f"{number}.parquet").write_bytes(done.stdout)
    out = tmp_path / "joined.parquet"
    assert tjd("concat", tmp_path / "1.parquet", tmp_path / "2.parquet", "-o", out).exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 70])
def test_parts_laid_end_to_end_are_the_rows_that_are_kept(n, block, tmp_path):
    rows = [{"response_id": f"r{i}", "model": "ab"[i * i % 3 == 1]} for i in range(60)]
    source = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source, row_group_size=7)
    table = tables.open_table(str(source), "responses", need=["model"])
    for conditions, limit in [((), 0), ((), 23), (("model=b",), 0), (("model=b",), 11)]:
        kept = [r for r in rows if not conditions or r["model"] == "b"][: limit or None]
        parts = [shards.part_of(table, conditions, limit, Shard(i, n), block=block) for i in range(1, n + 1)]
        found = [list(part.rows()) for part in parts]
        assert [row for part in found for row in part] == kept
        assert [list(p.rows(earlier=True)) for p in parts] == [
            kept[: p.n_before + len(f)] for p, f in zip(parts, found, strict=True)
        ]
        assert all(len(part) % block == 0 for part in found[:-1] if sum(map(len, found)) > len(part))
        if block == 1:
            assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_part_reads_no_row_group_outside_it(many_rows, tmp_path):
    table = tables.open_table(str(many_rows), "responses")
    part = shards.part_of(table, (), 0, Shard(8, 8))
    damaged = bytearray(many_rows.read_bytes())
    after = table.file.metadata.row_group(6).column(0).data_page_offset
    damaged[4:after] = b"\xff" * (after - 4)  # what is not read may be damaged
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    file = pq.ParquetFile(tmp_path / "damaged.parquet")
    read = replace(part, table=replace(table, file=file)).rows()
    assert list(read) == list(part.rows())
    with pytest.raises(DataError, match="cannot be read past its header"):
        list(replace(table, file=file).rows())


def test_parts_that_do_not_make_a_whole_are_told_in_one_line(many_rows, tmp_path):
    out = tmp_path / "out.parquet"
    check = ("check", many_rows, "--workers", "1", "--limit", "30")
    three, two, one = in_parts(tmp_path / "a", 3, *check)
    (other,) = in_parts(tmp_path / "b", 1, *check, "--fixed")
    halves = in_parts(tmp_path / "c", 2, *check)
    plain = tmp_path / "plain.parquet"
    assert tjd(*check, "-o", plain).exit_code == 0
    for parts, line in [
        ([one, three], "part 2 is missing of 3; run the command with --shard 2/3"),
        ([two], "parts 1, 3 are missing of 3; run the command with --shard 1/3"),
        ([one, two, two, three], f"{two} and {two} are both part 2; leave one out"),
        ([one, two, other], f"{other} is no part of the same table as {one}: they differ in config.fixed"),
        ([one, halves[0], three], f"{halves[0]} is no part of the same table as {one}: they differ in n of i/n"),
        ([one, plain, three], f"{plain} is not a part of a table; give the files that tjd wrote with --shard"),
        ([one, many_rows], f"{many_rows} is not a part of a table; give the files that tjd wrote with --shard"),
        ([one, tmp_path / "no"], f"{tmp_path / 'no'} is not a file; check the path"),
    ]:
        assert fails(3, "concat", *parts, "-o", out) == line
    assert not out.exists()


@pytest.mark.parametrize("written", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_a_part_that_cannot_be_is_told_in_one_line(written, many_rows, tmp_path):
    line = fails(2, "check", many_rows, "--shard", written, "-o", tmp_path / "out.parquet")
    assert line == f"--shard {written}: write i/n with a part i from 1 to n, for example 1/8"


@pytest.mark.slow
def test_score_in_parts_has_the_scores_of_the_whole_to_the_bit(tmp_path, tiny_model_dir):
    categories = ("style", "semantic")
    rows = [
        {"response_id": f"r{i}", "constraint_id": "c", "query_id": f"q{i}", "query": f"what {i}?", "kind": "soft",
         "category": categories[i % 2], "constraint": "Be warm.", "response": "so " * (1 + i * 7 % 23),
         "followed": i % 3 == 0, "split": "train" if i < 60 else "validation"}
        for i in range(1300)
    ]  # fmt: skip
    labels = tmp_path / "labels.parquet"
    tables.write_rows(rows, str(labels), tables.output_schema("labels", like=pa.schema({"split": pa.string()})), {})
    training = ("--base", tiny_model_dir, "--limit", "120", "--epochs", "1", "-c", "style", "-c", "semantic")
    assert tjd("train-judge", labels, *training, "-o", tmp_path / "judges").exit_code == 0
    assert joined(tmp_path, 2, "score", labels, "-j", tmp_path / "judges").metadata.num_rows == 1300


@pytest.mark.slow
def test_the_documented_ray_job_runs_on_a_local_ray(many_rows, tmp_path):
    if find_spec("ray") is None:
        pytest.skip("ray is not installed (dependency group ray)")
    after = (ROOT / "docs" / "scaling.md").read_text().partition("<!-- tested by tests/test_shards.py -->")[2]
    script = after.partition("```python\n")[2].partition("```")[0]
    assert "ray.data" in script
    (tmp_path / "job.py").write_text(script)
    (tmp_path / "responses.parquet").write_bytes(many_rows.read_bytes())
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {
        "PATH": path,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TEACHER": RECORDED,
    }
    done = subprocess.run([sys.executable, "job.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tjd("label", many_rows, "-t", RECORDED, "-o", tmp_path / "whole.parquet").exit_code == 0
    assert (tmp_path / "labels.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
