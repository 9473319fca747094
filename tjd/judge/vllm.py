"""Score through vLLM where it is installed: for judges that say Yes or No, on a GPU that serves many of them.

In: the token ids that the trees read, one prompt per judgement. Out: P(Yes) of the two verdict tokens. vLLM's prefix cache
takes the place of the trees: judgements are asked in the order of their tokens, so that those which share an instruction or
a response stand together. Adapters are LoRA requests to one engine; judges of whole weights have an engine each.

Not tried on hardware: the tests check what is sent, and how answers become scores.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tjd import backbone
from tjd.errors import ConfigError
from tjd.judge.prompt import MAX_CONSTRAINT_TOKENS, Encoded, Encoder

MEMORY = 0.3  # share of the device's memory for all engines: tiny models, and room for a policy beside them
RANKS = (8, 16, 32, 64, 128, 256, 512)  # the largest ranks of adapters that vLLM can be set to


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A specialist that a vLLM engine answers for."""

    name: str
    llm: Any
    adapter: Any  # a LoRA request; null where the engine holds the specialist's own weights
    verdicts: tuple[int, int]  # ids of Yes and No


def require(manifest: Mapping[str, Any]) -> None:
    """Raise ConfigError unless vLLM is there and can score these judges."""
    if manifest["head"] != "verdict":
        raise ConfigError(
            f"--engine vllm reads verdict tokens, and these judges have the head '{manifest['head']}'; leave --engine out"
        )
    if not manifest["full"] and manifest["config"]["lora_rank"] > RANKS[-1]:
        rank = manifest["config"]["lora_rank"]
        raise ConfigError(f"vLLM takes adapters of rank {RANKS[-1]} at most, and these have {rank}; leave --engine out")
    if find_spec("vllm") is None:
        raise ConfigError("--engine vllm needs the package vllm, which is not installed: pip install vllm")


def load(
    folder: Path, manifest: Mapping[str, Any], encoder: Encoder, verdicts: tuple[int, int], *, dtype: str = "auto"
) -> list[Served]:
    """Start the engines that an ensemble needs; `require` comes before."""
    vllm: Any = import_module("vllm")
    request: Any = import_module("vllm.lora.request").LoRARequest
    names = manifest["specialists"]
    fixed = sum(map(len, (encoder.head, encoder.before_response, encoder.before_constraint, encoder.tail)))
    limits = manifest["max_instruction_tokens"] + manifest["max_response_tokens"] + MAX_CONSTRAINT_TOKENS
    settings: dict[str, Any] = {
        "dtype": str(backbone.choose_dtype(dtype, backbone.choose_device())).removeprefix("torch."),
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",  # else those of before all tokens but the verdicts are ruled out
        "max_model_len": fixed + limits + 1,
    }
    if manifest["full"]:
        share = MEMORY / len(names)
        return [
            Served(name, vllm.LLM(str(folder / name), gpu_memory_utilization=share, **settings), None, verdicts)
            for name in names
        ]
    rank = next(rank for rank in RANKS if rank >= manifest["config"]["lora_rank"])
    base = backbone.resolve(manifest["base"])
    adapters = {"enable_lora": True, "max_loras": len(names), "max_lora_rank": rank}
    llm = vllm.LLM(base, gpu_memory_utilization=MEMORY, **adapters, **settings)
    return [
        Served(name, llm, request(name, number, str(folder / name)), verdicts) for number, name in enumerate(names, 1)
    ]


def score(
    specialists: Sequence[Served], judgements: Sequence[Encoded], whose: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """`tjd.judge.score.score` through vLLM."""
    sampling: Any = import_module("vllm").SamplingParams
    for llm in {id(each.llm): each.llm for each in specialists}.values():
        of_llm = [index for index, k in enumerate(whose) if specialists[k].llm is llm]
        if not of_llm:
            continue
        of_llm.sort(key=lambda index: (whose[index], judgements[index].ids))
        asked = [specialists[whose[index]] for index in of_llm]
        yes, no = asked[0].verdicts
        one_token = sampling(max_tokens=1, temperature=0.0, logprobs=2, allowed_token_ids=[yes, no], detokenize=False)
        outputs = llm.generate(
            [{"prompt_token_ids": list(judgements[index].ids)} for index in of_llm],
            one_token,
            lora_request=[each.adapter for each in asked] if asked[0].adapter else None,
            use_tqdm=False,
        )
        for index, output in zip(of_llm, outputs, strict=True):
            found = {token: each.logprob for token, each in output.outputs[0].logprobs[0].items()}
            yield index, probability(found[yes], found[no])


def probability(log_yes: float, log_no: float) -> float:
    """P(Yes) among the two verdicts, from their log-probabilities among any tokens; either may be minus infinity."""
    difference = log_no - log_yes
    return 0.0 if difference > 700 else 1 / (1 + math.exp(difference))
