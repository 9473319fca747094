"""Ask a model through its provider's batch API: half the price, and answers within a day.

Requests that are not in the cache go out in files, one job each; the jobs are looked at every `poll_s` seconds, and what
they bring is entered into the cache, as if it had come call by call (`remote.py`). Requests are found by the key of the
cache, which is also their `custom_id`; equal ones go out once.

Nothing is lost or paid twice, whenever a process dies or the network breaks (`jobs.py` keeps the books):
- while uploading: a file may be left at the provider, which costs nothing; the requests are uploaded again.
- while submitting: the file is known, the job's id is not; the provider's list of batches tells whether there is a job
  of that file, and without one the requests are submitted anew, as far as they are wanted. (A provider whose list lags
  behind by longer than it takes to run the command again could be paid twice.)
- while waiting: the job goes on at the provider, and the same command, or any that wants one of its requests, waits for it.
- while reading: the job is read again; completions that were entered are not entered twice.

litellm's synchronous calls are used: its `aretrieve_batch` would read all results into memory to price them.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from tjd.config import BackendConfig
from tjd.errors import BackendError, BudgetError, ConfigError
from tjd.teacher import Again, Completion, Request, follow_up, merged
from tjd.teacher.budget import FREE, Budget
from tjd.teacher.jobs import Job, Jobs
from tjd.teacher.remote import FAILURES_IN_A_ROW, Remote, Trouble, may_pass, one_line, understood

PROVIDERS = ("openai", "hosted_vllm")  # reached with OpenAI's protocol; litellm's others are not tried here
JOBS_AT_ONCE = 2  # so many times `job_size` requests are held in memory, with their completions: some 4 KB each
JOB_BYTES = 200_000_000  # OpenAI's limit of a file
SLICE = 1000  # completions that are entered at once
LIST_BACK_S = 86_400  # how far a provider's clock may be behind ours
ENDED = ("completed", "expired", "cancelled", "failed")
QUEUE_FULL = "token_limit_exceeded"  # of tokens in all jobs at once
TRANSPORT = ("timeout", "num_retries", "max_retries")  # of a call's arguments: what is not the provider's to know

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request of a job has no completion."""

    reason: str
    retry: bool


class Batch(Remote):
    """A model behind a batch API: a `Remote` whose calls travel in files."""

    def __init__(self, name: str, config: BackendConfig, folder: Path | None, budget: Budget) -> None:
        """Check the provider and that its key is set; calls nothing.

        Raises:
            BackendError: Unknown provider, or no key.
            ConfigError: The provider is none of PROVIDERS, or nothing is kept on disk.
        """
        super().__init__(name, config, folder, budget)
        self._model, provider, key, base = self._litellm.get_llm_provider(name)
        if provider not in PROVIDERS:
            known = " and ".join(f"{known}/..." for known in PROVIDERS)
            raise ConfigError(f"--batch-api is there for {known}, not for {name}; leave it out to ask call by call")
        if folder is None:
            raise ConfigError("--batch-api needs a cache on disk: a job outlives the process that submits it")
        self._server = {"custom_llm_provider": provider, "api_key": key, "api_base": base}
        self._jobs = Jobs(name, self._ledger, folder)

    def ask(self, requests: Iterable[Request], again: Again | None = None) -> Iterator[Completion]:
        """Ask `JOBS_AT_ONCE` jobs at a time, then what `again` wants in further ones; see `Ask`.

        Raises:
            BackendError: The key is refused, the server has no batch API or does not know a job, or calls keep failing.
        """
        requests = iter(requests)
        while window := list(islice(requests, JOBS_AT_ONCE * self._config.job_size)):
            for request in window if self._config.retry_unusable else ():
                self._ledger.forget_unusable(request, again)
            try:
                firsts = self._complete_all(window)
                seconds = [follow_up(request, first, again) for request, first in zip(window, firsts, strict=True)]
                answers = iter(self._complete_all([second for second in seconds if second is not None]))
            except BudgetError:
                yield from self._kept(window, again)  # so that the rows they make are counted as done
                raise
            for first, second in zip(firsts, seconds, strict=True):
                yield first if second is None else merged(first, next(answers))

    def _kept(self, requests: Iterable[Request], again: Again | None) -> Iterator[Completion]:
        """The completions on disk, up to the first request that wants a call."""
        for request in requests:
            found = self.find(request)
            if found is None or follow_up(request, found, again) is not None:
                return
            yield found

    def _complete_all(self, requests: Sequence[Request]) -> list[Completion]:
        keys = [self._ledger.key(request) for request in requests]
        asked = dict(zip(keys, requests, strict=True))
        self.usage.cached += len(keys) - len(asked)
        outcomes: dict[bytes, Completion] = {}
        failures: dict[bytes, Failure] = {}
        wanted = asked
        for attempt in range(self._config.retries + 1):
            self.usage.retries += len(wanted) if attempt else 0
            for job, batch in self._ended(self._submitted(wanted, outcomes)):
                for key, fate in self._read(job, batch, asked):
                    if isinstance(fate, Completion):
                        outcomes[key] = fate
                    else:
                        failures[key] = fate
            wanted = {key: asked[key] for key in wanted if key not in outcomes and failures[key].retry}
            if not wanted:
                break
        failed = {key: Completion(None, self.name, error=failures[key].reason) for key in asked if key not in outcomes}
        self._ledger.enter_keyed(failed.items(), asked)
        outcomes |= failed
        return [outcomes[key] for key in keys]

    def _submitted(self, wanted: Mapping[bytes, Request], found: dict[bytes, Completion]) -> list[Job]:
        """The jobs that hold what is wanted, old and new; what another process has brought by now goes into `found`."""
        if not wanted:
            return []
        with self._jobs.submitting():
            # jobs before the cache: what leaves the one has been entered into the other
            jobs = [job for job in self._jobs.open() if not job.keys.isdisjoint(wanted) and self._is_taken(job)]
            held = frozenset[bytes]().union(*(job.keys for job in jobs))
            new: dict[bytes, Request] = {}
            for key, request in wanted.items():
                if key in held:
                    continue
                if completion := self._ledger.find(request):
                    found[key] = completion
                else:
                    new[key] = request
            for job in jobs:
                logger.info("%s: going on with batch job %s", self.name, job.job)
            price = self.price or FREE
            self._budget.commit(sum(price.most_usd(request) for request in new.values()), len(new))
            for file, keys in self._files(new):
                job = self._jobs.enter(self._upload(file), keys)
                self._submit(job)
                jobs.append(job)
                logger.info("%s: submitted batch job %s of %d requests", self.name, job.job, len(keys))
        return jobs

    def _files(self, new: Mapping[bytes, Request]) -> Iterator[tuple[IO[bytes], list[bytes]]]:
        """Files of at most `job_size` requests and JOB_BYTES, and the keys in each; written line by line."""
        lines = ((key, self._line(key, request)) for key, request in new.items())
        held_over = next(lines, None)
        while held_over:
            with tempfile.TemporaryFile() as file:
                keys = []
                while held_over and len(keys) < self._config.job_size:
                    key, line = held_over
                    if keys and file.tell() + len(line) > JOB_BYTES:
                        break
                    file.write(line)
                    keys.append(key)
                    held_over = next(lines, None)
                yield file, keys

    def _line(self, key: bytes, request: Request) -> bytes:
        arguments = {name: value for name, value in self._arguments(request).items() if name not in TRANSPORT}
        sampling = self._litellm.utils.get_optional_params(
            **arguments | {"model": self._model, "custom_llm_provider": self._server["custom_llm_provider"]}
        )
        sampling = {name: value for name, value in sampling.items() if name not in ("stream", "extra_body")}
        body = {"model": self._model, "messages": arguments["messages"], **sampling}
        line = {"custom_id": key.hex(), "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    def _upload(self, file: IO[bytes]) -> str:
        def upload() -> str:
            file.seek(0)
            return self._litellm.create_file(file=("tjd.jsonl", file), purpose="batch", **self._how()).id

        return self._insist("a batch file cannot be uploaded", upload)

    def _is_taken(self, job: Job) -> bool:
        """Whether the provider has a job; one that it never took is forgotten, since its requests cost nothing yet."""
        if job.job is None:  # a process ended before it knew the job's id
            found = self._insist("the list of batch jobs cannot be read", lambda: self._listed(job))
            if found is None:
                self._jobs.close(job)
                return False
            self._jobs.submitted(job, found)
        return True

    def _listed(self, job: Job) -> str | None:
        """The provider's id of the job of a file, if it has one."""
        for batch in self._litellm.list_batches(limit=100, **self._how()):  # newest first; fetches page after page
            if batch.input_file_id == job.file:
                return batch.id
            if batch.created_at < job.entered_at - LIST_BACK_S:
                break
        return None

    def _submit(self, job: Job) -> None:
        def submit() -> str:
            if found := self._listed(job):  # an attempt before, whose answer was lost
                return found
            try:
                return self._litellm.create_batch(
                    completion_window="24h", endpoint="/v1/chat/completions", input_file_id=job.file, **self._how()
                ).id
            except Exception as exc:
                if not understood(exc).retry:  # refused, so that there is no job; what is uploaded next may be smaller
                    self._jobs.close(job)
                raise

        self._jobs.submitted(job, self._insist("a batch job cannot be submitted", submit))

    def _ended(self, jobs: list[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job when it has ended, with what the provider says of it."""
        bad_looks = 0
        while jobs:
            counts = []
            for job in list(jobs):
                try:
                    batch = self._litellm.retrieve_batch(batch_id=job.job, **self._how())
                except Exception as exc:  # as in `Remote`: what litellm raises is mapped where it is called
                    trouble, bad_looks = understood(exc), bad_looks + 1
                    if not trouble.retry or bad_looks >= FAILURES_IN_A_ROW:
                        raise self._lost(job, trouble) from exc
                    continue
                bad_looks = 0
                if batch.status in ENDED:
                    jobs.remove(job)
                    yield job, batch
                else:
                    counts.append(batch.request_counts)
            n_done, n = (sum(getattr(c, name, 0) for c in counts) for name in ("completed", "total"))
            self.usage.waiting = f"batch jobs: {n_done} of {n} requests done" if jobs else ""
            if jobs:
                time.sleep(self._config.poll_s)

    def _lost(self, job: Job, trouble: Trouble) -> BackendError:
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(job.entered_at))
        advice = (
            "is kept: run the same command again when the server is well"
            if trouble.retry
            else "may be another account's, or gone: set the key it was submitted with, or leave out --batch-api to ask anew"
        )
        return BackendError(f"{self.name}: {trouble.what}; batch job {job.job} of {since} {advice}")

    def _read(
        self, job: Job, batch: Any, asked: Mapping[bytes, Request]
    ) -> Iterator[tuple[bytes, Completion | Failure]]:
        """What became of each request of a job that has ended; completions are in the cache before the job is forgotten."""
        if batch.status != "completed":
            logger.warning("%s: batch job %s: %s", self.name, job.job, _end_of(batch).reason)
        missing = set(job.keys)
        fates = (fate for file in (batch.output_file_id, batch.error_file_id) for fate in self._fates(file))
        while some := list(islice(fates, SLICE)):
            some = {key: fate for key, fate in some if key in missing}
            missing -= some.keys()
            completions = [(key, fate) for key, fate in some.items() if isinstance(fate, Completion)]
            self._ledger.enter_keyed(completions, asked)
            yield from some.items()
        self._jobs.close(job)
        yield from dict.fromkeys(missing, _end_of(batch)).items()

    def _fates(self, file_id: str | None) -> Iterator[tuple[bytes, Completion | Failure]]:
        if not file_id:
            return
        with tempfile.TemporaryFile() as file:

            def download() -> None:
                file.seek(0)
                file.truncate()
                content = self._litellm.file_content(file_id=file_id, stream=True, **self._how())
                for part in content.stream_iterator:
                    file.write(part)

            self._insist("the results of a batch job cannot be read", download)
            file.seek(0)
            for line in file:
                try:
                    row = json.loads(line)
                    key = bytes.fromhex(row["custom_id"])
                except (ValueError, KeyError, TypeError):  # whose it was is unknown: that request will be missing
                    logger.warning("%s: a line of a batch job's results cannot be read", self.name)
                    continue
                yield key, self._fate(row)

    def _fate(self, row: Mapping[str, Any]) -> Completion | Failure:
        """Read one line of an output or an error file."""
        try:
            response = row.get("response") or {}
            status, body = response.get("status_code"), response.get("body") or {}
            if status == 200:
                if not body.get("choices"):  # litellm would make an empty answer of it, to be kept for good
                    raise ValueError("the reply has no choices")
                return self._completion(self._litellm.ModelResponse(**body))
            error = row.get("error") or body.get("error") or {}
            code, said = error.get("code"), one_line(error.get("message") or "")
            retry = code == "batch_expired" if status is None else may_pass(status)
            return Failure(f"the call failed: {status or code}: {said}", retry)
        except Exception as exc:  # a server's garbage, as in `Remote`
            return Failure(f"the call failed: its result cannot be read ({type(exc).__name__})", retry=True)

    def _cost_usd(self, reply: Any, n_prompt_tokens: int | None, n_tokens: int | None) -> float | None:
        """At the price that is given, or those of the batch API; null where litellm does not know them."""
        if self._given or reply is None:
            return super()._cost_usd(reply, n_prompt_tokens, n_tokens)
        try:
            prices = self._litellm.get_model_info(self.name)
        except Exception:  # litellm raises a bare Exception for a model that it has no price for
            return None
        if not (prices.get("input_cost_per_token_batches") and prices.get("output_cost_per_token_batches")):
            return None
        from litellm.cost_calculator import batch_cost_calculator

        return sum(batch_cost_calculator(usage=reply.usage, model=self.name))

    def _insist(self, failed: str, call: Callable[[], T]) -> T:
        """Call, and call again with growing pauses where that may help."""
        attempt = 0
        while True:
            try:
                return call()
            except Exception as exc:  # as in `Remote`: what litellm raises is mapped where it is called
                trouble = understood(exc)
                if not trouble.retry or attempt == self._config.retries:
                    advice = trouble.fatal
                    if trouble.retry:
                        advice = "run the same command again when the server is well"
                    elif not advice or trouble.what.startswith("404"):
                        advice = "if this server takes no such batches, leave out --batch-api to ask call by call"
                    raise BackendError(f"{self.name}: {failed}: {trouble.what}; {advice}") from exc
            attempt += 1
            time.sleep(self._pause_s(attempt, trouble))

    def _how(self) -> dict[str, Any]:
        return self._server | {"timeout": self._config.timeout_s or None, "max_retries": 0}


def _end_of(batch: Any) -> Failure:
    """Why requests of a job that has ended were not answered."""
    if batch.status == "completed":
        return Failure("the batch job completed without this request", retry=True)
    errors = getattr(batch.errors, "data", None) or []
    said = one_line("; ".join(str(error.message) for error in errors[:3])) if errors else ""
    ended = f"the batch job {'was ' if batch.status == 'cancelled' else ''}{batch.status}"
    is_full = any(error.code == QUEUE_FULL for error in errors)
    return Failure(f"{ended}: {said}" if said else ended, retry=batch.status == "expired" or is_full)
