import math
import random

import pytest
import torch

from tjd import backbone
from tjd.config import TrainJudgeConfig
from tjd.errors import TrainingError
from tjd.judge.prompt import Encoded, verdict_ids
from tjd.judge.train import (
    Example,
    add_adapter,
    class_weights,
    epoch_batches,
    first_adapted_layer,
    fit,
    predict,
    validation_loss,
)


def toy(tokenizer, n, seed):
    """Followed if and only if the letter `a` stands in the text: separable, but not by length or position."""
    rng = random.Random(seed)
    examples = []
    for _ in range(n):
        followed = rng.random() < 0.4
        letters = [rng.choice("bcdefgh") for _ in range(rng.randrange(4, 12))]
        if followed:
            letters[rng.randrange(len(letters))] = "a"
        ids = tuple(tokenizer.encode("".join(letters), add_special_tokens=False))
        asked = tuple(tokenizer.encode("?", add_special_tokens=False))
        examples.append(Example(Encoded(ids[:2], ids[2:], asked), followed, "style"))
    return examples


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return backbone.load_tokenizer(str(tiny_model_dir))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"full": True, "learning_rate": 3e-3}, marks=pytest.mark.slow),
        {"lora_rank": 32, "learning_rate": 1e-2},
        pytest.param({"lora_rank": 32, "learning_rate": 1e-2, "lora_layers": 1, "epochs": 25}, marks=pytest.mark.slow),
    ],
    ids=["full", "lora", "top-layer"],
)
def test_a_judge_learns_what_can_be_learnt(tiny_model_dir, tokenizer, settings):
    config = TrainJudgeConfig(base=str(tiny_model_dir), **{"epochs": 15, "patience": 15, "batch_size": 32, **settings})
    model = backbone.load_model(config.base, dtype="float32")
    model = model if config.full else add_adapter(model, config)
    train, validation, test = (toy(tokenizer, n, seed) for seed, n in enumerate((600, 100, 200)))
    history = fit(model, train, validation, verdict_ids(tokenizer), config)
    said = predict(model, test, verdict_ids(tokenizer)) >= 0.5
    accuracy = sum(a == example.followed for a, example in zip(said, test, strict=True)) / len(test)
    assert accuracy >= 0.95
    assert history[-1]["loss"] < history[0]["loss"] / 2


def test_a_judge_with_another_kind_of_attention_is_trained_without_trees(tiny_model_dir, tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=16, **sizes)
    config = TrainJudgeConfig(base=str(tiny_model_dir), learning_rate=1e-2, lora_layers=1, epochs=3, patience=3)
    model = add_adapter(MistralForCausalLM(shape), config)
    history = fit(model, toy(tokenizer, 120, 0), toy(tokenizer, 30, 1), verdict_ids(tokenizer), config)
    assert history[-1]["validation_loss"] < 0.69
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_best_epoch_is_kept_and_training_stops_when_validation_gets_worse(tiny_model_dir, tokenizer):
    config = TrainJudgeConfig(base=str(tiny_model_dir), epochs=10, patience=1, learning_rate=3e-2, lora_rank=8)
    model = add_adapter(backbone.load_model(config.base, dtype="float32"), config)
    train, other = toy(tokenizer, 40, 0), toy(tokenizer, 60, 1)
    validation = [Example(e.encoded, not e.followed, e.category) for e in other]  # the opposite of what is learnt
    history = fit(model, train, validation, verdict_ids(tokenizer), config)
    losses = [row["validation_loss"] for row in history if row["validation_loss"] is not None]
    assert len(losses) < 10
    kept = validation_loss(validation, predict(model, validation, verdict_ids(tokenizer)))
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_training_twice_gives_the_same_weights(tiny_model_dir, tokenizer):
    config = TrainJudgeConfig(base=str(tiny_model_dir), epochs=1, learning_rate=1e-2)
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = add_adapter(backbone.load_model(config.base, dtype="float32"), config)
        fit(model, toy(tokenizer, 40, 0), [], verdict_ids(tokenizer), config)
        weights.append(torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_a_loss_that_is_not_a_number_stops_training(tiny_model_dir, tokenizer):
    config = TrainJudgeConfig(base=str(tiny_model_dir), full=True, learning_rate=1e30, epochs=3)
    model = backbone.load_model(config.base, dtype="float32")
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        fit(model, toy(tokenizer, 64, 0), [], verdict_ids(tokenizer), config)


def test_both_classes_of_a_category_weigh_the_same():
    one = Encoded((1,), (1,), (1,))
    examples = [Example(one, i < 3, "style") for i in range(12)] + [Example(one, i < 1, "layout") for i in range(40)]
    weights = class_weights(examples)
    assert weights["style", True] * 3 == pytest.approx(weights["style", False] * 9)
    assert weights["layout", True] == 8.0  # the cap


def test_an_epoch_sees_every_example_once_and_an_instruction_in_few_batches():
    examples = [Example(Encoded((i % 50,), (1,), (1,)), True, "style", str(i)) for i in range(203)]
    batches = epoch_batches(examples, 8, seed=1)
    assert sorted(e.query_id for batch in batches for e in batch) == sorted(e.query_id for e in examples)
    assert len(batches) == math.ceil(203 / 8)
    assert epoch_batches(examples, 8, seed=1) == batches != epoch_batches(examples, 8, seed=2)
    places = {(e.encoded.instruction, place) for place, batch in enumerate(batches) for e in batch}
    assert len(places) <= 50 + len(batches)  # at most one more for each border between two batches


def test_only_lora_on_the_top_layers_leaves_a_trunk():
    assert first_adapted_layer(TrainJudgeConfig(lora_layers=10), 30) == 20
    assert first_adapted_layer(TrainJudgeConfig(lora_layers=0), 30) == 0
    assert first_adapted_layer(TrainJudgeConfig(lora_layers=10, full=True), 30) == 0
    assert first_adapted_layer(TrainJudgeConfig(lora_layers=40), 30) == 0
