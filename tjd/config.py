"""One frozen dataclass per stage: the only home of a default, and of the help text of its flag.

Every field is a flag of the same name on the command line (`tjd/flags.py` derives them), a key of the command's table in a
config file, and part of the provenance of what the command writes.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from tjd.errors import ConfigError

CONDITIONS = ("with_constraint", "without_constraint")
ONE_SIDED = 0.1  # of a category's verdicts: where the rarer one has a smaller share, `tjd label` warns

Layout = Literal["3-for-3", "1-for-3", "1-for-all"]
Balance = Literal["weights", "rows"]
Head = Literal["verdict", "probe", "encoder"]
Engine = Literal["transformers", "vllm"]
Mode = Literal["pointwise", "batch"]
Format = Literal["text", "json"]
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
        if not low <= getattr(config, name) < math.inf:
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
    """How to reach a model; nothing here changes what is asked, so none of it is provenance."""

    concurrency: int = flag(512, "Most calls in flight; how many there are follows what the provider takes.")
    rpm: int = flag(0, "Most calls within any minute; 0 is no limit.")
    tpm: int = flag(0, "Most tokens within any minute, prompts and completions; 0 is no limit.")
    retries: int = flag(5, "Further attempts per failed call, with growing pauses.")
    timeout_s: float = flag(120.0, "Seconds per attempt.")
    batch_size: int = flag(32, "Prompts at once of a local model.")
    batch_api: bool = flag(
        False, "Ask a remote model through its provider's batch API: half price, answers within a day."
    )
    job_size: int = flag(
        50_000,
        "Requests per job of the batch API, at most. Two jobs go out at once; --max-cost must allow for what both can cost.",
    )
    poll_s: float = flag(30.0, "Seconds between looks at the jobs of the batch API.")
    cache_tag: str = flag(
        "", "Any text; answers kept under another are asked anew: for a model that changed under its name."
    )
    retry_unusable: bool = flag(
        False,
        "Forget the kept answers of remote models that cannot be used, such as unreadable verdicts, and ask anew.",
    )
    max_cost: float | None = flag(
        None, "Dollars that this run may spend; no call is sent that could pass them. Exit 7 there; nothing is lost."
    )
    price_in: tuple[str, ...] = flag(
        (),
        "Dollars per million tokens of the prompt, instead of the known price, and not halved for --batch-api; MODEL=DOLLARS "
        "where several are asked.",
    )
    price_out: tuple[str, ...] = flag((), "Likewise, of the completion.")

    def __post_init__(self) -> None:
        """Check ranges, and that a price has both its parts."""
        _at_least(self, 1, "concurrency", "batch_size", "job_size")
        _at_least(self, 0, "rpm", "tpm", "retries", "timeout_s", "poll_s")
        if self.max_cost is not None and not self.max_cost >= 0:
            raise ConfigError(f"--max-cost must be at least 0, not {self.max_cost}")
        if priced(self.price_in).keys() != priced(self.price_out).keys():
            raise ConfigError("--price-in and --price-out go together; give both for the same models")


def priced(given: tuple[str, ...]) -> dict[str, float]:
    """Model to dollars per million tokens, from `DOLLARS` (under the name "") or `MODEL=DOLLARS`."""
    prices = {}
    for text in given:
        name, _, dollars = text.rpartition("=")
        try:
            prices[name] = float(dollars)
        except ValueError:
            prices[name] = math.nan
        if not 0 <= prices[name] < math.inf:
            raise ConfigError(f"a price is DOLLARS or MODEL=DOLLARS per million tokens, not '{text}'")
    return prices


ENGINE_HELP = "What runs the judges; `vllm` for heads of `verdict`, where it is installed (docs/overlap.md)."
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
    dedup: float = flag(
        0.0,
        "Reject a query, or an instruction, that is at least so similar (0.5 to 1; 0.8, say) to one before it: the Jaccard "
        "index of their runs of three words, estimated by MinHash. 0 rejects none.",
    )
    verify: bool = flag(
        False,
        "Ask once more per instruction, whether it still asks for what the query asks, contains its constraints, and "
        "whether they can be followed together; reject it if not. Twice as many calls.",
    )
    verifier: str = flag("", "Who verifies; by default the teacher. " + TEACHER_HELP)
    max_invalid: float = flag(
        0.1,
        "Exit 5 above this share of rows without an instruction, or that could not be verified; the table is written.",
    )
    seed: int = flag(0, SEED_HELP)

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "teacher", "hf:embedded")
        _name_embedded(self, "verifier", "hf:embedded")
        if self.verifier and not self.verify:
            raise ConfigError("--verifier needs --verify")
        if self.dedup and not 0.5 <= self.dedup <= 1:
            raise ConfigError(f"--dedup must lie in [0.5, 1], or be 0 to reject none, not {self.dedup}")
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
    target_balance: float = flag(
        0.0,
        "With --labels: sample only what brings the rarer verdict of each category up to this share (0.3, say), or nearer, "
        "from the models and conditions that gave it, `n` more responses per instruction, model and condition at most.",
    )
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
            if self.condition.count(name) > 1:
                raise ConfigError(f"--condition {name} is given twice; once is enough")
        if not 0 <= self.target_balance <= 0.5:
            raise ConfigError(
                f"--target-balance is the share of the rarer verdict, in [0, 0.5], not {self.target_balance}"
            )
        if self.target_balance and not self.temperature:
            raise ConfigError("--target-balance asks for further responses, which --temperature 0 would repeat")
        _at_least(self, 1, "n", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "top_p", "max_invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """Settings of `tjd label` (paper, 4.1 and 3.3: one constraint at a time)."""

    teacher: tuple[str, ...] = flag(
        (TEACHER,), TEACHER_HELP + " Repeatable: a panel, whose majority counts, each teacher with all its votes.", "-t"
    )
    mode: Mode = flag("pointwise", "One constraint per call, or all of a response at once (the paper's baseline).")
    format: Format = flag(
        "text", "Form of the answer: words, or a JSON object, with its schema sent along where the model takes one."
    )
    rationale: bool = flag(False, "Ask for a short reason before each verdict; needs `--format json`.")
    logprobs: bool = flag(False, "Fill `soft`, P(Yes) by the log probabilities, where the model returns them.")
    votes: int = flag(1, "Verdicts per constraint and teacher; the majority counts.")
    ground_truth: bool = flag(
        False,
        "Average an odd number of votes (the paper: `--votes 5`); null where unreadable ones could turn the average.",
    )
    temperature: float = flag(1.0, "Sampling temperature; at 0, votes repeat each other.")
    max_tokens: int = flag(1024, "Longest completion, in tokens.")
    max_invalid: float = flag(0.05, "Exit 5 above this share of null verdicts; the table is written.")
    seed: int = flag(0, SEED_HELP)

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "teacher", "hf:embedded")
        if self.mode not in ("pointwise", "batch"):
            raise ConfigError(f"--mode must be pointwise or batch, not '{self.mode}'")
        if self.format not in get_args(Format):
            raise ConfigError(f"--format must be text or json, not '{self.format}'")
        if self.rationale and self.format != "json":
            raise ConfigError("--rationale needs --format json, where a reason cannot be taken for a verdict")
        if not self.teacher:
            raise ConfigError("tjd label needs at least one --teacher, for example --teacher hf:embedded")
        if self.ground_truth:
            self._check_ground_truth()
        _at_least(self, 1, "votes", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "max_invalid")

    @property
    def n_votes(self) -> int:
        """Votes per constraint, of all teachers."""
        return self.votes * len(self.teacher)

    def _check_ground_truth(self) -> None:
        if self.n_votes < 3 or self.n_votes % 2 == 0:
            raise ConfigError(
                f"--ground-truth needs an odd number of votes, at least 3, so that none is tied; --votes {self.votes} of "
                f"{len(self.teacher)} teacher(s) make {self.n_votes}; the paper has --votes 5"
            )
        if self.votes > 1 and self.temperature == 0:
            raise ConfigError("--ground-truth with --temperature 0 would count one vote several times; leave it at 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig:
    """Settings of `tjd agreement` (paper, appendix B)."""

    rater: tuple[str, ...] = flag(
        (), "Column of a rater's verdicts (1 or 0, true or false, yes or no); repeatable. Default: the column `votes`."
    )
    likert: bool = flag(False, "Values are ratings from 1 to 5; 4 or more is a pass.")
    query_id: str = flag("query_id", "Column that groups rows for the intervals.")
    category: str = flag("category", "Column of the category, where there is one.")
    seed: int = flag(0, "Of the bootstrap.")


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
    layer: tuple[int, ...] = flag(
        (), "Layers that probes read; repeatable. Default: three, from a third to three fifths up the model."
    )
    share: float = flag(
        1.0, "How much the weights of probes have in common: specialists learn from each other's rows. 0: from none."
    )
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
        "Put each threshold where held-out rows show a precision of at least this (0.85, say; missed in at most 20 of 100 "
        "cases): fewer responses are rewarded, more of them rightly; the card says what recall is left. 0, and a target not "
        "reached, take the greatest balanced accuracy.",
    )
    abstain: float = flag(
        0.0,
        "Give no verdict (null) where the judge is least sure: at most this share of the held-out rows. In RL a response "
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
        _at_least(self, 0, "lora_layers", "learning_rate", "share")
        for layer in self.layer:
            if layer < 1:
                raise ConfigError(f"--layer must be at least 1, not {layer}")
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


_LORA = ("full", "lora_rank", "lora_layers")
UNUSED_BY = {
    "verdict": ("layer", "share"),
    "probe": (*_LORA, "learning_rate", "epochs", "patience", "batch_size"),
    "encoder": (*_LORA, "layer", "share"),
}


def require_used(config: TrainJudgeConfig) -> None:
    """Raise ConfigError for a setting of training that differs from its default though the head does not read it."""
    for name in UNUSED_BY[config.head]:
        if getattr(config, name) != getattr(TrainJudgeConfig(), name):
            raise ConfigError(f"--{name.replace('_', '-')} changes nothing with --head {config.head}; leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Settings of the sweep of `tjd train-judge`, beside those of training."""

    sweep: tuple[str, ...] = flag(
        (),
        "Train with every combination of these values, NAME=V1,V2 (`learning-rate=1e-4,3e-4`; repeatable), and take the "
        "one with the greatest mean AUROC over the categories on held-out rows. sweep.parquet holds them all.",
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
    by: tuple[str, ...] = flag(
        (), "Measure the rows of each value of this column by themselves too: `model`; repeatable."
    )
    engine: Engine = flag("transformers", ENGINE_HELP)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRlConfig:
    """Settings of `tjd transfer --rl` (paper, 3.3, Figure 5)."""

    rl_set: tuple[str, ...] = flag(
        (), "With --rl: a setting of `tjd rl`, NAME=VALUE (`steps=200`, `policy=embedded`); repeatable."
    )
    per_category: int = flag(20, "With --rl: held-out instructions per category; 0 takes all.")
    responses: int = flag(4, "With --rl: responses of each policy to each of them.")
    teacher: str = flag("", "With --rl: who judges these responses, instead of the judges trained on. " + TEACHER_HELP)

    def __post_init__(self) -> None:
        """Check ranges, and write names in one way."""
        _name_embedded(self, "teacher", "hf:embedded")
        _at_least(self, 0, "per_category")
        _at_least(self, 1, "responses")


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
    judge_device: str = flag("auto", "Where the judges run: `auto` (beside the policy), `cpu`, `cuda:1`, ...")
    engine: str = flag("transformers", "`transformers` or `vllm`: w" + ENGINE_HELP[1:])  # a wide choice squeezes --help
    overlap: bool = flag(
        False,
        "Judge responses while others are still being written (transformers alone, not vLLM); see docs/overlap.md.",
    )
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
        if self.engine not in get_args(Engine):
            raise ConfigError(f"--engine must be transformers or vllm, not '{self.engine}'")
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
