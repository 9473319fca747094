"""Recorded completions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tjd.config import BackendConfig
from tjd.errors import BackendError, DataError
from tjd.teacher import Completion, Request, asked_again, open_teacher, user
from tjd.teacher.recorded import entry, write_recording


def recording(folder: Path, texts: dict[tuple[str, int], str]) -> str:
    path = folder / "teacher.parquet"
    entries = [
        entry(Request(user(prompt), seed=seed), text, model="frontier", source="a test")
        for (prompt, seed), text in texts.items()
    ]
    write_recording(entries, str(path), {})
    return f"recorded:{path}"


def test_a_completion_is_found_by_prompt_and_seed(tmp_path: Path) -> None:
    name = recording(tmp_path, {("q", 0): "zero", ("q", 1): "one"})
    teacher = open_teacher(name, BackendConfig(), None)
    completions = list(teacher.ask([Request(user("q"), seed=1), Request(user("q"), temperature=0.3)]))
    assert [c.text for c in completions] == ["one", "zero"]
    assert completions[0] == Completion("one", teacher.name, cost_usd=0.0)
    assert teacher.usage.cost_usd == 0.0
    assert teacher.digest
    assert teacher.name == f"recorded:{teacher.digest[:12]}"
    assert str(tmp_path) not in teacher.name


def test_what_was_not_recorded_is_null_with_a_reason(tmp_path: Path) -> None:
    teacher = open_teacher(recording(tmp_path, {("q", 0): "zero"}), BackendConfig(), None)
    found, missing = teacher.ask([Request(user("q")), Request(user("other"))])
    assert found.text == "zero"
    assert (missing.text, missing.error) == (None, "not in the recording")
    assert teacher.usage.failed == 1


def test_a_follow_up_that_was_not_recorded_lets_the_first_stand(tmp_path: Path) -> None:
    teacher = open_teacher(recording(tmp_path, {("q", 0): "zero"}), BackendConfig(), None)
    (completion,) = teacher.ask([Request(user("q"))], lambda request, c: asked_again(request, c, "once more"))
    assert completion.text == "zero"


def test_a_recording_of_other_prompts_ends_the_run(tmp_path: Path) -> None:
    teacher = open_teacher(recording(tmp_path, {("q", 0): "zero"}), BackendConfig(), None)
    with pytest.raises(BackendError, match="holds none of the first 20 prompts"):
        list(teacher.ask(Request(user(f"other {i}")) for i in range(30)))


def test_bad_recordings_are_told_in_one_line(tmp_path: Path) -> None:
    absent, text, foreign, mistyped, seedless, listed = (
        tmp_path / name for name in ("absent", "text", "foreign", "mistyped", "seedless", "listed")
    )
    text.write_text("no Parquet")
    pq.write_table(pa.table({"prompt_sha256": ["a"]}), foreign)
    columns = {"prompt_sha256": ["ab"], "seed": ["x"], "completion": ["c"], "model": ["m"], "source": ["s"]}
    pq.write_table(pa.table(columns), mistyped)
    columns["seed"] = pa.array([None], pa.int64())
    pq.write_table(pa.table(columns), seedless)
    pq.write_table(pa.table({**columns, "seed": [0], "finish_reason": [["stop"]]}), listed)
    for path, told in [
        (absent, "there is no recording"),
        (text, "is not a readable Parquet file"),
        (foreign, "lacks the column 'seed'"),
        (mistyped, "has a column of another type"),
        (seedless, "a prompt_sha256 or a seed that is none"),
        (listed, "has a column of another type .finish_reason"),
    ]:
        with pytest.raises(DataError, match=told) as caught:
            open_teacher(f"recorded:{path}", BackendConfig(), None)
        assert "\n" not in str(caught.value)
