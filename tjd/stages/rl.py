"""RL: train a policy with GRPO on the reward of Eq. 5, through TRL's trainer.

In: INSTRUCTIONS, the judges as a scoring function, the rules as a checking function. Out: a folder with the trained
policy (whole weights, loadable by name of the folder; LoRA adapters also in `adapter/`), `manifest.json`,
`metrics.parquet` (one row per step), `rollouts.parquet` (ROLLOUTS: the values that the trainer used) and `checkpoints/`.

The same call on the same folder continues from the last whole checkpoint. While a run is under way each step's rollouts
are a file of their own in `rollouts/`, so that a crash loses none; they are merged when the run ends or is interrupted.

Set as in the paper (2.2, Table 4): group-standardised advantages, each response's mean over its tokens, a constant
learning rate, one update per batch of rollouts, and a KL term outside of the clipped ratio. Departures: `PAPERS.md`.
"""

import json
import logging
import math
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from tjd import backbone, tables
from tjd.config import RlConfig, as_dict
from tjd.errors import ConfigError, DataError, TrainingError
from tjd.integrations.overlap import Ahead, watch
from tjd.integrations.trl import Check, Score, reward_function, rollout_rows
from tjd.tables import Row

MANIFEST = "manifest.json"
RUN = "run.json"  # what a run was started with; a continued one must match
# may change in between; rounding apart, these change no result
FREE = (
    *("steps", "save_every", "micro_batch", "activation_checkpointing", "vllm_memory", "max_false_accept"),
    *("judge_device", "engine", "overlap"),
)
TEMPLATE: dict[str, Any] = {"enable_thinking": False}  # as the policy is sampled and judged elsewhere
SAME_SPREAD = 1e-6  # rewards closer than this are equal: they are float32

STEP_METRICS = pa.schema(
    {
        "step": pa.int64(),  # from 1
        "reward": pa.float64(),  # mean of the step's responses; null if none has a reward
        "reward_rule": pa.float64(),  # mean of the rule half, null if no instruction of the step has one
        "reward_soft": pa.float64(),  # mean of the soft half; columns `reward_soft/CATEGORY` follow at the end
        "reward_std": pa.float64(),
        "flat_groups": pa.float64(),  # share of groups without any spread of reward, which teach nothing
        "judge_failed": pa.float64(),  # share of responses without a reward because a judge or checker failed
        "abstained": pa.float64(),  # share of responses without a reward because a judge abstained
        "n_tokens": pa.float64(),  # mean length of a response
        "cut": pa.float64(),  # share of responses cut at the longest length
        "kl": pa.float64(),  # divergence from the first policy, per token in nats; null if its weight is 0
        "entropy": pa.float64(),  # of the policy, per token in nats
        "clipped": pa.float64(),  # share of tokens whose probability ratio was clipped
        "loss": pa.float64(),
        "grad_norm": pa.float64(),  # before it is clipped to 1
        "learning_rate": pa.float64(),
        "generation_s": pa.float64(),  # seconds to write the responses
        "scoring_s": pa.float64(),  # seconds for judges and checkers once all responses are there
        "judged_ahead": pa.float64(),  # share of judgements that did not wait for all responses; null without --overlap
        "training_s": pa.float64(),  # seconds for the rest: the reference's forward pass and the update
    }
)
FROM_TRL = {
    "n_tokens": "completions/mean_length",
    "cut": "completions/clipped_ratio",
    "clipped": "clip_ratio/region_mean",
}

log = logging.getLogger(__name__)


def unwatched(metrics: Row) -> None:
    """Ignore the metrics of a step."""


def require_startable(config: RlConfig, out: Path, inputs: Mapping[str, str]) -> Row:
    """Check what can be known before anything is computed.

    Returns:
        What the run is known by: its settings and the digests of its inputs.

    Raises:
        ConfigError: As `rl` does, or there is no such policy.
    """
    _require_possible(config)
    backbone.load_config(config.policy)
    run = _provenance(config, inputs)
    _require_own(out, run)
    return run


def rl(
    instructions: Iterable[Row],
    config: RlConfig,
    out: Path,
    *,
    score: Score,
    check: Check,
    inputs: Mapping[str, str] | None = None,
    on_step: Callable[[Row], None] = unwatched,
) -> pa.Table:
    """Train the policy, and write it to `out`.

    Args:
        instructions: Rows of INSTRUCTIONS. Those that failed, have no constraint or are too long are left out.
        config: The settings.
        out: A new folder, or that of a run to continue.
        score: The judges.
        check: The rule checkers.
        inputs: SHA-256 by name of the instructions and the judges, for the manifest.
        on_step: Told the metrics of each step, as in the returned table; null where undefined.

    Returns:
        STEP_METRICS, one row per step.

    Raises:
        ConfigError: `out` holds a run that trained under other settings or on other inputs, or the settings do not fit.
        DataError: No instruction is left.
        TrainingError: The loss is not a number, no group had any spread of reward, or too many responses have none.
    """
    run = require_startable(config, out, inputs or {})
    if _is_main():
        _claim(out, run)
    with _quiet():
        metrics = _train(instructions, config, out, run, score, check, on_step)
    if _is_main():
        _write_json(out / MANIFEST, run | {"steps": len(metrics), "versions": _versions()})
    return metrics


def _train(
    instructions: Iterable[Row],
    config: RlConfig,
    out: Path,
    run: Row,
    score: Score,
    check: Check,
    on_step: Callable[[Row], None],
) -> pa.Table:
    tokenizer = backbone.load_tokenizer(config.policy)
    tokenizer.padding_side = "left"
    prompts = _prompts(instructions, tokenizer, config)
    ahead = Ahead(score, config.group_size) if config.overlap else None
    judge = ahead.score if ahead else score
    reward = reward_function(judge, check, soft_reward=config.soft_reward, max_failed=config.max_failed)
    trainer = _trainer(prompts, tokenizer, config, out, reward)
    if ahead:
        _judge_ahead(trainer, tokenizer, ahead)
    trainer.add_callback(_watch(trainer, config, out, run, on_step, ahead))
    checkpoint = _last_checkpoint(out / "checkpoints")
    if _is_main():
        _merge_rollouts(out, run, upto=_step_of(checkpoint))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:  # also after Ctrl-C: what was done is kept
        if ahead:
            ahead.close()
        metrics = _step_metrics(trainer.state.log_history)
        if _is_main() and len(metrics):
            _merge_rollouts(out, run)
            tables.write_rows(metrics.to_pylist(), str(out / "metrics.parquet"), metrics.schema, run)
    _require_spread(trainer.state.log_history, config)
    _save_policy(trainer, tokenizer, config, out)
    return metrics


def _is_main() -> bool:
    """Whether this process writes files; a launcher such as accelerate starts several."""
    return os.environ.get("RANK", "0") == "0"


def _n_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _require_possible(config: RlConfig) -> None:
    processes = _n_processes()
    responses = config.prompts_per_step * config.group_size
    if responses % (processes * config.micro_batch) and responses > config.micro_batch:
        raise ConfigError(
            f"--prompts-per-step times --group-size ({responses}) must be a multiple of --micro-batch "
            f"({config.micro_batch}) times the number of processes ({processes})"
        )
    if config.vllm and config.overlap:
        raise ConfigError("--overlap cannot see into vLLM, which gives all responses at once; leave one of them out")
    if config.vllm and find_spec("vllm") is None:
        raise ConfigError("--vllm needs the package vllm, which is not installed: pip install vllm")


def _provenance(config: RlConfig, inputs: Mapping[str, str]) -> Row:
    settings = as_dict(config) | {"policy": backbone.public_name(config.policy), "learning_rate": config.rate}
    digest = backbone.digest(backbone.resolve(config.policy))
    policy = {"policy": digest} if digest else {}
    return tables.provenance("rl", settings, {**policy, **inputs}, {})


def _require_own(out: Path, run: Row) -> None:
    """Raise unless `out` is new, or the folder of this run, or of one that trained nothing."""
    started = out / RUN
    if started.is_file():
        changed = _changed(json.loads(started.read_text()), run)
        if changed and _has_trained(out):
            raise ConfigError(
                f"{out} holds a run that differs in {', '.join(changed)}; give another folder, or remove this one"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not a run of tjd rl; give a new folder")


def _changed(before: Row, run: Row) -> list[str]:
    """Each setting or input in which two runs differ, with its old and its new value."""
    told = {
        name: f"{name} (was {_shown(before['config'].get(name))}, now {_shown(value)})"
        for name, value in run["config"].items()
        if name not in FREE and before["config"].get(name) != value
    }
    for name in {**before["inputs"], **run["inputs"]}:
        old, new = (each["inputs"].get(name) for each in (before, run))
        if old != new:  # a policy of another name is told already
            told.setdefault(name, f"{name} (was {_shown(old)[:12]}, now {_shown(new)[:12]})")
    return list(told.values())


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _has_trained(out: Path) -> bool:
    return (out / MANIFEST).is_file() or _last_checkpoint(out / "checkpoints") is not None


def _claim(out: Path, run: Row) -> None:
    """Make `out` the folder of this run; what a run without a checkpoint left there is no part of it."""
    out.mkdir(parents=True, exist_ok=True)
    if not _has_trained(out):
        (out / "metrics.parquet").unlink(missing_ok=True)
    _write_json(out / RUN, run)


def _prompts(instructions: Iterable[Row], tokenizer: PreTrainedTokenizerBase, config: RlConfig) -> Dataset:
    """The prompts of all steps in order: each pass over the instructions is a new shuffle.

    Laying out the order here, not in the trainer's sampler, makes a continued run see what an uninterrupted one would.
    """
    usable: list[Row] = []
    n_empty = n_long = 0
    for row in instructions:
        prompt = [{"role": "user", "content": row["instruction"]}]
        if row["instruction"] is None or not row["constraints"]:
            n_empty += 1
        elif _n_tokens(tokenizer, prompt) > config.max_prompt_tokens:
            n_long += 1
        else:
            usable.append(
                {
                    "prompt": prompt,
                    "instruction_id": row["instruction_id"],
                    "instruction": row["instruction"],
                    "query": row["query"],
                    "constraints": json.dumps(row["constraints"], ensure_ascii=False),
                }
            )
    if n_empty or n_long:
        log.info("left out %d instructions that are empty or without constraints, and %d too long", n_empty, n_long)
    if not usable:
        raise DataError(
            f"no instruction is left: {n_empty} are empty or without constraints, "
            f"{n_long} are longer than --max-prompt-tokens {config.max_prompt_tokens}"
        )
    n_prompts = config.steps * config.prompts_per_step
    order = [index for index, _ in zip(_passes(len(usable), config.seed), range(n_prompts), strict=False)]
    return Dataset.from_list(usable).select(order)


def _passes(n: int, seed: int) -> Iterator[int]:
    """0 to n-1 in a new random order, over and over."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(n), n)


def _n_tokens(tokenizer: PreTrainedTokenizerBase, prompt: list[Row]) -> int:
    encoded: Any = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **TEMPLATE
    )
    return len(encoded["input_ids"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Quiet the libraries: progress is ours to show, and standard output is for answers."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)  # it warns of each response without a reward, with all its texts
    with warnings.catch_warnings():
        for library in ("trl", "transformers"):  # they tell each other what will be gone in the next version
            warnings.filterwarnings("ignore", category=FutureWarning, module=library)
        yield


def _trainer(
    prompts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: RlConfig,
    out: Path,
    reward: Callable[..., list[float | None]],
) -> GRPOTrainer:
    device = backbone.choose_device()
    dtype = backbone.choose_dtype(config.dtype, device)
    # updates of all weights are too small for bfloat16, so they stay float32 and are cast in each forward pass
    held = torch.float32 if config.full else dtype
    model = backbone.load_model(config.policy, device=device, dtype=str(held).removeprefix("torch."))
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=_arguments(config, out, device, autocast=dtype == torch.bfloat16),
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=None if config.full else backbone.lora(model, config.lora_rank, config.lora_layers),
    )
    trainer.remove_callback(PrinterCallback)  # it prints to standard output
    return trainer


def _arguments(config: RlConfig, out: Path, device: str, *, autocast: bool) -> GRPOConfig:
    responses = config.prompts_per_step * config.group_size // _n_processes()
    micro_batch = min(config.micro_batch, responses)
    return GRPOConfig(
        output_dir=str(out / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=responses // micro_batch,
        num_generations=config.group_size,
        chat_template_kwargs=TEMPLATE,
        max_completion_length=config.max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        loss_type="grpo",
        scale_rewards="group",
        num_iterations=1,
        beta=config.kl,
        epsilon=config.clip,
        use_bias_correction_kl=False,  # Eq. 2 has the plain divergence, outside of the ratio
        learning_rate=config.rate,
        lr_scheduler_type="constant",
        shuffle_dataset=False,  # `_prompts` did
        activation_checkpointing=config.activation_checkpointing,
        use_cpu=device == "cpu",
        bf16=autocast,
        use_vllm=config.vllm,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=config.vllm_memory,
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a loss of NaN is shown as 0
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )


def _judge_ahead(trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase, ahead: Ahead) -> None:
    """Hand each response to the judges as soon as it has ended."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model.generate = watch(model.generate, tokenizer, trainer.eos_token_ids, ahead.written)
    generate_and_score = trainer._generate_and_score_completions

    def with_inputs(inputs: list[Any]) -> Any:
        ahead.begin(inputs)
        return generate_and_score(inputs)

    trainer._generate_and_score_completions = with_inputs


def _watch(
    trainer: GRPOTrainer,
    config: RlConfig,
    out: Path,
    run: Row,
    on_step: Callable[[Row], None],
    ahead: Ahead | None,
) -> TrainerCallback:
    """Record each step's rollouts and metrics, and stop a run that learns nothing."""
    generation_s: list[float] = []
    generate = trainer._generate

    def timed_generate(prompts: list[Any]) -> Any:
        started = time.perf_counter()
        try:
            generated = generate(prompts)
        except RuntimeError as exc:
            if "probability tensor" not in str(exc):
                raise
            raise TrainingError(
                f"the policy's probabilities are not numbers after step {trainer.state.global_step}; "
                "lower --learning-rate, or give --dtype float32"
            ) from exc
        generation_s.append(time.perf_counter() - started)
        return generated

    trainer._generate = timed_generate
    ends: list[Any] = [*trainer.eos_token_ids, trainer._tokenizer.pad_token_id]

    class Watch(TrainerCallback):  # the trainer calls a dozen methods of it
        def on_log(self, args: Any, state: Any, control: Any, logs: Row | None = None, **_: Any) -> None:
            if logs is None or "reward" not in logs:  # the summary at the end
                return
            rollouts = rollout_rows(trainer._logs, step=state.global_step, group_size=config.group_size, ends=ends)
            entry = state.log_history[-1]  # the trainer saves it with each checkpoint, so it outlives this process
            entry["flat_groups"] = _flat_groups(rollouts)
            entry["generation_s"] = sum(generation_s)
            entry["judged_ahead"] = ahead.share if ahead else None
            entry["training_s"] = entry["step_time"] - entry["generation_s"] - entry["scoring_s"]
            generation_s.clear()
            if _is_main():
                part = out / "rollouts" / f"{state.global_step:06d}.parquet"
                part.parent.mkdir(exist_ok=True)
                tables.write_rows(rollouts, str(part), tables.ROLLOUTS, run)
                on_step(_step_metrics([entry]).to_pylist()[0])
            if not math.isfinite(entry["loss"]) or not math.isfinite(entry["grad_norm"]):
                raise TrainingError(
                    f"the loss or its gradient is not a number at step {state.global_step}; "
                    "lower --learning-rate, or give --dtype float32"
                )
            if state.global_step == config.flat_steps:
                _require_spread(state.log_history, config)

    return Watch()


def _flat_groups(rollouts: list[Row]) -> float:
    rewards: dict[int, list[float]] = {}
    for row in rollouts:
        rewards.setdefault(row["group"], [])
        if row["reward"] is not None:
            rewards[row["group"]].append(row["reward"])
    flat = [not group or max(group) - min(group) < SAME_SPREAD for group in rewards.values()]
    return sum(flat) / len(flat)


def _require_spread(log_history: list[Row], config: RlConfig) -> None:
    steps = [entry for entry in log_history if "flat_groups" in entry]
    if steps and all(entry["flat_groups"] == 1 for entry in steps):
        hint = "" if config.soft_reward == "score" else ", or give --soft-reward score"
        raise TrainingError(
            f"no group had any spread of reward in {len(steps)} steps, so there was nothing to learn from; "
            f"raise --group-size or --temperature, take easier instructions{hint}"
        )


def _step_metrics(log_history: list[Row]) -> pa.Table:
    entries = [entry for entry in log_history if "flat_groups" in entry]
    categories = sorted({name for entry in entries for name in entry if name.startswith("reward_soft/")})
    schema = pa.schema([*STEP_METRICS, *(pa.field(name, pa.float64()) for name in categories)])
    rows = [{str(name): entry.get(FROM_TRL.get(str(name), str(name))) for name in schema.names} for entry in entries]
    return pa.Table.from_pylist(rows, schema=schema)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = sorted(folder.glob("checkpoint-*"), key=_step_of)
    return next((path for path in reversed(found) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())  # the trainer writes it last
    except (OSError, json.JSONDecodeError):
        return False
    return True


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _merge_rollouts(out: Path, run: Row, upto: int | None = None) -> None:
    """Move the steps in `rollouts/` into `rollouts.parquet`; forget those after `upto`, which will be done again."""
    merged, parts = out / "rollouts.parquet", sorted((out / "rollouts").glob("*.parquet"))
    sources = [merged, *parts] if merged.is_file() else parts

    def rows() -> Iterator[Row]:
        done = 0  # a crash between writing and removing leaves steps in both
        for source in sources:
            first_new = done + 1
            for batch in pq.ParquetFile(source).iter_batches(tables.ROWS_PER_GROUP):
                for row in batch.to_pylist():
                    if row["step"] >= first_new and (upto is None or row["step"] <= upto):
                        done = row["step"]
                        yield row

    if sources:
        tables.write_rows(rows(), str(merged), tables.ROLLOUTS, run)
    shutil.rmtree(out / "rollouts", ignore_errors=True)


def _save_policy(trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase, config: RlConfig, out: Path) -> None:
    if config.full:
        trainer.save_model(str(out))  # gathers weights that are spread over devices
        (out / "training_args.bin").unlink(missing_ok=True)
    elif _is_main():
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        model.peft_config["default"].base_model_name_or_path = backbone.public_name(config.policy)
        model.save_pretrained(str(out / "adapter"), save_embedding_layers=False)  # "auto" would ask the hub
        model.merge_and_unload().save_pretrained(str(out))
    if _is_main():
        tokenizer.save_pretrained(str(out))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}


def _write_json(path: Path, content: Row) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    os.replace(partial, path)
