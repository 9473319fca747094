"""An ensemble of specialist judges: save, load, and score rows by category.

On disk, `judges/` holds `manifest.json` (base model, prompt, verdict tokens, categories with their thresholds, training
data and measured metrics), a folder of weights per specialist, and `card.md`; `tjd train-judge` adds `metrics.parquet`.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tjd import __version__, backbone
from tjd.calibration import tempered
from tjd.config import TrainJudgeConfig
from tjd.errors import ConfigError, DataError, first_line
from tjd.judge import encoder as classify
from tjd.judge import probe
from tjd.judge import vllm as serving
from tjd.judge.encoder import Classifier, Pairs
from tjd.judge.prompt import VARIABLES, Encoded, Encoder, verdict_ids
from tjd.judge.score import Specialist, score
from tjd.judge.train import merged, own_copy
from tjd.judge.vllm import Served
from tjd.prompts import Prompt
from tjd.rewards import ABSTAINED, Verdict
from tjd.splits import split_of
from tjd.tables import text_id

MANIFEST = "manifest.json"
LIMITS = ("max_instruction_tokens", "max_response_tokens")
NEED = (
    *("base", "layout", "head", "full", "first_layers", "specialists", "categories", "prompt", "verdict_ids", "config"),
    *LIMITS,
)  # of a manifest
RECORD = "specialist.json"  # in a specialist's folder, written last: without it, it was not finished
QUERIES = "train_queries.txt"  # digests of the queries trained on, to tell when a test is no test


@dataclass(frozen=True, slots=True)
class Seat:
    """Who judges a category, and how its raw score becomes a verdict (see `tjd.calibration.Calibration`)."""

    specialist: str
    threshold: float
    temperature: float = 1.0
    band: tuple[float, float] | None = None

    def verdict(self, raw: float) -> Verdict:
        """The verdict on a raw P(Yes); inside the band it is null, and the score is there all the same."""
        score = tempered(raw, self.temperature)
        if self.band is not None and self.band[0] < score < self.band[1]:
            return Verdict(None, score, self.threshold, self.specialist, ABSTAINED)
        return Verdict(score >= self.threshold, score, self.threshold, self.specialist)


class Ensemble:
    """Specialists, mostly over one base model; `score` is what the reward calls."""

    def __init__(
        self,
        specialists: Sequence[Specialist | Classifier | Served],
        encoder: Encoder | Pairs,
        seats: Mapping[str, Seat],
    ) -> None:
        self.specialists = list(specialists)
        self.encoder = encoder
        self.seats = seats  # category -> seat
        self.place = {specialist.name: k for k, specialist in enumerate(self.specialists)}

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Judge each row (`instruction` or `query`, `response`, `constraint`, `category`), in order.

        Rows that share an instruction, or also the response, share its computation; equal rows are judged once. A row whose
        category has no specialist, or without a response, gets a null verdict and the reason; one whose score lies in the
        abstain band gets a null verdict and its score.
        """
        verdicts = [self._unscored(row) for row in rows]
        judged = [index for index, verdict in enumerate(verdicts) if verdict is None]
        seats = [self.seats[rows[index]["category"]] for index in judged]
        judgements = [self.encoder(rows[index]) for index in judged]
        for place, yes in raw_scores(self.specialists, judgements, [self.place[seat.specialist] for seat in seats]):
            verdicts[judged[place]] = seats[place].verdict(yes)
        return [verdict for verdict in verdicts if verdict is not None]

    def covers(self, constraints: Iterable[Mapping[str, Any]]) -> bool:
        """Whether every soft constraint has a specialist."""
        return all(c["category"] in self.seats for c in constraints if c["kind"] == "soft")

    def _unscored(self, row: Mapping[str, Any]) -> Verdict | None:
        if row["category"] not in self.seats:
            return Verdict(None, error=f"no specialist for the category '{row['category']}'")
        if row["response"] is None:
            return Verdict(None, error="no response")
        return None


def raw_scores(
    specialists: Sequence[Specialist | Classifier | Served], judgements: Sequence[Encoded], whose: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """`tjd.judge.score.score` for specialists with any head, the same one for all."""
    classifiers = [each for each in specialists if isinstance(each, Classifier)]
    if classifiers:
        return classify.score(classifiers, judgements, whose)
    served = [each for each in specialists if isinstance(each, Served)]
    if served:
        return serving.score(served, judgements, whose)
    return score([each for each in specialists if isinstance(each, Specialist)], judgements, whose)


def zero_shot(base: str, prompt: Prompt, config: TrainJudgeConfig, categories: Iterable[str]) -> Ensemble:
    """A model as it is, asked with the judges' own prompt and limits: what every specialist is compared with."""
    name = backbone.public_name(base)
    encoder = make_encoder(base, prompt, replace(config, head="verdict"))
    model = backbone.load_model(base, dtype=config.dtype)
    specialist = merged(model, name, 0, verdict_ids(encoder.tokenizer))
    return Ensemble([specialist], encoder, {category: Seat(name, 0.5) for category in categories})


def count_trained_on(folder: Path, rows: Sequence[Mapping[str, Any]], split: str, seed: int) -> int:
    """How many rows of a split are of queries that the ensemble was trained on: their figures prove nothing."""
    path = folder / QUERIES
    known = set(path.read_text().split()) if path.is_file() else set()
    chosen = (row for row in rows if split == "all" or split_of(row, seed) == split)
    return sum(text_id(row["query_id"]) in known for row in chosen)


def make_encoder(base: str, prompt: Prompt, config: TrainJudgeConfig) -> Encoder | Pairs:
    """What turns rows into tokens of a base model, for a config's head and under its length limits."""
    tokenizer = backbone.load_tokenizer(base)
    limits = {name: getattr(config, name) for name in LIMITS}
    if config.head == "encoder":
        return Pairs(tokenizer, backbone.load_config(base), **limits)
    return Encoder(tokenizer, prompt, **limits)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read what an ensemble says of itself.

    Raises:
        DataError: There is no ensemble, or its manifest is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no judges ({MANIFEST} is missing); train them with: tjd train-judge")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise DataError(f"{path} is damaged ({exc}); train the judges anew") from exc
    lacking = [name for name in NEED if not isinstance(manifest, dict) or name not in manifest]
    if lacking:
        raise DataError(
            f"{path} lacks '{lacking[0]}', so it is not of judges, or of an older release; name the folder that tjd "
            "train-judge wrote"
        )
    return manifest


def settings_of(manifest: Mapping[str, Any]) -> TrainJudgeConfig:
    """What an ensemble was trained under; settings of before some were there have the defaults.

    Raises:
        DataError: It has settings that are not of this version.
    """
    saved: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in manifest["config"].items()
    }
    unknown = sorted(saved.keys() - {field.name for field in fields(TrainJudgeConfig)})
    if unknown:
        raise DataError(
            f"the judges were trained by tjd {manifest.get('version')} with a setting '{unknown[0]}' that {__version__} does "
            "not know; take that version, or train them anew"
        )
    return TrainJudgeConfig(**saved)


def prompt_of(manifest: Mapping[str, Any]) -> Prompt:
    """The text that the judges were trained with, whatever the prompt's file says by now."""
    return Prompt(manifest["prompt"]["name"], manifest["prompt"]["text"])


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what an ensemble says of itself, at once and whole: from then on it can be loaded."""
    partial = folder / f".{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, folder / MANIFEST)


def load(folder: str | Path, *, device: str = "auto", dtype: str = "auto", engine: str = "transformers") -> Ensemble:
    """Load an ensemble for scoring.

    Args:
        folder: That `tjd train-judge` wrote.
        device: `cpu`, `cuda:1`, ..., or `auto`; vLLM takes the devices that the process sees.
        dtype: `auto`, `float32` or `bfloat16`.
        engine: What runs the models: `transformers` or `vllm`.

    Raises:
        DataError: The folder holds no ensemble, or weights are missing or of another training.
        ConfigError: Its base model cannot be loaded, its tokenizer gives other verdict tokens, or the engine is not
            installed or cannot score its head.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    if engine == "vllm":
        serving.require(manifest)
    for specialist in manifest["specialists"]:
        if not all((folder / specialist / name).is_file() for name in _files(manifest)):
            raise DataError(f"{folder} lacks the weights of the specialist '{specialist}'; train the judges anew")
        trained_as = manifest.get("fingerprints", {}).get(specialist)  # null in manifests of before there were any
        if trained_as and trained_as != fingerprint_of(folder / specialist):
            raise DataError(f"the judges in {folder} are half trained ('{specialist}'); run tjd train-judge again")
    read_as = TrainJudgeConfig(**{name: manifest[name] for name in ("head", *LIMITS)})
    encoder = make_encoder(manifest["base"], prompt_of(manifest), read_as)
    seats = {name: _seat(seat) for name, seat in manifest["categories"].items()}
    if isinstance(encoder, Pairs):
        classifiers = []
        for name in manifest["specialists"]:
            with _whole(folder / name):
                model = backbone.load_classifier(str(folder / name), device=device, dtype=dtype)
                classifiers.append(Classifier(name, model, encoder))
        return Ensemble(classifiers, encoder, seats)
    verdicts = verdict_ids(encoder.tokenizer)
    if list(verdicts) != manifest["verdict_ids"]:
        raise ConfigError(
            f"the tokenizer of {manifest['base']} is not the one the judges in {folder} were trained with"
        )
    if engine == "vllm":
        return Ensemble(serving.load(folder, manifest, encoder, verdicts, dtype=dtype), encoder, seats)
    return Ensemble(_decoders(folder, manifest, verdicts, device, dtype), encoder, seats)


def _decoders(
    folder: Path, manifest: Mapping[str, Any], verdicts: tuple[int, int], device: str, dtype: str
) -> list[Specialist]:
    """The specialists of decoders: models of their own, or what each has above one base."""
    from peft import PeftModel

    specialists = []
    if manifest["full"]:
        for name in manifest["specialists"]:
            with _whole(folder / name):
                model: Any = backbone.load_model(str(folder / name), device=device, dtype=dtype)
            specialists.append(merged(model, name, 0, verdicts))
    else:
        base: Any = backbone.load_model(manifest["base"], device=device, dtype=dtype)
        for name in manifest["specialists"]:
            first_layer = manifest["first_layers"][name]
            with _whole(folder / name):
                if manifest["head"] == "probe":
                    specialists.append(probe.load(folder / name, name, base.get_decoder()))
                    continue
                alone = len(manifest["specialists"]) == 1  # then it may have the base itself
                with nullcontext() if alone else own_copy(base, first_layer), backbone.without_peft_noise():
                    model = PeftModel.from_pretrained(base, str(folder / name))
                    specialists.append(merged(model, name, first_layer, verdicts))
    return specialists


def fingerprint_of(specialist: Path) -> str | None:
    """What a finished specialist's weights depend on; null if it was not finished."""
    try:
        return json.loads((specialist / RECORD).read_text())["fingerprint"]
    except (OSError, ValueError, KeyError):
        return None


def _files(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What a specialist's folder must hold; peft would look for missing files on the hub."""
    if manifest["head"] == "probe":
        return (probe.WEIGHTS,)
    if manifest["full"] or manifest["head"] == "encoder":
        return ("config.json",)
    return ("adapter_config.json", "adapter_model.safetensors")


@contextmanager
def _whole(specialist: Path) -> Iterator[None]:
    """Map the ways in which weights can be damaged to one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as exc:
        told = f"the weights in {specialist} cannot be loaded ({first_line(exc)}); if they are damaged, train them anew"
        raise DataError(told) from exc


def _seat(saved: Mapping[str, Any]) -> Seat:
    """A seat of a manifest; one of before there was calibration has its raw scores."""
    band = saved.get("band")
    return Seat(saved["specialist"], saved["threshold"], saved.get("temperature", 1.0), tuple(band) if band else None)


def load_prompt(name: str) -> Prompt:
    """The judge prompt by name or path, its variables checked."""
    from tjd import prompts

    return prompts.load(name, VARIABLES)
