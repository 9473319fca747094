import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from trl import GRPOTrainer

from tjd import backbone, tables
from tjd.config import RL_PRESETS, RlConfig
from tjd.errors import ConfigError, DataError, TrainingError
from tjd.rewards import ABSTAINED, Verdict
from tjd.stages.rl import rl


def rule(n):
    return {
        "constraint_id": f"a{n}", "kind": "rule", "category": None, "text": f"at least {n} a",
        "checker": "letter_a", "kwargs": json.dumps({"n": n}),
    }  # fmt: skip


SOFT = {"constraint_id": "s", "kind": "soft", "category": "style", "text": "few b", "checker": None, "kwargs": None}
INSTRUCTIONS = [
    {
        "instruction_id": f"i{index}",
        "query": text,
        "instruction": text,
        "constraints": [*map(rule, (1, 2, 4, 6)), SOFT],  # together they reward the share of a, nearly
    }
    for index, text in enumerate(("abc", "def", "ghi j", "a b c"))
]


def check(checker, kwargs, response, *, prompt):
    return response.count("a") >= kwargs["n"], None


def score(rows):
    scores = [1 - row["response"].count("b") / max(1, len(row["response"])) for row in rows]
    return [Verdict(score > 0.8, score, 0.8, "style") for score in scores]


def score_or_fail(rows):
    return [
        Verdict(None, error="lost") if "j" in row["response"] else each
        for row, each in zip(rows, score(rows), strict=True)
    ]


@pytest.fixture
def config(tiny_policy):
    torch.set_num_threads(1)
    return RlConfig(
        policy=str(tiny_policy), steps=12, prompts_per_step=2, group_size=8, micro_batch=8, max_response_tokens=12,
        learning_rate=1e-2, full=True, dtype="float32", save_every=5,
    )  # fmt: skip


def run(config, out, rows=INSTRUCTIONS, score=score, check=check, **options):
    return rl(rows, config, out, score=score, check=check, **options)


def rollouts_of(out):
    return pq.read_table(out / "rollouts.parquet").to_pylist()


def rewards_by_step(out):
    return [(row["step"], row["group"], row["sample"], row["response"], row["reward"]) for row in rollouts_of(out)]


def test_the_policy_learns_what_is_rewarded(config, tmp_path, capsys):
    seen = []
    metrics = run(replace(config, steps=20), tmp_path / "policy", on_step=seen.append).to_pylist()
    rewards = [row["reward"] for row in metrics]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.6
    assert metrics[-1]["reward_rule"] > 0.9
    assert [row["step"] for row in seen] == list(range(1, 21))
    assert [row["reward"] for row in seen] == rewards
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the first policy
    assert metrics[0]["reward_soft/style"] == metrics[0]["reward_soft"]
    assert all(row["generation_s"] > 0 and row["training_s"] > 0 for row in metrics)
    assert capsys.readouterr().out == ""


def test_the_folder_is_a_policy_with_its_history(config, tmp_path):
    out = tmp_path / "policy"
    run(replace(config, steps=3), out, inputs={"instructions": "0" * 64})
    trained, first = backbone.load_model(str(out)).state_dict(), backbone.load_model(config.policy).state_dict()
    assert any(not torch.equal(trained[name], first[name]) for name in first)
    assert backbone.load_tokenizer(str(out)).chat_template == backbone.load_tokenizer(config.policy).chat_template
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["stage"] == "rl"
    assert manifest["steps"] == 3
    assert manifest["inputs"]["instructions"] == "0" * 64
    assert len(manifest["inputs"]["policy"]) == 64
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    rollouts = pq.read_table(out / "rollouts.parquet")
    assert rollouts.schema.equals(tables.ROLLOUTS)
    assert len(rollouts) == 3 * 2 * 8
    assert json.loads(rollouts.schema.metadata[b"tjd"])["config"]["group_size"] == 8


def test_rollouts_are_what_the_trainer_used(config, tmp_path, monkeypatch):
    used = []
    compute_loss = GRPOTrainer.compute_loss

    def spy(trainer, model, inputs, *args, **kwargs):
        texts = trainer._tokenizer.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
        used.append(sorted(zip(texts, inputs["advantages"].tolist(), strict=True)))
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", spy)
    run(replace(config, steps=4, micro_batch=16, max_failed=1.0), tmp_path / "policy", score=score_or_fail)
    rows = rollouts_of(tmp_path / "policy")
    for step, batch in enumerate(used, start=1):
        mine = [row for row in rows if row["step"] == step]
        assert sorted((row["response"], row["advantage"]) for row in mine) == batch
        rewards_P_G = np.array([row["reward"] for row in mine], dtype=float).reshape(2, 8)
        advantages_P_G = np.array([row["advantage"] for row in mine]).reshape(2, 8)
        for rewards_G, advantages_G in zip(rewards_P_G, advantages_P_G, strict=True):
            known_K = rewards_G[known := ~np.isnan(rewards_G)]
            if len(known_K) > 1:
                expected_K = (known_K - known_K.mean()) / (known_K.std(ddof=1) + 1e-4)
                np.testing.assert_allclose(advantages_G[known], expected_K, atol=1e-4)
    failed = [row for row in rows if row["judge_failed"]]
    assert failed
    for row in failed:  # masked, not punished
        assert row["reward"] is None
        assert row["advantage"] == 0
        assert "j" in row["response"]
        assert "lost" in row["verdicts"]


def test_a_judge_that_abstains_is_masked_and_counted_but_fails_nothing(config, tmp_path):
    def unsure(rows):
        verdicts = zip(rows, score(rows), strict=True)
        return [replace(v, followed=None, error=ABSTAINED) if "j" in row["response"] else v for row, v in verdicts]

    [step] = run(replace(config, steps=1, max_failed=0.0), tmp_path / "policy", score=unsure).to_pylist()
    rows = rollouts_of(tmp_path / "policy")
    nulls = [row for row in rows if row["reward"] is None]
    assert len(nulls) == sum("j" in row["response"] for row in rows) > 0
    assert not any(row["judge_failed"] or row["advantage"] for row in nulls)
    assert step["abstained"] == pytest.approx(len(nulls) / len(rows))
    assert step["judge_failed"] == 0


@pytest.mark.parametrize("full", [True, False])
def test_judging_ahead_changes_no_reward(config, tmp_path, full):
    """The judges are the real thing's interface: they see each row once, in another thread, and some of them early."""
    config = replace(config, steps=2, max_response_tokens=40, full=full, max_failed=1.0)
    run(config, tmp_path / "after", score=score_or_fail)
    threads, calls = set(), []

    def spying(rows):
        threads.add(threading.current_thread().name)
        calls.append([(row["instruction"], row["response"]) for row in rows])
        return score_or_fail(rows)

    metrics = run(replace(config, overlap=True), tmp_path / "ahead", score=spying).to_pylist()
    rollouts = rollouts_of(tmp_path / "ahead")
    assert rollouts == rollouts_of(tmp_path / "after")
    assert any(row["judge_failed"] for row in rollouts)
    assert all(name.startswith("judge") for name in threads)
    for step in (1, 2):
        distinct = {(row["instruction"], row["response"]) for row in rollouts if row["step"] == step}
        assert 0 < metrics[step - 1]["judged_ahead"] < 1
        assert len(calls) > 2
        assert distinct <= {pair for call in calls for pair in call}
    assert not any(thread.name.startswith("judge") for thread in threading.enumerate())


@pytest.mark.parametrize("full", [pytest.param(True, marks=pytest.mark.slow), False], ids=["full", "lora"])
def test_a_run_continues_where_it_was_stopped(config, tmp_path, full):
    config = replace(config, full=full)
    run(config, tmp_path / "whole")

    def interrupt(metrics):
        if metrics["step"] == 7:
            shutil.copytree(tmp_path / "stopped", tmp_path / "killed")  # what `kill -9` would leave
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "stopped", on_step=interrupt)
    assert {row["step"] for row in rollouts_of(tmp_path / "stopped")} == set(range(1, 8))
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    assert len(list((tmp_path / "killed" / "rollouts").iterdir())) == 7

    for name in ("stopped", "killed"):
        steps = []
        metrics = run(config, tmp_path / name, on_step=lambda metrics, steps=steps: steps.append(metrics["step"]))
        assert steps == list(range(6, 13))  # the last checkpoint is of step 5
        assert metrics["step"].to_pylist() == list(range(1, 13))
        assert rewards_by_step(tmp_path / name) == rewards_by_step(tmp_path / "whole")


def test_a_checkpoint_that_was_cut_short_is_passed_over(config, tmp_path):
    out = tmp_path / "policy"
    run(replace(config, steps=6, save_every=3), out)
    state = out / "checkpoints" / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    steps = []
    run(replace(config, steps=8), out, on_step=lambda metrics: steps.append(metrics["step"]))
    assert steps == [4, 5, 6, 7, 8]
    assert [row["step"] for row in rollouts_of(out)] == [step for step in range(1, 9) for _ in range(16)]


def test_a_finished_run_does_nothing_again(config, tmp_path):
    first = run(replace(config, steps=2), tmp_path / "policy")
    before = rollouts_of(tmp_path / "policy")
    assert run(replace(config, steps=2), tmp_path / "policy", score=None).equals(first)
    assert rollouts_of(tmp_path / "policy") == before


def test_adapters_are_saved_alone_and_merged(config, tmp_path):
    out = tmp_path / "policy"
    metrics = run(replace(config, full=False, learning_rate=3e-2, steps=3, lora_layers=1), out).to_pylist()
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["kl"] > 0
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    trained, first = backbone.load_model(str(out)).state_dict(), backbone.load_model(config.policy).state_dict()
    changed = {name.split(".")[2] for name in first if not torch.equal(trained[name], first[name])}
    assert changed == {"1"}  # the top layer of two


def test_a_folder_belongs_to_one_run(config, tmp_path):
    out = tmp_path / "policy"
    run(replace(config, steps=1), out)
    told = rf"differs in temperature \(was 1.0, now 0.9\), learning_rate \(was {config.rate}, now 0.001\); give"
    with pytest.raises(ConfigError, match=told):
        run(replace(config, learning_rate=1e-3, temperature=0.9), out)
    with pytest.raises(ConfigError, match=r"differs in instructions \(was none, now 111111111111\); give"):
        run(config, out, inputs={"instructions": "1" * 64})
    other = shutil.copytree(config.policy, tmp_path / "other-policy")
    (other / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"differs in policy \(was tiny-policy\d*, now other-policy\); give"):
        run(replace(config, policy=str(other)), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="not a run of tjd rl"):
        run(config, tmp_path / "other")


def test_a_run_that_trained_nothing_gives_its_folder_away(config, tmp_path):
    out = tmp_path / "policy"
    with pytest.raises(ConfigError, match="there is no model folder"):
        run(replace(config, policy=str(tmp_path / "nowhere")), out)
    assert not out.exists()
    with pytest.raises(TrainingError):  # before its first checkpoint
        run(config, out, score=lambda rows: [Verdict(None, error="down")] * len(rows))
    assert (out / "run.json").is_file()
    (out / "metrics.parquet").write_bytes(b"of that run")
    with pytest.raises(DataError, match="no instruction is left"):
        run(replace(config, temperature=0.9, max_prompt_tokens=1), out)
    assert not (out / "metrics.parquet").exists()
    assert len(run(replace(config, temperature=0.8, steps=1), out)) == 1


def test_rewards_without_spread_stop_the_run(config, tmp_path):
    out = tmp_path / "policy"
    with pytest.raises(TrainingError, match=r"no group had any spread of reward in 3 steps.*--soft-reward score"):
        run(
            replace(config, flat_steps=3),
            out,
            check=lambda *_, **__: (False, None),
            score=lambda rows: [Verdict(True)] * len(rows),
        )
    assert len(rollouts_of(out)) == 3 * 16  # evidence is kept
    assert not (out / "model.safetensors").exists()


def test_judges_that_fail_stop_the_run(config, tmp_path):
    with pytest.raises(TrainingError, match="have no reward"):
        run(config, tmp_path / "policy", score=lambda rows: [Verdict(None, error="down")] * len(rows))


def test_a_diverging_run_stops(config, tmp_path):
    with pytest.raises(TrainingError, match=r"not a number|not numbers"):
        run(replace(config, learning_rate=1e30), tmp_path / "policy")
    assert rollouts_of(tmp_path / "policy")
    assert not (tmp_path / "policy" / "model.safetensors").exists()


def test_unusable_instructions_are_left_out(config, tmp_path):
    bad = [
        INSTRUCTIONS[0] | {"instruction_id": "failed", "instruction": None},
        INSTRUCTIONS[0] | {"instruction_id": "free", "constraints": []},
        INSTRUCTIONS[0] | {"instruction_id": "long", "instruction": "a" * 50},
    ]
    short = replace(config, steps=1, max_prompt_tokens=40)
    run(short, tmp_path / "policy", rows=[*bad, INSTRUCTIONS[1]])
    assert {row["instruction_id"] for row in rollouts_of(tmp_path / "policy")} == {"i1"}
    with pytest.raises(
        DataError, match=r"2 are empty or without constraints, 1 are longer than --max-prompt-tokens 40"
    ):
        run(short, tmp_path / "none", rows=bad)


def test_the_policy_is_not_asked_to_think(config, tmp_path, monkeypatch):
    thinking = tmp_path / "thinking"
    shutil.copytree(config.policy, thinking)
    tokenizer = backbone.load_tokenizer(str(thinking))
    tokenizer.chat_template += "{% if enable_thinking | default(true) %}????{% endif %}"
    tokenizer.save_pretrained(thinking)
    shown = set()
    compute_loss = GRPOTrainer.compute_loss

    def spy(trainer, model, inputs, *args, **kwargs):
        shown.update(trainer._tokenizer.batch_decode(inputs["prompt_ids"]))
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", spy)
    short = replace(config, policy=str(thinking), steps=1, max_prompt_tokens=6)
    run(short, tmp_path / "policy", rows=INSTRUCTIONS[:2])
    assert shown
    assert not any("?" in prompt for prompt in shown)


def test_settings_that_do_not_fit_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="multiple of --micro-batch"):
        run(replace(config, micro_batch=7), tmp_path / "policy")
    with pytest.raises(ConfigError, match="pip install vllm"):
        run(replace(config, vllm=True), tmp_path / "policy")
    with pytest.raises(ConfigError, match="--overlap cannot see into vLLM"):
        run(replace(config, vllm=True, overlap=True), tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_the_paper_preset_is_table_4():
    paper = RlConfig(**RL_PRESETS["paper"])
    assert paper.prompts_per_step == 128
    assert paper.group_size == 8
    assert (paper.rate, paper.kl, paper.steps) == (1e-6, 0.001, 400)
