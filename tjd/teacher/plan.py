"""Plan: what a run would ask for, without one call.

A stage runs as ever, with `Planned` in the place of each teacher. What is on disk is answered, everything else is
counted and answered with nothing, once where requests are equal.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tjd.teacher import Again, Completion, Request, Teacher, follow_up
from tjd.teacher.budget import about_prompt_tokens

UNASKED = "not asked: this is a dry run"


@dataclass(slots=True)
class Totals:
    """Of the calls that a run would make."""

    calls: int = 0
    prompt_tokens: int = 0  # about
    most_tokens: int = 0  # of their completions, if each were as long as it may be
    most_usd: float | None = 0.0  # the bound of each that a cap takes, too; null if the price is unknown
    found_tokens: int = 0  # of completions that are on disk
    found: int = 0  # how many of them tell


class Planned:
    """A teacher that is not asked."""

    def __init__(self, teacher: Teacher, *, retry_unusable: bool = False) -> None:
        """Nothing is opened before it has to be looked up."""
        self._teacher, self._retry_unusable = teacher, retry_unusable
        self._seen: set[int] = set()
        self.name, self.price = teacher.name, teacher.price
        self.usage = teacher.usage  # of what was found on disk
        self.totals = Totals()

    @property
    def digest(self) -> str | None:
        """See `Teacher.digest`."""
        return self._teacher.digest

    @property
    def likely_usd(self) -> float | None:
        """What the calls cost if completions are as long as those on disk; null if there is none, or no price."""
        if self.price is None or not self.totals.found:
            return None
        mean = self.totals.found_tokens / self.totals.found
        return self.totals.prompt_tokens * self.price.prompt + self.totals.calls * mean * self.price.completion

    def ask(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """Answer from disk, or with nothing; see `Ask`."""
        for request in requests:
            completion = self._look_up(request)
            second = follow_up(request, completion, again)
            answer = completion if second is None else self._look_up(second)
            if self._retry_unusable and second and follow_up(second, answer, again):
                self.usage.cached -= 2  # both will be forgotten
                answer = self._plan(request)
            yield answer

    def find(self, request: Request) -> Completion | None:
        """See `Teacher.find`."""
        return self._teacher.find(request)

    def close(self) -> None:
        """See `Teacher.close`."""
        self._teacher.close()

    def _look_up(self, request: Request) -> Completion:
        totals = self.totals
        found = self.find(request)
        if found is None:
            return self._plan(request)
        if found.n_tokens is not None:
            totals.found, totals.found_tokens = totals.found + 1, totals.found_tokens + found.n_tokens
        return found

    def _plan(self, request: Request) -> Completion:
        totals = self.totals
        known = hash((request.prompt_digest, request.temperature, request.top_p, request.max_tokens, request.seed))
        if known in self._seen:
            self.usage.cached += 1
        else:
            self._seen.add(known)
            totals.calls += 1
            totals.prompt_tokens += about_prompt_tokens(request)
            totals.most_tokens += request.max_tokens
            if self.price is None:
                totals.most_usd = None
            elif totals.most_usd is not None:
                totals.most_usd += self.price.most_usd(request)
        return Completion(None, self.name, error=UNASKED)
