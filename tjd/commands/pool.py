"""What `synthesize`, `sample` and `label` tell of the pool: what was rejected, and how often constraints are followed."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from tjd.commands.terminal import Line, counted, print_numbers, say
from tjd.config import SampleConfig
from tjd.errors import BackendError, ConfigError, DataError

if TYPE_CHECKING:
    from tjd.pool import Acceptance, Plan, Shortage
    from tjd.stages.screen import Screened
    from tjd.tables import Row


class Screening:
    """What was kept of a stream of instructions, and what was rejected."""

    def __init__(self, put: "Callable[[Row, str], None]") -> None:
        self._put = put  # what becomes of a rejected row and its reason
        self.reasons, self.kept, self.unverified = Counter[str](), Counter[str](), Counter[str]()
        self.n_kept = 0

    def passed(self, rows: "Iterable[Screened]") -> "Iterator[Row]":
        """Pass on what is not rejected, counting."""
        from tjd.stages.screen import Rejected

        for row in rows:
            if isinstance(row, Rejected):
                self.reasons[row.reason.partition(":")[0]] += 1
                self._put(row.row, row.reason)
                continue
            self.n_kept += 1
            self.kept.update(str(c["category"]) for c in row["constraints"] if c["kind"] == "soft")
            if row["instruction"] and row.get("verified", True) is None:
                self.unverified[str(row["error"])[:120]] += 1
            yield row

    def tell(self, rejected: str | None) -> None:
        """Say what was rejected and why, and what is left of each category."""
        n = self.reasons.total()
        reasons = ", ".join(f"{k} {reason}" for reason, k in self.reasons.most_common())
        of_all = f"rejected: {n} of {counted(n + self.n_kept, 'row')}" + (f" ({reasons})" if n else "")
        say(of_all + (f" -> {rejected}" if rejected else "; --rejected FILE keeps them" if n else ""))
        if n:
            left = ", ".join(f"{k} {category}" for category, k in sorted(self.kept.items()))
            say(f"soft constraints left: {left or 'none'}")
        if self.unverified:
            [(common, _)] = self.unverified.most_common(1)
            told = counted(self.unverified.total(), "instruction")
            say(f"warning: {told} kept without a check (mostly: {common})", style="yellow")

    def require_verified(self, max_invalid: float) -> None:
        """Raise if too many instructions could not be verified; they are written already."""
        if (n := self.unverified.total()) > max_invalid * self.n_kept:
            raise BackendError(
                f"{n} of {counted(self.n_kept, 'row')} could not be verified; see the column 'error', name another "
                "--verifier, or raise --max-invalid"
            )


def tell_acceptance(acceptance: "Acceptance", what: str) -> None:
    """Print how often constraints were followed by category, model and condition, and warn of one-sided categories."""
    lines: list[Line | None] = []
    for (category, model, condition), verdicts in sorted(acceptance.cells.items(), key=lambda cell: str(cell[0])):
        known = verdicts[True] + verdicts[False]
        share = f"{verdicts[True] / known:.2f}" if known else "-"
        cells = {what: str(verdicts.total()), "share followed": share, "undecided": str(verdicts[None])}
        lines.append(((category or "(rules)", model or "-", condition or "-"), cells))
    if lines:
        print_numbers("acceptance", ("category", "model", "condition"), lines, sys.stderr)
    for category, share in acceptance.one_sided().items():
        say(
            f"warning: {category} is one-sided: {share:.0%} of its verdicts are 'followed', and a judge learns from both; "
            "see tjd sample --labels FILE --target-balance SHARE",
            style="yellow",
        )


def tell_round(plan: "Plan", config: SampleConfig) -> None:
    """Say what will be sampled for which category, and where the target is out of reach.

    Raises:
        ConfigError: No response that can be asked for is expected to help.
        DataError: No instruction has a constraint of these categories.
    """
    if plan.shortages and not any(short.n for short in plan.shortages):
        told = ", ".join(f"{short.category} has {short.share:.1%} {_rarer(short)}" for short in plan.shortages)
        if all(short.sources for short in plan.shortages):
            raise DataError(f"{told}, and no instruction has such a constraint; bring instructions that do")
        raise ConfigError(
            f"{told}, and no response of these models and conditions is expected to raise that; name another --model or "
            "--condition"
        )
    if not plan.shortages:
        say(
            f"plan: every category has {config.target_balance:.0%} of its rarer verdict already; there is nothing to sample"
        )
    for short in plan.shortages:
        told = f"plan: {short.category} has {short.share:.1%} {_rarer(short)}"
        if short.n:
            sources = ", ".join(f"{model} {condition}" for model, condition in short.sources)
            told += f"; {counted(short.n, 'response')} by {sources} should make it {short.expected:.1%}"
        elif short.expected != short.share:
            told += f"; what is planned above should make it {short.expected:.1%}"
        say(told)
        if short.expected < config.target_balance:
            more = "raise --n, or bring more instructions"
            advice = more if short.reachable else "name another --model or --condition"
            say(f"warning: that is short of {config.target_balance:.0%}; {advice}", style="yellow")


def _rarer(short: "Shortage") -> str:
    return "followed" if short.followed else "not followed"
