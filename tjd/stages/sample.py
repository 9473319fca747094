"""Sample: a pool of responses from several models, with the constraints shown and without.

In: instructions. Out: responses. The paper (section 4.1) draws from a heterogeneous pool so that both verdicts occur;
showing a model the bare query is the cheapest way to responses that break the constraints.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import tee

from tjd.config import SampleConfig
from tjd.tables import Row, text_id
from tjd.teacher import Ask, Completion, Request, reading, user

NEED = ("instruction_id", "query", "instruction")
SHOWN = {"with_constraint": "instruction", "without_constraint": "query"}  # condition to the column a model reads

Seeds = Callable[[Row, str, str], Iterable[int]]
"""Row, model and condition; the seeds of the responses that are wanted."""


def sample(
    rows: Callable[[], Iterable[Row]],
    models: Iterable[tuple[str, Ask]],
    config: SampleConfig,
    seeds: Seeds | None = None,
) -> Iterator[Row]:
    """Ask every model for responses per instruction and condition.

    Args:
        rows: Opens INSTRUCTIONS; called once per model.
        models: Public name and `ask`, taken one after the other.
        config: See `SampleConfig`.
        seeds: Which responses are wanted; by default `config.n` each, with the seeds `config.seed`, `config.seed + 1`, ...

    Yields:
        RESPONSES, by model, then in the order of `rows`, then by condition, then by seed. `response` is null, with a
        reason in `error`, where there is nothing to show the model, the call failed, or nothing came back.

    Raises:
        BackendError: A model failed past its retries.
    """
    seeds = seeds or (lambda row, model, condition: range(config.seed, config.seed + config.n))
    for model, ask in models:
        ahead, behind = tee(_wanted(rows(), model, config.condition, seeds))
        completions = ask(request_of(shown, config, seed) for _, shown, _, seed in ahead if shown)
        for row, shown, condition, seed in behind:
            if shown:
                completion = next(completions)
            else:
                reason = row.get("error")
                missing = f"there is no {SHOWN[condition]}" + (f": {reason}" if reason else "")
                completion = Completion(None, model, None, 0, 0, 0.0, error=missing)
            yield {
                **row,
                **_response(completion),
                "response_id": text_id(row["instruction_id"], model, condition, str(seed)),
                "model": model,
                "condition": condition,
                "temperature": config.temperature,
                "seed": seed,
            }


def request_of(text: str, config: SampleConfig, seed: int) -> Request:
    """The request for one response to a prompt."""
    return Request(user(text), config.temperature, config.top_p, config.max_tokens, seed=seed)


def _wanted(
    rows: Iterable[Row], model: str, conditions: Iterable[str], seeds: Seeds
) -> Iterator[tuple[Row, str | None, str, int]]:
    """One turn per response: the row, what the model is shown of it, the condition, and the seed."""
    for row in rows:
        for condition in conditions:
            for seed in seeds(row, model, condition):
                yield row, row[SHOWN[condition]], condition, seed


def _response(completion: Completion) -> Row:
    text = completion.text if completion.text is None else reading.without_thinking(completion.text)
    said_nothing = text is not None and not text.strip()
    return {
        "response": None if said_nothing else text,
        "finish_reason": completion.finish_reason,
        "n_tokens": None if completion.text is None else completion.n_tokens,
        "error": reading.SILENT if said_nothing else completion.error,
        "cost_usd": completion.cost_usd,
        "n_prompt_tokens": completion.n_prompt_tokens,
        "n_completion_tokens": completion.n_tokens,
    }
