"""What `tjd transfer --rl` does: a GRPO run per category, and every policy tested on all categories."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from tjd.commands.common import open_models, used
from tjd.commands.policy import reward_lines, try_hacks
from tjd.commands.terminal import advancing, counted, interval, print_numbers, progress, require_known, say
from tjd.config import BackendConfig, RlConfig, SampleConfig, TransferRlConfig, as_dict
from tjd.errors import ConfigError, DataError
from tjd.rewards import Verdict

if TYPE_CHECKING:
    from tjd.stages.score import Scorer
    from tjd.tables import Row, Table
    from tjd.teacher import Teacher

SCORES = "scores.parquet"  # every response and verdict that the matrix rests on


def rl_settings(written: Sequence[str]) -> RlConfig:
    """The settings of `tjd rl` from `NAME=VALUE`.

    Raises:
        ConfigError: There is no such setting, or the value is none of its values.
    """
    kinds = get_type_hints(RlConfig)
    settings: dict[str, Any] = {}
    for text in written:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign:
            raise ConfigError(f"--rl-set {text}: write NAME=VALUE with a flag of tjd rl, such as steps=200")
        name = name.replace("-", "_")
        require_known(name, kinds, "setting of tjd rl")
        choices = get_args(kinds[name]) if get_origin(kinds[name]) is not None else ("true", "false")
        try:
            if kinds[name] in (int, float, str):
                settings[name] = kinds[name](value)
            else:
                settings[name] = {"true": True, "false": False}.get(choices[choices.index(value)], value)
        except ValueError:
            takes = {int: "a whole number", float: "a number"}.get(kinds[name], " or ".join(choices))
            raise ConfigError(f"--rl-set {name}: '{value}' is not {takes}") from None
    return RlConfig(**settings)


def transfer_by_rl(
    runs: Path,
    table: "Table",
    rows: "Sequence[Row]",
    judges: Path,
    config: TransferRlConfig,
    chosen: Mapping[str, Any],
) -> "tuple[list[Row], Row]":
    """Train a policy per category into `runs`, have them and the base policy respond, and measure the responses.

    Args:
        runs: A folder; a policy goes into `runs/CATEGORY`, all responses with their verdicts into `runs/scores.parquet`.
        table: INSTRUCTIONS.
        rows: Those of its rows that are wanted.
        judges: Folder of the ensemble, whose verdicts are the reward.
        config: What is trained and measured.
        chosen: What the rows were chosen by; among it `category`, those to train on, or none for all of the judges'.

    Returns:
        METRICS of `tjd.stages.transfer_rl.gains`, and their provenance.

    Raises:
        ConfigError: No judge covers a chosen category, the teacher cannot be asked, or the policy is called like a category.
        DataError: No category has instructions of its own both to train and to test on.
    """
    from tjd import backbone, tables
    from tjd.checkers import verdict
    from tjd.judge import ensemble
    from tjd.stages import rl, score, transfer_rl

    settings = rl_settings(config.rl_set)
    manifest = ensemble.read_manifest(judges)
    seed = manifest["config"]["seed"]  # the judges' own split: they have not seen the queries of the test either
    for name in chosen["category"]:
        require_known(name, manifest["categories"], "category of these judges")
    train, tests = transfer_rl.divide(rows, chosen["category"] or manifest["categories"], config.per_category, seed)
    if not train:
        raise DataError("no category that the judges cover has instructions of its own in the train and the test split")
    base = backbone.public_name(settings.policy)
    if base in train:  # policies are told apart by name, and one trained on a category has the category's
        raise ConfigError(f"the policy is called '{base}', as is a category to train on; rename its folder")
    teacher = open_models("transfer", [config.teacher], BackendConfig())[0] if config.teacher else None
    digests = {"judges": tables.file_digest(judges / ensemble.MANIFEST)}
    known_by = (table.digest, str(seed), *chosen["where"], str(chosen["limit"]))
    inputs = {name: digests | {"instructions": tables.text_id(name, *known_by)} for name in train}
    for name in train:
        rl.require_startable(settings, runs / name, inputs[name])
    judge = ensemble.load(judges, device=settings.judge_device, dtype=settings.dtype, engine=settings.engine)
    for name, own in train.items():
        say(f"transfer: {counted(len(own), 'instruction')} of {name} -> {runs / name}")
        try_hacks(judge, own, settings)
        with progress() as bars:
            told = reward_lines(bars, settings.steps)
            rl.rl(own, settings, runs / name, score=judge.score, check=partial(verdict, checkers=None),
                  inputs=inputs[name], on_step=told)  # fmt: skip
    sampled = _responses(runs, list(train), tests, settings, config)
    with _scorer(judge.score, teacher) as scorer:
        scored = list(score.score(map(transfer_rl.as_rewarded, sampled), scorer))
    schema = score.schema(tables.output_schema("responses", like=table.schema))
    names = {"teacher": teacher.name if teacher else "", "rl_set": as_dict(settings) | {"policy": base}}  # not paths
    read = digests | {"instructions": table.digest}
    source = tables.provenance("transfer", as_dict(config) | names | dict(chosen), read, {})
    tables.write_rows(scored, str(runs / SCORES), schema, source)
    return transfer_rl.gains(scored, base, soft_reward=settings.soft_reward, seed=seed), source


@contextmanager
def _scorer(judged: "Scorer", teacher: "Teacher | None") -> "Iterator[Scorer]":
    """The judges, or a teacher that is asked as `tjd label` asks it."""
    if teacher is None:
        yield judged
        return
    from tjd import prompts
    from tjd.stages.eval_judge import asked
    from tjd.teacher.verdicts import VARIABLES

    prompt, again = prompts.load("label.pointwise.v1", VARIABLES["pointwise"]), prompts.load("again.v1", ["reason"])

    def valid(rows: "Sequence[Mapping[str, Any]]") -> "list[Verdict]":
        ask = asked(teacher.ask, teacher.name, prompt, again, "pointwise", ())
        score = iter(ask([row for row in rows if row["response"] is not None]))
        return [next(score) if row["response"] is not None else Verdict(None, error="no response") for row in rows]

    with closing(teacher):
        yield valid
    say(f"{teacher.name}: {used(teacher.usage)}")


def _responses(
    runs: Path, trained: Sequence[str], tests: "Sequence[Row]", settings: RlConfig, config: TransferRlConfig
) -> "list[Row]":
    """Responses of the base policy and of each trained one to the test instructions, sampled as in training."""
    from tjd.stages.sample import sample
    from tjd.teacher import in_turn

    names = tuple(f"hf:{name}" for name in (settings.policy, *(runs / category for category in trained)))
    asked = SampleConfig(
        model=names, n=config.responses, condition=("with_constraint",), temperature=settings.temperature,
        top_p=settings.top_p, max_tokens=settings.max_response_tokens, seed=settings.seed,
    )  # fmt: skip
    models = open_models("transfer", names, BackendConfig())
    with progress() as bars:
        task = bars.add_task("responses", total=len(names) * len(tests) * config.responses)
        return list(advancing(sample(lambda: tests, in_turn(models), asked), bars, task))


def print_gains(metrics: "Sequence[Row]", to: IO[str], *, as_json: bool) -> None:
    """The matrix of gains, below the base policy's reward."""
    from tjd.stages.transfer_rl import GAIN, REWARD

    if as_json:
        print(json.dumps({"metrics": metrics}), file=to)
        return
    base = metrics[0]["judge"]
    shown = [row for row in metrics if row["metric"] == (REWARD if row["judge"] == base else GAIN)]
    lines: dict[str, dict[str, str]] = {}
    for row in shown:
        column = f"{row['category']}\nn = {row['n']}"
        lines.setdefault(row["judge"], {})[column] = interval(row, signed=row["judge"] != base)
    title = f"Soft reward of {base}, and what training on a category has gained (95% bootstrap interval over queries)"
    print_numbers(title, ("trained on",), [((name,), cells) for name, cells in lines.items()], to)
