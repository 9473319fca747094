"""One frozen dataclass per stage: the only home of a default. Every field is a flag of the same name."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tjd.errors import ConfigError

CONDITIONS = ("with_constraint", "without_constraint")
LAYOUTS = ("3-for-3", "1-for-3", "1-for-all")

Layout = Literal["3-for-3", "1-for-3", "1-for-all"]
Mode = Literal["pointwise", "batch"]
SoftReward = Literal["verdict", "score"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """How to reach a model; nothing here changes an answer."""

    concurrency: int = 64  # calls in flight
    retries: int = 5  # attempts after the first, per call
    timeout_s: float = 120.0  # seconds, per attempt
    batch_size: int = 32  # prompts at once of a local model

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least(self, 1, "concurrency", "batch_size")
        _at_least(self, 0, "retries", "timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesizeConfig:
    """Settings of `tjd synthesize` (paper, 4.1)."""

    teacher: str = "gemini/gemini-3-pro-preview"
    category: tuple[str, ...] = ()  # empty: the taxonomy's defaults
    per_query: int = 1  # soft constraints per query
    temperature: float = 1.0
    max_tokens: int = 2048
    max_invalid: float = 0.1  # share of rows without an instruction above which the command fails
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least(self, 1, "per_query", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "max_invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Settings of `tjd sample` (paper, 4.1: a heterogeneous pool)."""

    model: tuple[str, ...]
    n: int = 1  # responses per instruction, model and condition
    condition: tuple[str, ...] = CONDITIONS
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    max_invalid: float = 0.1  # share of failed responses above which the command fails
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.model:
            raise ConfigError("tjd sample needs at least one --model")
        for name in self.condition:
            if name not in CONDITIONS:
                raise ConfigError(f"--condition must be one of {', '.join(CONDITIONS)}, not '{name}'")
        _at_least(self, 1, "n", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "top_p", "max_invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """Settings of `tjd label` (paper, 4.1 and 3.3: one constraint at a time)."""

    teacher: str = "gemini/gemini-3-pro-preview"
    mode: Mode = "pointwise"
    votes: int = 1
    temperature: float = 1.0  # votes need spread; at 0 they would repeat each other
    max_tokens: int = 1024
    max_invalid: float = 0.05  # share of null verdicts above which the command fails
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.mode not in ("pointwise", "batch"):
            raise ConfigError(f"--mode must be pointwise or batch, not '{self.mode}'")
        _at_least(self, 1, "votes", "max_tokens")
        _at_least(self, 0, "temperature")
        _share(self, "max_invalid")
