"""TinyJudge distillation: tiny judges from a frontier model's verdicts, used as the reward of a GRPO run."""

__version__ = "0.1.0"
