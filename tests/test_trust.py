"""Judges are compared, probed and transferred, through the command line, with tiny models and recorded teachers."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForSequenceClassification

from tests.test_cli import DEMO, RECORDED, fails, tjd
from tjd import tables
from tjd.splits import split_of

ROOT = Path(__file__).parent.parent

TEACHER = f"zero-shot recorded:{tables.file_digest(DEMO / 'recorded.parquet')[:12]}"
CATEGORIES = ("style", "semantic", "layout")


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """In style and semantic a response follows if it has an `a`, in layout if it has none."""
    rows = []
    for i in range(360):
        category, letter = CATEGORIES[i % 3], i % 2 == 0
        rows.append(
            {
                "response_id": f"r{i}", "constraint_id": "c", "query_id": f"q{i // 4}", "query": f"q{i // 4}",
                "kind": "soft", "category": category, "constraint": "Be kind.",
                "response": ("bca" if letter else "bcd") * (1 + i % 4),
                "followed": letter if category != "layout" else not letter,
                "votes": [letter if category != "layout" else not letter, True, i % 5 == 0], "split": None,
            }
        )  # fmt: skip
    path = tmp_path_factory.mktemp("labels") / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def judges(labels, tiny_model_dir, tmp_path_factory) -> Path:
    """A specialist for style and one for semantic, with a band in which they abstain."""
    out = tmp_path_factory.mktemp("judges") / "two"
    train = ("train-judge", labels, "-b", tiny_model_dir, "--full", "--learning-rate", 3e-3, "--epochs", 12,
             "--patience", 12, "-c", "style", "-c", "semantic", "--target-precision", 0.7, "--abstain", 0.2)  # fmt: skip
    assert tjd(*train, "-o", out).exit_code == 0
    return out


def of(rows, judge, category, metric):
    [row] = [row for row in rows if (row["judge"], row["category"], row["metric"]) == (judge, category, metric)]
    return row


def test_the_manifest_and_the_card_hold_the_calibration(judges):
    seat = json.loads((judges / "manifest.json").read_text())["categories"]["style"]
    assert seat["temperature"] != 1
    assert seat["band"][0] < seat["threshold"] < seat["band"][1]
    assert seat["target_recall"] == 1
    assert seat["validation"]["ece"][0] < 0.5
    assert 0.8 <= seat["validation"]["coverage"][0] < 1
    card = (judges / "card.md").read_text()
    assert "recall kept by the target precision of 0.7: style 1.00" in card
    assert "no verdict for scores within: style 0." in card


def test_another_calibration_costs_no_training(judges, labels, tiny_model_dir, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(judges, again)
    weights = {path: path.stat().st_mtime_ns for path in again.glob("*/*.safetensors")}
    train = ("train-judge", labels, "-b", tiny_model_dir, "--full", "--learning-rate", 3e-3, "--epochs", 12,
             "--patience", 12, "-c", "style", "-c", "semantic", "--target-precision", 0.99, "-o", again)  # fmt: skip
    assert tjd(*train).exit_code == 0
    assert weights == {path: path.stat().st_mtime_ns for path in again.glob("*/*.safetensors")}
    before, after = (
        json.loads((folder / "manifest.json").read_text())["categories"]["style"] for folder in (judges, again)
    )
    assert after["temperature"] == before["temperature"]
    assert after["band"] is None
    assert after["target_recall"] is None  # a dozen rows cannot promise so much
    assert "style not reached" in (again / "card.md").read_text()


def test_a_manifest_of_before_there_was_calibration_still_loads(judges, labels, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    manifest = json.loads((judges / "manifest.json").read_text())
    for name, seat in manifest["categories"].items():
        manifest["categories"][name] = {"specialist": seat["specialist"], "threshold": 0.5}
        (old / name).symlink_to(judges / name)
    for added in ("target_precision", "abstain"):
        del manifest["config"][added]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert tjd("score", labels, "-j", old, "-o", tmp_path / "s.parquet", "--where", "category=style").exit_code == 0
    assert all(row["followed"] is not None for row in pq.read_table(tmp_path / "s.parquet").to_pylist())
    assert tjd("eval-judge", labels, "-j", old, "--json").exit_code == 0


def test_a_judge_that_abstains_keeps_its_score_and_fails_nothing(judges, labels, tmp_path):
    out = tmp_path / "scores.parquet"
    result = tjd("score", labels, "-j", judges, "-o", out, "--where", "category=style")
    assert "without score" not in result.stderr
    rows = pq.read_table(out).to_pylist()
    nulls = [row for row in rows if row["followed"] is None]
    assert 0 < len(nulls) < len(rows) / 2
    assert all(row["error"] == "abstained" and row["score"] is not None for row in nulls)


def test_several_judges_and_teachers_are_compared_on_the_same_rows(tmp_path, tiny_model_dir, cache):
    labelled = tmp_path / "labels.parquet"
    assert tjd("label", DEMO / "pool.parquet", "-t", RECORDED, "--votes", 3, "-o", labelled).exit_code == 0
    ensembles = []
    for layout in ("1-for-3", "1-for-all"):
        ensembles.append(tmp_path / layout)
        train = ("train-judge", labelled, "-b", tiny_model_dir, "--layout", layout, "-c", "style",
                 "--epochs", 1, "--limit", 300, "--max-instruction-tokens", 20, "--max-response-tokens", 20)  # fmt: skip
        assert tjd(*train, "-o", ensembles[-1]).exit_code == 0
    out, figure = tmp_path / "metrics.parquet", tmp_path / "figure.png"
    contestants = ("-j", ensembles[0], "-j", ensembles[1], "-t", RECORDED)
    result = tjd("eval-judge", labelled, *contestants, "--truth", "votes", "--min-agreement", 0.9, "-o", out,
                 "--figure", figure, "--json")  # fmt: skip
    assert result.exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert {row["judge"] for row in rows} == {
        "1-for-3", "1-for-all", TEACHER, "1-for-3 - 1-for-all", f"1-for-3 - {TEACHER}",
    }  # fmt: skip
    for name in ("precision", "recall", "balanced_accuracy"):  # the truth is the mean of this teacher's votes
        assert of(rows, TEACHER, "all", name)["value"] > 0.97
    difference = of(rows, f"1-for-3 - {TEACHER}", "all", "balanced_accuracy")
    apart = (
        of(rows, "1-for-3", "all", "balanced_accuracy")["value"]
        - of(rows, TEACHER, "all", "balanced_accuracy")["value"]
    )
    assert difference["value"] == pytest.approx(apart, abs=1e-6)
    assert difference["low"] < difference["value"] < difference["high"] < 0
    assert len({row["n"] for row in rows if row["category"] == "all"}) == 1
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_untrained_model_is_asked_as_the_judges_were(labels, tiny_model_dir, tmp_path):
    prompt = tmp_path / "mine.md"
    prompt.write_text("$instruction\n---\n$response\n---\n$constraint\nYes or No?\n")
    train = ("train-judge", labels, "-b", tiny_model_dir, "--head", "probe", "--prompt", prompt, "--dtype", "float32")
    assert tjd(*train, "-o", tmp_path / "judges").exit_code == 0
    prompt.unlink()
    compared = ("eval-judge", labels, "-j", tmp_path / "judges", "-t", f"hf:{tiny_model_dir}", "--json", "--dtype")
    exact, rough = (json.loads(tjd(*compared, dtype).stdout) for dtype in ("float32", "bfloat16"))
    errors = [of(rows, f"zero-shot {tiny_model_dir.name}", "all", "ece")["value"] for rows in (exact, rough)]
    assert errors[0] != errors[1]


def recording(path, completions):
    """A recording of what is asked about `labels` in mode batch, whatever is asked."""
    from tjd.teacher import recorded

    rows = [recorded.entry(request, text, model="test", source="test") for request, text in completions]
    recorded.write_recording(rows, str(path), {})
    return path


def test_a_teacher_in_batch_mode_sees_all_constraints_of_a_response(tmp_path):
    from tjd import prompts
    from tjd.teacher.verdicts import VARIABLES, verdict_request

    rows, completions = [], []
    prompt = prompts.load("label.batch.v1", VARIABLES["batch"])
    for i in range(6):
        constraints = ["Be kind.", "Be brief."]
        request = verdict_request(prompt, "batch", f"q{i}", f"answer {i}", constraints)
        completions.append((request, "1: Yes\n2: No" if i else "I cannot say."))
        for j, constraint in enumerate(constraints):
            rows.append({"response_id": f"r{i}", "constraint_id": str(j), "query_id": f"q{i}", "query": f"q{i}",
                         "category": "style", "constraint": constraint, "response": f"answer {i}", "followed": j == 0,
                         "human": [True, j == 0]})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    teacher = f"recorded:{recording(tmp_path / 'r.parquet', completions)}"
    arguments = (
        "eval-judge",
        tmp_path / "labels.parquet",
        "-t",
        teacher,
        "--teacher-mode",
        "batch",
        "--split",
        "all",
        "--json",
    )
    rows = json.loads(tjd(*arguments).stdout)
    accuracy = next(row for row in rows if row["metric"] == "balanced_accuracy")
    assert accuracy["judge"].endswith(" batch")
    assert (accuracy["value"], accuracy["n"], accuracy["n_invalid"]) == (1.0, 10, 2)
    human = json.loads(tjd(*arguments, "--truth", "human").stdout)
    assert human[0]["prevalence"] == 1  # a tie of votes counts as followed
    both = json.loads(tjd(*arguments, "--truth", "human", "--min-agreement", 0.9).stdout)
    assert both[0]["n"] == 5


def test_what_cannot_be_compared(tmp_path, labels):
    assert fails(2, "eval-judge", labels).startswith("nothing to measure: give --judges FOLDER")
    line = fails(2, "eval-judge", labels, "-t", RECORDED, "--figure", tmp_path / "figure.jpg")
    assert line.endswith("figure.jpg must end in .svg, .png, .pdf")
    assert "lacks the column 'human'" in fails(3, "eval-judge", labels, "-t", RECORDED, "--truth", "human")
    assert fails(3, "eval-judge", labels, "-t", RECORDED, "--truth", "query").startswith(
        "--truth query: ['q0'] is neither"
    )
    line = fails(3, "eval-judge", labels, "-t", RECORDED, "--min-agreement", 0.9)
    assert line.startswith("--min-agreement needs votes: give --truth votes")
    line = fails(2, "eval-judge", labels, "-t", RECORDED, "--teacher-mode", "bach")
    assert line == "--teacher-mode must be pointwise or batch, not 'bach'"


@pytest.fixture
def gullible(judges, tmp_path) -> Path:
    """The same judges with thresholds at which they accept most."""
    folder = tmp_path / "gullible"
    folder.mkdir()
    manifest = json.loads((judges / "manifest.json").read_text())
    for name, seat in manifest["categories"].items():
        seat |= {"threshold": 1e-4, "band": None}
        (folder / name).symlink_to(judges / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_is_left_out_or_not_there_is_told(judges, labels):
    told = tjd("eval-judge", labels, "-j", judges).stderr
    assert "eval-judge: 120 of 360 rows left out: not all judges cover their category (layout)" in told
    query_ids = [row["query_id"] for row in pq.read_table(labels).to_pylist() if split_of(row, 0) == "train"]
    one = ("eval-judge", labels, "-j", judges, "--where", f"query_id={query_ids[0]}")
    line = fails(3, *one)
    n = sum(
        row["query_id"] == query_ids[0] and row["category"] != "layout" for row in pq.read_table(labels).to_pylist()
    )
    advice = "use --split all, if the judges never saw these queries"
    assert line == f"0 of {n} rows are in split 'test' (train {n}, validation 0): {advice}"
    line = fails(3, "eval-judge", labels, "-j", judges, "--where", "category=layout")
    assert line == "no row with a verdict and a response has a category that all judges cover"


def test_hack_probes_are_scored_and_the_gate_holds(gullible, labels, tmp_path):
    out, metrics = tmp_path / "probes.parquet", tmp_path / "metrics.parquet"
    command = ("probe-hacks", labels, "-j", gullible, "-o", out, "--metrics", metrics, "--per-category", 4)
    line = fails(6, *command, "--max-false-accept", 0)
    rows, probes = pq.read_table(metrics).to_pylist(), pq.read_table(out).to_pylist()
    worst = max(row["value"] for row in rows)
    assert f"accepts {worst:.0%} of the probe '" in line
    assert "more than --max-false-accept 0; train it with --harden" in line
    assert {row["category"] for row in rows} == {"style", "semantic", "all"}
    for row in rows:
        of_category = [probe for probe in probes if row["category"] in ("all", probe["category"])]
        name = row["metric"].removeprefix("false_accept").removeprefix("/")
        of_probe = [probe for probe in of_category if name in ("", probe["probe"])]
        assert row["n"] == len(of_probe) > 0
        assert row["value"] == pytest.approx(sum(bool(probe["followed"]) for probe in of_probe) / len(of_probe))
        if row["low"] is not None:  # more than one query
            assert row["low"] <= row["value"] <= row["high"]
            assert row["high"] > 0  # four queries prove nothing
    shown = tjd(*command)
    assert shown.exit_code == 0
    [empty] = [row for row in rows if (row["category"], row["metric"]) == ("style", "false_accept/empty")]
    assert f" {empty['value']:.3f} of {empty['n']} " in next(
        line for line in shown.stdout.splitlines() if " empty " in line
    )


def test_judges_and_rules_work_in_another_trainer_as_the_readme_shows(judges, tmp_path, monkeypatch):
    (tmp_path / "judges").symlink_to(judges)
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = readme.partition("<!-- tested by tests/test_trust.py -->\n```python\n")[2].partition("```")[0]
    names = {"query": "Ask.", "responses": ["Warm, warm", "Cold", ""]}
    exec(code, names)
    assert len(names["rewards"]) == 3
    for reward, rule, soft in zip(names["rewards"], names["rules"], names["softs"], strict=True):
        assert reward == pytest.approx(rule + soft.score)


def test_a_hardened_judge_accepts_fewer_probes_and_was_not_shown_them(labels, tiny_model_dir, judges, tmp_path):
    hardened = tmp_path / "hardened"
    train = ("train-judge", labels, "-b", tiny_model_dir, "--full", "--learning-rate", 3e-3, "--epochs", 12, "--patience", 12,
             "-c", "style", "--harden", 0.5)  # fmt: skip
    assert tjd(*train, "-o", hardened).exit_code == 0
    manifest = json.loads((hardened / "manifest.json").read_text())
    n_style = sum(row["category"] == "style" for row in pq.read_table(labels).to_pylist())
    assert 0 < manifest["data"]["n_probes"] < n_style / 2
    assert f"{manifest['data']['n_probes']} of the training rows are hack probes" in (hardened / "card.md").read_text()
    scores = {}
    for folder in (judges, hardened):
        command = ("probe-hacks", labels, "-j", folder, "-o", tmp_path / "probes.parquet", "--where", "category=style")
        assert tjd(*command).exit_code == 0
        scores[folder] = pc.mean(pq.read_table(tmp_path / "probes.parquet")["score"]).as_py()
    assert scores[hardened] < scores[judges]


def test_rl_tells_what_the_judges_accept_and_refuses(gullible, tiny_model_dir, tmp_path):
    constraint = {"constraint_id": "c", "kind": "soft", "category": "style", "text": "Avoid a grand manner.",
                  "checker": None, "kwargs": None}  # fmt: skip
    rows = [
        {"instruction_id": f"i{i}", "query": f"Ask {i}", "instruction": f"Ask {i}", "constraints": [constraint]}
        for i in range(3)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "instructions.parquet")
    command = ("rl", tmp_path / "instructions.parquet", "-j", gullible, "-o", tmp_path / "policy", "-p", tiny_model_dir)
    early = tjd(*command, "-p", "./nowhere")
    assert early.exit_code == 2
    assert "there is no model folder ./nowhere" in early.stderr
    assert "rl: the judge" not in early.stderr  # the policy is looked for first
    line = fails(6, *command, "--max-false-accept", 0)
    assert line.startswith("the judge of 'style' accepts ")
    line = fails(3, *command, "--category", "layout")
    assert line == "no instruction has soft constraints of layout alone; see --category"
    assert not (tmp_path / "policy").exists()
    told = tjd(*command, "--max-prompt-tokens", 1)
    assert told.exit_code == 3
    assert "rl: the judge of style accepts " in told.stderr
    assert "rl: instructions have no responses to try other_answer with; tjd probe-hacks LABELS does" in told.stderr


@pytest.mark.slow
def test_specialists_are_trained_and_transferred(labels, tiny_model_dir, tmp_path):
    out, figure, folder = tmp_path / "matrix.parquet", tmp_path / "matrix.svg", tmp_path / "specialists"
    command = ("transfer", labels, "-j", folder, "-o", out, "--figure", figure, "--metric", "balanced_accuracy")
    train = ("-b", tiny_model_dir, "--full", "--learning-rate", 3e-3, "--epochs", 12, "--patience", 12)
    first = tjd(*command, *train)
    assert first.exit_code == 0
    assert "trains 3 specialists (layout, semantic, style)" in first.stderr
    rows = pq.read_table(out).to_pylist()
    accuracy = {(row["judge"], row["category"]): row["value"] for row in rows if row["metric"] == "auroc"}
    assert len(accuracy) == 9
    assert min(accuracy[name, name] for name in CATEGORIES) > 0.9
    assert min(accuracy["style", "semantic"], accuracy["semantic", "style"]) > 0.9
    assert max(accuracy["layout", "style"], accuracy["style", "layout"]) < 0.1  # what they judge by is the opposite
    assert figure.read_text().count("</svg>") == 1
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")}
    again = tjd(*command, "--target", 0.8)
    two = json.loads(tjd("transfer", labels, "-j", folder, "-c", "style", "-c", "layout", "--json").stdout)
    assert {row["category"] for row in two["metrics"]} == {"style", "layout"}
    assert [len(each["specialists"]) for each in two["best"]] == [1, 2, 3]
    assert weights == {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")}
    assert "the smallest set that reaches 0.8 on validation: layout + s" in again.stderr


def test_transfer_needs_one_specialist_per_category(labels, tiny_model_dir, tmp_path):
    shared = tmp_path / "shared"
    train = ("train-judge", labels, "-b", tiny_model_dir, "--layout", "1-for-3", "--epochs", 1, "-o", shared)
    assert tjd(*train).exit_code == 0
    assert "no specialist of 'style' alone; train it with --layout 3-for-3" in fails(
        2, "transfer", labels, "-j", shared
    )
    line = fails(2, "transfer", labels, "-j", tmp_path / "new", "--layout", "1-for-3")
    assert line == "tjd transfer trains a specialist per category: --layout must be 3-for-3, not 1-for-3"


def test_a_table_without_constraints_cannot_be_probed(judges, tmp_path):
    pq.write_table(pa.table({"query": ["Why?"], "constraint": ["Be kind."]}), tmp_path / "x.parquet")
    line = fails(3, "probe-hacks", tmp_path / "x.parquet", "-j", judges)
    assert line.endswith(
        "x.parquet has neither a column 'constraints' nor both 'constraint' and 'category'; give labels"
    )


def parquet_of(result):
    """The table on standard output, and nothing else there."""
    assert result.exit_code == 0, result.output
    return pq.read_table(pa.BufferReader(result.stdout_bytes)).to_pylist()


@pytest.mark.parametrize("as_json", [pytest.param((), marks=pytest.mark.slow), ("--json",)], ids=["table", "json"])
def test_a_table_on_standard_output_has_it_for_itself(judges, labels, tiny_model_dir, as_json, monkeypatch):
    result = tjd("eval-judge", labels, "-j", judges, "-o", "-", *as_json)
    assert parquet_of(result)[0]["judge"] == "3-for-3"
    assert "balanced" in result.stderr
    result = tjd("probe-hacks", labels, "-j", judges, "--per-category", 2, "--metrics", "-", *as_json)
    assert parquet_of(result)[0]["metric"] == "false_accept"
    assert "style" in result.stderr
    result = tjd("transfer", labels, "-j", judges, "-c", "style", "-c", "semantic", "-o", "-", *as_json)
    assert parquet_of(result)[0]["judge"] == "style"
    assert "semantic" in result.stderr
    monkeypatch.delattr(AutoModelForSequenceClassification, "from_config")  # of contestants that are left out
    small = [part for name in ("instructions", "rounds", "instruction-tokens", "response-tokens", "constraint-tokens",
                               "top-layers", "probe-layer") for part in (f"--{name}", 1)]  # fmt: skip
    result = tjd(
        "bench", "judge", "--shape", tiny_model_dir, "--contestant", "tjd, one judge", *small, "-o", "-", *as_json
    )
    assert parquet_of(result)[0]["contestant"] == "tjd, one judge"
    assert "tjd, one judge" in result.stderr


def test_two_tables_do_not_fit_on_standard_output(judges, labels):
    line = fails(2, "probe-hacks", labels, "-j", judges, "-o", "-", "--metrics", "-")
    assert line == "standard output (`-`) takes one table; write the other to a file"


def test_judges_are_not_timed_with_layers_that_are_not_there(tiny_model_dir):
    line = fails(2, "bench", "judge", "--shape", tiny_model_dir, "--top-layers", 40, "--probe-layer", 1)
    assert line == "--top-layers must be at most 2, this shape's layers, not 40"


def test_probes_that_cannot_be_built_are_one_line(judges, tmp_path):
    (tmp_path / "hacks.toml").write_text('[other]\ntest = ["$other"]\ntrain = ["$other"]\n')
    row = {"query_id": "q", "query": "Why?", "constraint": "Be kind.", "category": "style", "split": "test"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    line = fails(3, "probe-hacks", tmp_path / "x.parquet", "-j", judges, "--probes", tmp_path / "hacks.toml")
    assert line.startswith("no probe could be built")


def test_what_transfer_cannot_do_is_told_before_a_policy_is_trained(judges, tiny_model_dir, tmp_path):
    rows = [
        {"instruction_id": f"i{i}", "query_id": f"q{i}", "query": "Ask", "instruction": "Ask", "split": split,
         "constraints": [{"constraint_id": "c", "kind": "soft", "category": "style", "text": "Be kind.",
                          "checker": None, "kwargs": None}]}
        for i, split in enumerate(("train", "test"))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "instructions.parquet")
    runs, namesake = tmp_path / "runs", tmp_path / "style"
    namesake.symlink_to(tiny_model_dir)
    command = ("transfer", tmp_path / "instructions.parquet", "-j", judges, "--rl", runs, "--rl-set")
    policy = f"policy={tiny_model_dir}"
    assert fails(2, *command, policy, "-c", "style", "-c", "layout") == (
        "unknown category of these judges: 'layout'; known: style, semantic"
    )
    assert "there is no recording" in fails(3, *command, policy, "--teacher", "recorded:nowhere.parquet")
    assert "the policy is called 'style', as is a category" in fails(2, *command, f"policy={namesake}")
    assert fails(3, *command, policy, "--where", "split=train").startswith("no category that the judges cover")
    assert not runs.exists()


@pytest.mark.slow
def test_policies_are_trained_per_category_and_tested_on_all(judges, tiny_model_dir, tmp_path, cache):
    from tjd import prompts
    from tjd.teacher.verdicts import VARIABLES, verdict_request

    rows = [
        {"instruction_id": f"i{i}", "query_id": f"q{i}", "query": f"Ask {i}", "instruction": f"Ask {i}",
         "split": ("train", "train", "test")[i // 2 % 3],
         "constraints": [{"constraint_id": "c", "kind": "soft", "category": CATEGORIES[i % 2], "text": "Be kind.",
                          "checker": None, "kwargs": None}]}
        for i in range(24)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "instructions.parquet")
    runs, out, figure = tmp_path / "runs", tmp_path / "matrix.parquet", tmp_path / "matrix.svg"
    settings = ("steps=2", f"policy={tiny_model_dir}", "prompts-per-step=2", "group_size=4", "max_response_tokens=8",
                "soft_reward=score", "overlap=true", "flat_steps=9")  # fmt: skip
    command = ("transfer", tmp_path / "instructions.parquet", "-j", judges, "--rl", runs, "-o", out, "--figure", figure,
               "--responses", 2, *(part for setting in settings for part in ("--rl-set", setting)))  # fmt: skip
    first = tjd(*command)
    assert first.exit_code == 0
    assert "Soft reward of tiny, and what training on a category has gained" in " ".join(first.stdout.split())
    metrics = pq.read_table(out).to_pylist()
    base = {category: of(metrics, "tiny", category, "soft_reward") for category in ("style", "semantic")}
    for trained in ("style", "semantic"):
        assert json.loads((runs / trained / "manifest.json").read_text())["steps"] == 2
        used = {row["instruction_id"] for row in pq.read_table(runs / trained / "rollouts.parquet").to_pylist()}
        own = [row for row in rows if row["constraints"][0]["category"] == trained]
        assert used <= {row["instruction_id"] for row in own if row["split"] == "train"}
        for tested in ("style", "semantic"):
            gain, level = (of(metrics, trained, tested, name) for name in ("soft_reward_gain", "soft_reward"))
            assert gain["n"] == 4
            assert gain["value"] == pytest.approx(level["value"] - base[tested]["value"])
    scored = pq.read_table(runs / "scores.parquet").to_pylist()
    assert {row["model"] for row in scored} == {"tiny", "style", "semantic"}
    assert {row["split"] for row in scored} == {"test"}
    assert len(scored) == 3 * 8 * 2
    assert all(row["response"] is not None for row in scored)
    assert figure.read_text().count("</svg>") == 1
    for path in (out, runs / "scores.parquet"):
        written = pq.read_schema(path).metadata[b"tjd"].decode()
        assert json.loads(written)["config"]["rl_set"]["policy"] == "tiny"
        assert str(tmp_path) not in written
    again = tjd(*command)
    assert "step    " not in again.stderr  # nothing is trained again
    assert pq.read_table(out).to_pylist() == metrics
    prompt = prompts.load("label.pointwise.v1", VARIABLES["pointwise"])
    requests = [
        verdict_request(prompt, "pointwise", row["query"], row["response"], [row["constraint"]])
        for row in scored
        if row["response"] is not None
    ]
    distinct = {request.prompt_digest: request for request in requests}  # a recording holds each request once
    completions = [(request, "Yes") for request in distinct.values()]
    recorded = f"recorded:{recording(tmp_path / 'r.parquet', completions)}"
    line = fails(5, *command, "--teacher", RECORDED)
    assert "holds none of the first" in line
    asked = json.loads(tjd(*command, "--teacher", recorded, "--json").stdout)["metrics"]
    assert {(row["metric"], row["value"]) for row in asked} == {("soft_reward", 1), ("soft_reward_gain", 0)}
    line = fails(2, *command, "--rl-set", "steps=soon")
    assert line == "--rl-set steps: 'soon' is not a whole number"
    assert fails(2, *command, "--rl-set", "full=yes") == "--rl-set full: 'yes' is not true or false"
    assert "did you mean 'steps'?" in fails(2, *command, "--rl-set", "step=3")
    assert "holds a run that differs in group_size" in fails(2, *command, "--rl-set", "group_size=2")
    for other in (("--limit", 20), ("--where", "query_id!=q0")):
        assert "holds a run that differs in instructions" in fails(2, *command, *other)
