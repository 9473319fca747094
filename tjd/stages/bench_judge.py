"""Bench-judge: what a verdict costs, side by side with other ways to get it on the same judgements and machine.

In: the shape of a model and of the work: instructions, responses to each, constraints on each response, and their lengths
in tokens. Out: one row per contestant and round. Contestants take turns within a round, so that what else the machine does
falls on all of them. Weights do not change the cost, so random ones measure a machine without a hub.
"""

import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from tjd import backbone
from tjd.config import BenchJudgeConfig
from tjd.errors import ConfigError
from tjd.judge import fused, tree
from tjd.judge.prompt import Encoded
from tjd.judge.score import Specialist, score, score_plain
from tjd.tables import Row

SCHEMA = pa.schema(
    {
        "contestant": pa.string(),
        "round": pa.int64(),
        "seconds": pa.float64(),
        "n_verdicts": pa.int64(),
        "n_responses": pa.int64(),
        "n_tokens": pa.int64(),  # distinct ones: what a perfect sharer computes
        "peak_share": pa.float64(),  # of the measured matrix peak, counting multiplications on distinct tokens alone
        "memory_bytes": pa.int64(),  # the process's high-water mark so far, or the device's within the round
    }
)

SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "smollm2-135m": lambda: LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
    "qwen3-0.6b": lambda: Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=40960,
    ),
}  # fmt: skip

Runner = Callable[[Sequence[Encoded]], object]
BATCH = 8  # rows at once where a contestant cuts batches by rows


def bench_judge(config: BenchJudgeConfig, on_round: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Time every contestant on the same judgements, in turn, for some rounds after one to warm up.

    Raises:
        ConfigError: An unknown shape or contestant, or a layer that the shape lacks.
    """
    shape = _shape(config.shape)
    n_layers = shape.get_text_config().num_hidden_layers
    for name in ("top_layers", "probe_layer"):
        if (wanted := getattr(config, name)) > n_layers:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be at most {n_layers}, this shape's layers, not {wanted}"
            )
    device, dtype = (
        backbone.choose_device(config.device),
        backbone.choose_dtype(config.dtype, backbone.choose_device(config.device)),
    )
    backbone.prepare(device)  # as loading a model does
    peak = matrix_peak(device, dtype)
    judgements = work(config, shape.vocab_size)
    n_tokens = sum(whole.n_tokens for whole in tree.group(judgements))
    contestants = {
        name: runner
        for name, build in _contestants(config, shape, device, dtype)
        if name in (config.contestant or (name,)) and (runner := build()) is not None
    }
    unknown = [name for name in config.contestant if name not in contestants]
    if unknown:
        raise ConfigError(f"there is no contestant '{unknown[0]}' for this work")
    n_parameters = _matrix_parameters(shape)
    rows: list[Row] = []
    for number in range(config.rounds + 1):
        for name, run in contestants.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            run(judgements)
            _wait(device)
            seconds = time.perf_counter() - start
            if number == 0:
                continue
            rows.append(
                {
                    "contestant": name,
                    "round": number,
                    "seconds": seconds,
                    "n_verdicts": len(judgements),
                    "n_responses": config.instructions * config.group_size,
                    "n_tokens": n_tokens,
                    "peak_share": 2 * n_parameters * n_tokens / seconds / peak,
                    "memory_bytes": _memory(device),
                }
            )
            on_round(rows[-1])
    return rows


def work(config: BenchJudgeConfig, vocabulary: int) -> list[Encoded]:
    """Judgements of random tokens; each constraint of a response belongs to the next specialist in turn."""
    rng = random.Random(config.seed)

    def run(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(n))

    judgements = []
    for _ in range(config.instructions):
        instruction = run(config.instruction_tokens)
        for _ in range(config.group_size):
            response = run(config.response_tokens)
            judgements += [
                Encoded(instruction, response, run(config.constraint_tokens)) for _ in range(config.constraints)
            ]
    return judgements


def matrix_peak(device: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """The machine's multiplications and additions per second on square matrices: the best of a few sizes."""
    best = 0.0
    for size in (1024, 2048, 4096) if device == "cpu" else (4096, 8192):
        a = torch.randn(size, size, dtype=dtype, device=device)
        torch.mm(a, a)
        _wait(device)
        start, n = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            torch.mm(a, a)
            _wait(device)
            n += 1
        best = max(best, 2 * size**3 * n / (time.perf_counter() - start))
    return best


def _contestants(
    config: BenchJudgeConfig, shape: PretrainedConfig, device: str, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[], Runner | None]]]:
    """Each contestant's name, and what builds it: null where a package is missing. One that is left out takes no memory."""

    @cache
    def model() -> Any:
        return _random(AutoModelForCausalLM, shape, device, dtype)

    @cache
    def classifier() -> Any:
        return _random(AutoModelForSequenceClassification, _with_labels(shape), device, dtype)

    def judges(n: int, first_layer: int, *, own: bool) -> list[Specialist]:
        """Specialists with copies of the layers from one on, or that read what enters it."""
        decoder, head = model().get_decoder(), model().get_output_embeddings()
        weight_D = (head.weight[5] - head.weight[6]).float()
        norm = decoder.norm if own else torch.nn.Identity()
        return [
            Specialist(
                f"judge {k}",
                decoder,
                first_layer,
                tree.copied_layers(decoder, first_layer) if own else torch.nn.ModuleList(),
                norm,
                weight_D,
            )
            for k in range(n)
        ]

    def one() -> Specialist:
        [judge] = judges(1, 0, own=False)
        return replace(judge, layers=judge.decoder.layers, norm=judge.decoder.norm)

    def trees(judges: Sequence[Specialist]) -> Runner:
        return lambda js: list(score(judges, js, [i % len(judges) for i in range(len(js))], budget=config.budget))

    def unfused() -> Runner:
        run = trees([one()])
        return lambda js: _unfused(run, js)

    def plain() -> Runner:
        judge = one()
        return lambda js: list(score_plain(judge, js, budget=config.budget))

    n = config.constraints
    first_own = shape.get_text_config().num_hidden_layers - config.top_layers
    yield "tjd, one judge", lambda: trees([one()])
    if n > 1:
        yield f"tjd, {n} judges, top {config.top_layers} layers", lambda: trees(judges(n, first_own, own=True))
    yield f"tjd, probes of layer {config.probe_layer}", lambda: trees(judges(n, config.probe_layer, own=False))
    if device == "cpu":
        yield "tjd, one judge, transformers' layers", unfused
    yield "tjd without trees", plain
    yield "transformers, batches of 8", lambda: partial(_in_batches, model(), device=device)
    yield "TRL's reward model path", lambda: partial(_classified, classifier(), device=device)
    yield "generative judge, 16 tokens", lambda: partial(_generated, model(), device=device)
    yield "sentence-transformers CrossEncoder", lambda: _cross_encoder(classifier)


def _random(auto: Any, shape: PretrainedConfig, device: str, dtype: torch.dtype) -> Any:
    """A model of random weights."""
    with torch.device("meta"):
        model = auto.from_config(shape, dtype=dtype)
    model = model.to_empty(device=device).eval()
    _fill(model)
    return model


def _unfused(run: Runner, judgements: Sequence[Encoded]) -> None:
    """Trees alone: what sharing gains without `fused`."""
    with fused.off():
        run(judgements)


def _in_batches(model: Any, judgements: Sequence[Encoded], device: str) -> None:
    """Rows sorted by length, padded, eight at once; the vocabulary is projected at the last position alone."""
    order = sorted(judgements, key=len, reverse=True)
    for start in range(0, len(order), BATCH):
        ids_BT, mask_BT = _padded([judgement.ids for judgement in order[start : start + BATCH]], device)
        with torch.inference_mode():
            model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, logits_to_keep=1).logits.float().softmax(
                -1
            )


def _classified(model: Any, judgements: Sequence[Encoded], device: str) -> None:
    """As GRPOTrainer asks a reward model: all rows of a step padded into one batch, a score per row."""
    for start in range(0, len(judgements), 64):
        ids_BT, mask_BT = _padded([judgement.ids for judgement in judgements[start : start + 64]], device)
        with torch.inference_mode():
            model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0].tolist()


def _generated(model: Any, judgements: Sequence[Encoded], device: str) -> None:
    """A judge that writes its verdict: 16 tokens per row, eight rows at once, with a key-value cache."""
    order = sorted(judgements, key=len, reverse=True)
    for start in range(0, len(order), BATCH):
        ids_BT, mask_BT = _padded([judgement.ids for judgement in order[start : start + BATCH]], device)
        model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            max_new_tokens=16,
            min_new_tokens=16,
            do_sample=False,
            pad_token_id=0,
        )


def _cross_encoder(build: Callable[[], Any]) -> Runner | None:
    """sentence-transformers on the classifier that is built, fed texts; needs the embedded tokenizer and the package."""
    try:
        from sentence_transformers import CrossEncoder  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    import tempfile

    try:
        tokenizer = backbone.load_tokenizer(backbone.EMBEDDED)
    except ConfigError:
        return None
    classifier = build()
    if len(tokenizer) > classifier.config.vocab_size:
        return None
    with tempfile.TemporaryDirectory() as folder:
        classifier.config.pad_token_id = tokenizer.pad_token_id
        classifier.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        device = next(classifier.parameters()).device
        encoder = CrossEncoder(folder, device=str(device), model_kwargs={"dtype": classifier.dtype})
    words = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    words = [word for word in words if word.startswith(" ") and word.strip().isalpha()]  # one token each, also in a row

    def text(ids: tuple[int, ...]) -> str:
        return "".join(words[i % len(words)] for i in ids)

    texts: dict[Encoded, tuple[str, str]] = {}

    def run(judgements: Sequence[Encoded]) -> None:
        for judgement in judgements:
            if judgement not in texts:  # in the round that warms up
                texts[judgement] = (text(judgement.instruction), text(judgement.response + judgement.constraint))
        pairs = [texts[judgement] for judgement in judgements]
        encoder.predict(pairs, batch_size=32, show_progress_bar=False)

    return run


def _shape(name: str) -> PretrainedConfig:
    if name in SHAPES:
        return SHAPES[name]()
    if Path(name).expanduser().is_dir() or name == backbone.EMBEDDED:
        return AutoConfig.from_pretrained(backbone.resolve(name))
    raise ConfigError(f"--shape must be one of {', '.join(SHAPES)}, 'embedded' or a model folder, not '{name}'")


def _with_labels(shape: PretrainedConfig) -> PretrainedConfig:
    settings = shape.to_dict() | {"num_labels": 1, "pad_token_id": 0}
    return type(shape).from_dict(settings)


def _fill(model: Any) -> None:
    """Random weights of a sane size; buffers, which hold rotary frequencies, as the architecture computes them."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if hasattr(module, "inv_freq"):
                frequencies, _ = module.compute_default_rope_parameters(module.config)
                module.inv_freq.copy_(frequencies)
                module.original_inv_freq.copy_(frequencies)


def _matrix_parameters(shape: PretrainedConfig) -> int:
    """Weights that every token meets in a matrix product: those of the layers, not the embeddings."""
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(shape).get_decoder()
    return sum(p.numel() for p in decoder.layers.parameters() if p.dim() == 2)


def _padded(sequences: Sequence[tuple[int, ...]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, T], padded on the left as for generation."""
    width = max(map(len, sequences))
    ids_BT = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in sequences], device=device)
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences], device=device)
    return ids_BT, mask_BT


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(device: str) -> int:
    return (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def summary(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """Per contestant: the median's cost, the slowest rounds' (95th percentile), and the median in units of the first's."""
    first = rows[0]["contestant"]
    out = []
    for name in dict.fromkeys(row["contestant"] for row in rows):
        mine = [row for row in rows if row["contestant"] == name]
        seconds = [row["seconds"] for row in mine]
        median, slow = np.median(seconds), np.percentile(seconds, 95)
        reference = np.median([row["seconds"] for row in rows if row["contestant"] == first])
        out.append(
            {
                "contestant": name,
                "ms_per_verdict": float(1000 * median / mine[0]["n_verdicts"]),
                "ms_per_response": float(1000 * median / mine[0]["n_responses"]),
                "ms_per_response_p95": float(1000 * slow / mine[0]["n_responses"]),
                "verdicts_per_s": float(mine[0]["n_verdicts"] / median),
                "times_the_first": float(median / reference),
                "peak_share": float(np.median([row["peak_share"] for row in mine])),
                "memory_gb": max(row["memory_bytes"] for row in mine) / 1e9,
            }
        )
    return out
