import random

import pytest
import torch

from tjd import backbone, prompts
from tjd.judge.prompt import VARIABLES, Encoder, verdict_ids
from tjd.judge.score import (
    batches_by_length,
    decoder_and_head,
    last_hidden,
    last_hidden_from,
    score,
    score_states,
    trunk_is_separable,
    trunk_states,
)


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return backbone.load_model(str(tiny_model_dir), dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return backbone.load_tokenizer(str(tiny_model_dir))


@pytest.fixture
def sequences(tokenizer):
    rng = random.Random(0)
    ids = [tuple(rng.randrange(3, len(tokenizer)) for _ in range(rng.randrange(2, 40))) for _ in range(30)]
    return [*ids, ids[0], ids[7]]


def test_batched_scores_equal_scoring_each_row_alone_with_the_plain_model(model, tokenizer, sequences):
    verdicts = verdict_ids(tokenizer)
    batched = dict(score(model, sequences, verdicts, budget=128))
    assert sorted(batched) == list(range(len(sequences)))
    for index, ids in enumerate(sequences):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        alone = torch.softmax(logits[list(verdicts)].float(), dim=-1)[0].item()
        assert batched[index] == pytest.approx(alone, abs=1e-5)


def test_going_on_from_the_trunk_equals_running_all_layers(model, tokenizer, sequences):
    verdicts = verdict_ids(tokenizer)
    decoder, _ = decoder_and_head(model)
    states = trunk_states(decoder, sequences, 1, budget=64)
    whole = dict(score(model, sequences, verdicts))
    parts = dict(score_states(model, states, verdicts, 1, budget=64))
    assert parts == pytest.approx(whole, abs=1e-5)
    assert trunk_is_separable(decoder, 1, sequences[0])
    torch.testing.assert_close(last_hidden(decoder, sequences[:3]), last_hidden_from(decoder, states[:3], 1))
    assert len(decoder.layers) == 2  # put back


def test_batches_keep_the_budget_and_run_equal_sequences_once():
    sequences = [(1,) * n for n in (5, 3, 9, 5, 1)]
    batches = list(batches_by_length(sequences, budget=10))
    assert sorted(i for indices, _ in batches for same in indices for i in same) == [0, 1, 2, 3, 4]
    assert all(len(batch) * max(map(len, batch)) <= 10 for _, batch in batches)
    assert sum(len(batch) for _, batch in batches) == 4


def test_a_sequence_longer_than_the_budget_still_gets_its_batch():
    assert [batch for _, batch in batches_by_length([(1,) * 20], budget=4)] == [[(1,) * 20]]


@pytest.fixture(scope="module")
def encoder(tokenizer):
    prompt = prompts.load("judge.v1", VARIABLES)
    return Encoder(tokenizer, prompt, max_instruction_tokens=8, max_response_tokens=6)


def test_prefixes_are_shared_across_responses_and_constraints(encoder):
    row = {"instruction": "Write.", "response": "a", "constraint": "Be kind."}
    first, other_response, other_constraint = (
        encoder(row),
        encoder(row | {"response": "something else"}),
        encoder(row | {"constraint": "Be short."}),
    )
    assert first.instruction == other_response.instruction == other_constraint.instruction
    assert first.response == other_constraint.response
    assert first.ids == first.instruction + first.response + first.constraint
    assert len(first) == len(first.ids)


def test_long_responses_lose_their_end_and_long_instructions_their_middle(encoder):
    row = {"instruction": "abcdefghijkl", "response": "0123456789", "constraint": "c"}
    text = encoder.tokenizer.decode(encoder(row).ids)
    assert "abcdijkl" in text.replace(" ", "")
    assert "012345" in text.replace(" ", "")
    assert "0123456" not in text.replace(" ", "")


def test_a_response_cannot_end_the_turn(encoder, tokenizer):
    marker = tokenizer.eos_token
    plain = encoder({"instruction": "x", "response": "a", "constraint": "c"})
    attack = encoder({"instruction": "x", "response": marker, "constraint": "c"})
    assert tokenizer.eos_token_id not in attack.response
    assert attack.ids.count(tokenizer.eos_token_id) == plain.ids.count(tokenizer.eos_token_id)


def test_without_an_instruction_the_query_is_read(encoder):
    assert encoder({"query": "q", "response": "a", "constraint": "c"}) == encoder(
        {"query": "z", "instruction": "q", "response": "a", "constraint": "c"}
    )
