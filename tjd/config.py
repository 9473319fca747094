"""One frozen dataclass per stage: the only home of a default, and of the help text of its flag.

Every field is a flag of the same name on the command line (`tjd/flags.py` derives them), a key of the command's table in a
config file, and part of the provenance of what the command writes.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from tjd.errors import ConfigError

CONDITIONS = ("with_constraint", "without_constraint")

Layout = Literal["3-for-3", "1-for-3", "1-for-all"]
Balance = Literal["weights", "rows"]
Head = Literal["verdict", "probe", "encoder"]
Mode = Literal["pointwise", "batch"]
SoftReward = Literal["verdict", "score"]
Dtype = Literal["auto", "float32", "bfloat16"]
TransferMetric = Literal["auroc", "balanced_accuracy"]
Suite = Literal["ifeval", "ifbench", "iftrain", "multi_if"]
SplitChoice = Literal["train", "validation", "test", "all"]
Subset = Literal["hard", "soft", "mix"]


def flag(default: Any, help: str, *names: str) -> Any:
    """A field with its default, its help text, and further names on the command line (`-t`)."""
    return field(default=default, metadata={"help": help, "names": names})


def as_dict(config: Any) -> dict[str, Any]:
    """The settings as plain values, tuples as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def _at_least(config: Any, low: float, *names: str) -> None:
    for name in names:
        if getattr(config, name) < low:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}, not {getattr(config, name)}")


def _share(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} must lie in [0, 1], not {getattr(config, name)}")


def _name_embedded(config: Any, name: str, written: str) -> None:
    """Accept `embedded` where a model to ask is named, and `hf:embedded` where weights are; keep it written in one way."""
    given = getattr(config, name)
    names = given if isinstance(given, tuple) else (given,)
    named = tuple(written if each in ("embedded", "hf:embedded") else each for each in names)
    object.__setattr__(config, name, named if isinstance(given, tuple) else named[0])


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a table to work on; `tjd concat` joins the parts, so it is not a setting of the whole."""

    number: int  # from 1
    of: int

    @classmethod
    def parse(cls, written: str) -> "Shard":
        """Read `i/n`."""
        number, _, of = written.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ConfigError(f"--shard {written}: write i/n with a part i from 1 to n, for example 1/8")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """How to reach a model; nothing here changes an answer, so none of it is provenance."""

    concurrency: int = flag(64, "Calls in flight.")
    retries: int = flag(5, "Further attempts per failed call, with growing pauses.")
    timeout_s: float = flag(120.0, "Seconds per attempt.")
    batch_size: int = flag(32, "Prompts at once of a local model.")
    cache_tag: str = flag(
        "", "Any text; answers kept under another are asked anew: for a model that changed under its name."
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least(self, 1, "concurrency", "batch_size")
        _at_least(self, 0, "retries", "timeout_s")


TEACHER = "gemini/gemini-3-pro-preview"  # the paper's, section 4.1
TEACHER_HELP = "litellm name, `hf:NAME`, `hf:embedded`, or `recorded:FILE`."
CATEGORY_HELP = "Category; repeatable. Default: those the taxonomy marks (style, structure, semantic)."
TAXONOMY_HELP = "TOML file with your own categories; see data/taxonomy.toml for the form."
SEED_HELP = "Same inputs and seed give the same table."


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesizeConfig:
    """Settings of `tjd synthesize` (paper, 4.1)."""

    teacher: str = flag(TEACHER, TEACHER_HELP, "-t")
    category: tuple[str, ...] = flag((), CATEGORY_HELP, "-c")
    per_query: int = flag(1, "Soft constraints per query.")
    temperature: float = flag(1.0, "Sampling temperature; 0 is greedy.")
    max_tokens: int = flag(2048, "Longest completion, in tokens.")
    max_invalid: float = flag(0.1, "Exit 5 above this share of rows without an instruction; the table is written.")
    seed: int = flag(0, SEED_HELP)

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "teacher", "hf:embedded")
        _at_least(self, 1, "per_query", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "max_invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Settings of `tjd sample` (paper, 4.1: a heterogeneous pool)."""

    model: tuple[str, ...] = flag((), "Who responds: litellm name or `hf:NAME`; repeatable.", "-m")
    n: int = flag(1, "Responses per instruction, model and condition.")
    condition: tuple[str, ...] = flag(CONDITIONS, "What the model sees; repeatable. Default: both.")
    temperature: float = flag(1.0, "Sampling temperature; 0 is greedy.")
    top_p: float = flag(1.0, "Nucleus sampling: the share of probability to keep.")
    max_tokens: int = flag(1024, "Longest response, in tokens.")
    max_invalid: float = flag(0.1, "Exit 5 above this share of failed responses; the table is written.")
    seed: int = flag(0, SEED_HELP)

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "model", "hf:embedded")
        if not self.model:
            raise ConfigError("tjd sample needs at least one --model, for example --model hf:embedded")
        for name in self.condition:
            if name not in CONDITIONS:
                raise ConfigError(f"--condition must be one of {', '.join(CONDITIONS)}, not '{name}'")
        _at_least(self, 1, "n", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "top_p", "max_invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """Settings of `tjd label` (paper, 4.1 and 3.3: one constraint at a time)."""

    teacher: str = flag(TEACHER, TEACHER_HELP, "-t")
    mode: Mode = flag("pointwise", "One constraint per call, or all of a response at once (the paper's baseline).")
    votes: int = flag(1, "Verdicts per constraint; the majority counts.")
    temperature: float = flag(1.0, "Sampling temperature; at 0, votes repeat each other.")
    max_tokens: int = flag(1024, "Longest completion, in tokens.")
    max_invalid: float = flag(0.05, "Exit 5 above this share of null verdicts; the table is written.")
    seed: int = flag(0, SEED_HELP)

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "teacher", "hf:embedded")
        if self.mode not in ("pointwise", "batch"):
            raise ConfigError(f"--mode must be pointwise or batch, not '{self.mode}'")
        _at_least(self, 1, "votes", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "max_invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """Settings of `tjd check`."""

    suite: Suite = flag("ifeval", "Whose revision of IFEval's 25 checkers decides; every suite knows the others, too.")
    fixed: bool = flag(False, "Mend what is known to be wrong with the official checkers (docs/rules.md).")
    workers: int = flag(0, "Processes; 0 takes one per core. The table does not depend on it.")
    max_invalid: float = flag(0.05, "Exit 5 above this share of null verdicts; the table is written.")

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.suite not in get_args(Suite):
            raise ConfigError(f"--suite must be one of {', '.join(get_args(Suite))}, not '{self.suite}'")
        _at_least(self, 0, "workers")
        _share(self, "max_invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJudgeConfig:
    """Settings of `tjd train-judge` (paper, 4.1, Eq. 4)."""

    base: str = flag("Qwen/Qwen3-0.6B", "Backbone: hub name, folder, or `embedded` (SmolLM2-135M-Instruct).", "-b")
    layout: Layout = flag("3-for-3", "A specialist per category, one for the chosen ones, or one for all.")
    category: tuple[str, ...] = flag((), CATEGORY_HELP, "-c")
    prompt: str = flag("judge.v1", "Judge prompt: a shipped name or a .md file. Encoders read none.")
    head: Head = flag(
        "verdict",
        "`verdict` fine-tunes the model to say Yes or No (the paper). `probe` leaves it as it is and fits logistic "
        "regression on its hidden states: a forward pass to train, one trunk for all specialists. `encoder` trains all "
        "weights of a sequence classifier (ModernBERT, DeBERTa, BERT), which `--base` names.",
    )
    layer: int = flag(0, "Layer that probes read; 0 chooses it on validation.")
    full: bool = flag(False, "Train all weights instead of LoRA adapters.")
    lora_rank: int = flag(16, "Rank of the adapters.")
    lora_layers: int = flag(0, "Adapt only this many layers from the top; 0 adapts all.")
    learning_rate: float = flag(0.0, "Peak rate; 0 takes 2e-4 for LoRA, 1e-5 for all weights, 3e-5 for an encoder.")
    balance: Balance = flag(
        "weights", "Even out a category's verdicts in training by weighing rows, or by leaving rows out."
    )
    epochs: int = flag(3, "Passes over the rows, at most.")
    patience: int = flag(1, "Stop after this many epochs without a lower validation loss.")
    batch_size: int = flag(16, "Rows per optimiser step.")
    max_instruction_tokens: int = flag(1024, "Longer instructions lose their middle.")
    max_response_tokens: int = flag(1024, "Longer responses lose their end.")
    target_precision: float = flag(
        0.0,
        "Put each threshold where validation shows a precision of at least this (0.85, say; missed in at most 20 of 100 "
        "cases): fewer responses are rewarded, more of them rightly; the card says what recall is left. 0, and a target not "
        "reached, take the greatest balanced accuracy.",
    )
    abstain: float = flag(
        0.0,
        "Give no verdict (null) where the judge is least sure: at most this share of the validation rows. In RL a response "
        "with a null verdict is masked.",
    )
    harden: float = flag(
        0.0, "Add worthless responses as negatives, this share of a category's training rows; see `tjd probe-hacks`."
    )
    swap: float = flag(
        0.0,
        "Add responses beside a constraint of another query as negatives, this share of a category's training rows. Such "
        "rows are true by chance at times: probes on the demo's table got worse (AUROC on validation by 0.02 to 0.1).",
    )
    dtype: Dtype = flag("auto", "`auto` takes bfloat16 where the hardware multiplies it natively.")
    seed: int = flag(0, "Of the split, the order of rows and the adapters.")

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "base", "embedded")
        _at_least(self, 1, "epochs", "patience", "batch_size", "lora_rank", "max_instruction_tokens")
        _at_least(self, 1, "max_response_tokens")
        _at_least(self, 0, "lora_layers", "learning_rate", "layer")
        if self.head not in get_args(Head):
            raise ConfigError(f"--head must be one of {', '.join(get_args(Head))}, not '{self.head}'")
        _share(self, "target_precision", "abstain", "harden", "swap")
        if self.balance not in ("weights", "rows"):
            raise ConfigError(f"--balance must be weights or rows, not '{self.balance}'")

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        default = 3e-5 if self.head == "encoder" else 1e-5 if self.full else 2e-4
        return self.learning_rate or default


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Settings of the sweep of `tjd train-judge`, beside those of training."""

    sweep: tuple[str, ...] = flag(
        (),
        "Train with every combination of these values, NAME=V1,V2 (`learning-rate=1e-4,3e-4`; repeatable), and take the "
        "one with the greatest mean AUROC over the categories on validation. sweep.parquet holds them all.",
    )
    keep: bool = flag(False, "Keep the judges of all combinations, too.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalJudgeConfig:
    """Settings of `tjd eval-judge` (paper, 3.2 and 5.3.3)."""

    teacher: tuple[str, ...] = flag((), "Compare with a model that was not trained; repeatable. " + TEACHER_HELP, "-t")
    teacher_mode: tuple[str, ...] = flag(
        ("pointwise",),
        "`pointwise` asks teachers one constraint at a time, `batch` about all of a response at once; repeatable.",
    )
    truth: str = flag(
        "followed",
        "Column of the ground truth: true or false, a share that counts from 0.5, or a list of votes whose mean does "
        "(`votes`; or a human's, under your name for it).",
    )
    min_agreement: float = flag(0.0, "Keep only rows whose voters agree at least so much, a share in [0.5, 1].")
    split: SplitChoice = flag("test", "Rows to measure on; a column `split` wins over the judges' own split.")
    dtype: Dtype = flag("auto", "`auto` takes bfloat16 where the hardware multiplies it natively.")
    seed: int = flag(0, "Of the bootstrap.")

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "teacher", "hf:embedded")
        for mode in self.teacher_mode:
            if mode not in ("pointwise", "batch"):
                raise ConfigError(f"--teacher-mode must be pointwise or batch, not '{mode}'")
        _share(self, "min_agreement")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """Settings of `tjd transfer`, beside those of training."""

    metric: TransferMetric = flag("auroc", "What the target is a value of.")
    target: float = flag(0.7, "What a set of specialists must reach on every category.")

    def __post_init__(self) -> None:
        """Check ranges."""
        _share(self, "target")


FALSE_ACCEPT_HELP = "Exit 6 if a judge accepts more than this share of a hack probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHacksConfig:
    """Settings of `tjd probe-hacks`."""

    split: SplitChoice = flag("test", "Rows to build probes from; a column `split` wins over the judges' own split.")
    per_category: int = flag(50, "Queries per category; 0 takes all.")
    max_false_accept: float = flag(1.0, FALSE_ACCEPT_HELP + "; everything is written before.")
    dtype: Dtype = flag("auto", "`auto` takes bfloat16 where the hardware multiplies it natively.")
    seed: int = flag(0, "Of the sample and the bootstrap.")

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least(self, 0, "per_category")
        _share(self, "max_false_accept")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJudgeConfig:
    """Settings of `tjd bench judge` (paper, 5.4)."""

    shape: str = flag("smollm2-135m", "Random weights of a shape: `smollm2-135m`, `qwen3-0.6b`, or a model folder's.")
    instructions: int = flag(2, "Instructions.")
    group_size: int = flag(8, "Responses per instruction (G).")
    constraints: int = flag(3, "Constraints per response (M).")
    instruction_tokens: int = flag(160, "Tokens of an instruction.")
    response_tokens: int = flag(200, "Tokens of a response.")
    constraint_tokens: int = flag(40, "Tokens of a constraint.")
    top_layers: int = flag(10, "Layers of its own of each of M specialists.")
    probe_layer: int = flag(12, "Layer that probes read.")
    contestant: tuple[str, ...] = flag((), "Only these, by name; repeatable. Default: all.")
    rounds: int = flag(5, "Rounds, after one to warm up.")
    budget: int = flag(4096, "Distinct tokens per batch of ours.")
    device: str = flag("auto", "`cpu`, `cuda`, or `auto`.")
    dtype: Dtype = flag("auto", "`auto` takes bfloat16 where the hardware multiplies it natively.")
    seed: int = flag(0, "Of the tokens.")

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least(self, 1, "instructions", "group_size", "constraints", "instruction_tokens", "response_tokens")
        _at_least(self, 1, "constraint_tokens", "top_layers", "probe_layer", "rounds", "budget")


# Table 4 of the paper. Its trainer, MindSpeed-RL, counts prompts in "global batch" and "mini batch": 128 prompts with 8
# responses each are one optimiser step of 1024 responses.
RL_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "policy": "Qwen/Qwen2.5-7B-Instruct",
        "steps": 400,
        "prompts_per_step": 128,
        "group_size": 8,
        "micro_batch": 4,
        "max_prompt_tokens": 2048,
        "max_response_tokens": 6144,
        "temperature": 1.0,
        "top_p": 1.0,
        "learning_rate": 1e-6,
        "kl": 0.001,
        "full": True,
        "activation_checkpointing": True,
        "vllm": True,
        "vllm_memory": 0.6,
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RlConfig:
    """Settings of `tjd rl` (paper, 2.2 and 4.2); `RL_PRESETS` holds those of Table 4."""

    policy: str = flag("Qwen/Qwen3-0.6B", "Model to train: hub name, folder, or `embedded`.", "-p")
    steps: int = flag(100, "Optimiser steps; a finished run continues when this grows.")
    prompts_per_step: int = flag(8, "Instructions per step (P).")
    group_size: int = flag(8, "Responses per instruction (G).")
    micro_batch: int = flag(8, "Responses per forward and backward pass, on each device.")
    max_prompt_tokens: int = flag(1024, "Longer instructions are left out, with a count.")
    max_response_tokens: int = flag(512, "Longer responses are cut.")
    temperature: float = flag(1.0, "Sampling temperature.")
    top_p: float = flag(1.0, "Nucleus sampling: the share of probability to keep.")
    learning_rate: float = flag(0.0, "Constant; 0 takes 1e-5 for LoRA and 1e-6 for all weights.")
    kl: float = flag(0.001, "Weight of the divergence from the first policy (beta); 0 saves its forward pass.")
    clip: float = flag(0.2, "How far a token's probability ratio may leave 1 (epsilon).")
    full: bool = flag(False, "Train all weights instead of LoRA adapters.")
    lora_rank: int = flag(16, "Rank of the adapters.")
    lora_layers: int = flag(0, "Adapt only this many layers from the top; 0 adapts all.")
    soft_reward: SoftReward = flag("verdict", "A judge's binary verdict (paper), or its score P(followed).")
    max_failed: float = flag(0.1, "Exit 6 above this share of responses that a judge or checker failed to decide.")
    max_false_accept: float = flag(1.0, FALSE_ACCEPT_HELP + ", before training starts; see `tjd probe-hacks`.")
    flat_steps: int = flag(20, "Exit 6 if no group has any spread of reward in this many first steps.")
    save_every: int = flag(20, "Steps between checkpoints; at most so many are repeated after a crash.")
    activation_checkpointing: bool = flag(False, "Recompute activations in the backward pass: slower, less memory.")
    vllm: bool = flag(False, "Generate with vLLM, on the same device.")
    vllm_memory: float = flag(0.3, "Share of the device's memory for vLLM.")
    dtype: Dtype = flag("auto", "`auto` takes bfloat16 where the hardware multiplies it natively.")
    seed: int = flag(0, "Of the order of instructions, the adapters and the sampling.")

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "policy", "embedded")
        _at_least(self, 1, "steps", "prompts_per_step", "micro_batch", "max_prompt_tokens", "max_response_tokens")
        _at_least(self, 1, "lora_rank", "flat_steps", "save_every")
        _at_least(self, 2, "group_size")  # an advantage needs a second response
        _at_least(self, 0, "learning_rate", "kl", "lora_layers")
        _share(self, "top_p", "max_failed", "max_false_accept", "clip", "vllm_memory")
        if self.temperature <= 0:
            raise ConfigError(f"--temperature must be above 0, not {self.temperature}: a group needs spread")
        if self.soft_reward not in ("verdict", "score"):
            raise ConfigError(f"--soft-reward must be verdict or score, not '{self.soft_reward}'")

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return self.learning_rate or (1e-6 if self.full else 1e-5)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """Settings of `tjd evaluate` (paper, 5.1)."""

    model: tuple[str, ...] = flag(
        (), "Who is evaluated: `hf:NAME`, a litellm name, or a file of responses; repeatable.", "-m"
    )
    judge: str = flag("", "Model that judges FollowBench and CFBench: `hf:NAME` or a litellm name.")
    temperature: float = flag(0.0, "Sampling temperature; 0 is greedy.")
    max_tokens: int = flag(2048, "Longest response, in tokens.")
    judge_max_tokens: int = flag(2048, "Longest judgement, in tokens.")
    max_invalid: float = flag(0.05, "Exit 5 above this share of prompts without all their verdicts; files are written.")
    seed: int = flag(0, "Of sampling and of the bootstrap.")

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "model", "hf:embedded")
        _name_embedded(self, "judge", "hf:embedded")
        if not self.model:
            raise ConfigError("tjd evaluate needs at least one --model, for example --model hf:embedded")
        _at_least(self, 1, "max_tokens", "judge_max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "max_invalid")
