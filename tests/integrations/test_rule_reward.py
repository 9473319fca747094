"""The reward takes in every rule constraint of an IFEval-style table, by the real checkers."""

import json
import os
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stages.conftest import tiny_policy
from tests.test_cli import fails, tjd, write
from tjd import tables
from tjd.checkers import ifeval, load_checkers, verdict
from tjd.integrations.trl import reward_function
from tjd.tables import Row

__all__ = ["tiny_policy"]

GOLDEN = Path(__file__).parents[1] / "golden" / "checkers.jsonl"
CASES: dict[str, list[Row]] = defaultdict(list)
for line in GOLDEN.read_text(encoding="utf-8").splitlines():
    case = json.loads(line)
    if case["checker"] in ifeval.CHECKERS and not case.keys() & {"suite", "mode", "fixed"}:
        CASES[case["checker"]].append(case)


def rule(key: str, checker: str, kwargs: Row) -> Row:
    return {
        "constraint_id": key, "kind": "rule", "category": None, "text": None, "checker": checker,
        "kwargs": json.dumps(kwargs),
    }  # fmt: skip


def rewards(
    *samples: tuple[str, list[Row]], check: Any = verdict, instruction: str = "Do it."
) -> tuple[list[float | None], list[list[Row]]]:
    """The reward of each (response, constraints), and the verdicts it is made of."""
    logged: dict[str, list[Any]] = {}
    found = reward_function(lambda softs: [], check, max_failed=1.0)(
        completions=[[{"role": "assistant", "content": response}] for response, _ in samples],
        completion_ids=[[0]] * len(samples),
        log_extra=logged.__setitem__,
        log_metric=lambda name, value: None,
        instruction_id=["i"] * len(samples),
        instruction=[instruction] * len(samples),
        query=["Do it."] * len(samples),
        constraints=[json.dumps(constraints) for _, constraints in samples],
    )
    return found, [json.loads(verdicts) for verdicts in logged["verdicts"]]


def test_all_types_are_at_hand() -> None:
    assert CASES.keys() == ifeval.CHECKERS.keys()


@pytest.mark.parametrize("checker", sorted(ifeval.CHECKERS))
def test_each_type_pays_what_its_checker_says(checker: str) -> None:
    cases = CASES[checker]
    found, _ = rewards(*((case["response"], [rule("r", checker, case["kwargs"])]) for case in cases))
    assert found == [None if case["expected"] is None else float(case["expected"]) for case in cases]
    assert {0.0, 1.0} <= set(found)


def test_all_types_of_one_instruction_count_alike() -> None:
    """Also a type that comes twice with other kwargs, as in 17 of IFEval's prompts, and an exact repetition."""
    rules = [rule(name, name, CASES[name][0]["kwargs"]) for name in CASES]
    rules += [rule("again", "keywords:existence", {"keywords": ["river"]}), rule("twice", "punctuation:no_comma", {})]
    text = "A river ran through the old town."
    wanted = [verdict(each["checker"], json.loads(each["kwargs"]), text).followed for each in rules]
    assert len(wanted) == 27
    assert set(wanted) == {True, False}
    [reward], [verdicts] = rewards((text, rules))
    assert [each["followed"] for each in verdicts] == wanted
    assert reward == pytest.approx(sum(map(bool, wanted)) / 27)


def test_a_checker_of_ones_own_is_shown_the_instruction(tmp_path: Path) -> None:
    own = tmp_path / "my_rules.py"
    own.write_text("def echo(response, *, prompt):\n    return response == prompt\nCHECKERS = {'my:echo': echo}\n")
    check = partial(verdict, checkers=load_checkers(own))
    samples = [("Do it. No commas.", [rule("e", "my:echo", {})]), ("Do it.", [rule("e", "my:echo", {})])]
    assert rewards(*samples, check=check, instruction="Do it. No commas.")[0] == [1.0, 0.0]


def test_ifeval_itself() -> None:
    """The rule half of 541 responses of GPT-4 is the share of their constraints that the official code calls followed."""
    folder = Path(os.environ.get("TJD_SHARED_DATA", ".")) / "benchmarks" / "ifeval" / "data"
    files = [folder / "input_data.jsonl", folder / "input_response_data_gpt4_20231107_145030.jsonl"]
    if not all(file.is_file() for file in files):
        pytest.skip("TJD_SHARED_DATA does not lead to IFEval")
    prompts, responses = ([json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files)
    samples = []
    for prompt, response in zip(prompts, responses, strict=True):
        pairs = enumerate(zip(prompt["instruction_id_list"], prompt["kwargs"], strict=True))
        samples.append((response["response"], [rule(str(i), checker, kwargs) for i, (checker, kwargs) in pairs]))
    found, _ = rewards(*samples)
    sizes = [len(rules) for _, rules in samples]
    assert (len(found), sum(sizes)) == (541, 834)
    assert None not in found
    assert sum(reward * size for reward, size in zip(found, sizes, strict=True) if reward) == pytest.approx(698)
    assert sum(reward == 1 for reward in found) == 417


def instructions(path: Path, *constraints: Row) -> Path:
    rows = [
        {"instruction_id": f"i{i}", "query": text, "instruction": text, "constraints": list(constraints)}
        for i, text in enumerate(("abc", "def"))
    ]
    return write(path, rows, pa.schema([tables.INSTRUCTIONS.field(name) for name in rows[0]]))


def test_tjd_rl_trains_on_rules_alone(tmp_path: Path, tiny_policy: Path) -> None:
    """Every rule of the table is in every rollout, decided by its checker; no judge is needed."""
    own = tmp_path / "my_rules.py"
    own.write_text(
        "def short(response, *, most, prompt):\n    return len(response) <= most\nCHECKERS = {'my:short': short}\n"
    )
    rules = [
        rule("0", "keywords:letter_frequency", {"letter": "a", "let_frequency": 1, "let_relation": "at least"}),
        rule("1", "keywords:letter_frequency", {"letter": "b", "let_frequency": 1, "let_relation": "less than"}),
        rule("2", "punctuation:no_comma", {}),
        rule("3", "my:short", {"most": 9}),
    ]
    table, out = instructions(tmp_path / "in.parquet", *rules), tmp_path / "policy"
    flags = (
        "--steps",
        2,
        "--prompts-per-step",
        2,
        "--group-size",
        4,
        "--max-response-tokens",
        12,
        "--dtype",
        "float32",
    )
    run = ("rl", table, "-p", tiny_policy, "--checkers", own, *flags, "-o", out)
    assert tjd(*run).exit_code == 0
    rows = pq.read_table(out / "rollouts.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        verdicts = {each["constraint_id"]: each["followed"] for each in json.loads(row["verdicts"])}
        text = row["response"].lower()
        assert verdicts == {
            "0": bool(text.strip()) and "a" in text,
            "1": bool(text.strip()) and "b" not in text,
            "2": bool(text.strip()),
            "3": bool(text.strip()) and len(text) <= 9,
        }
        assert row["reward"] == row["reward_rule"] == sum(verdicts.values()) / 4
        assert row["reward_soft"] is None
    assert json.loads((out / "manifest.json").read_text())["inputs"]["checkers"] == tables.file_digest(own)


def test_soft_constraints_need_judges(tmp_path: Path, tiny_policy: Path) -> None:
    soft = {"constraint_id": "s", "kind": "soft", "category": "style", "text": "kind", "checker": None, "kwargs": None}
    table = instructions(tmp_path / "in.parquet", soft)
    line = fails(2, "rl", table, "-p", tiny_policy, "-o", tmp_path / "policy")
    assert line.startswith("the instruction 'i0' has soft constraints: give --judges FOLDER")
    assert not (tmp_path / "policy").exists()
