import random
from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from tjd import backbone, prompts
from tjd.judge import fused, tree
from tjd.judge.prompt import VARIABLES, Encoded, Encoder, verdict_ids
from tjd.judge.score import Specialist, score, score_plain, verdict_weight


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return backbone.load_model(str(tiny_model_dir), dtype="float32")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return backbone.load_tokenizer(str(tiny_model_dir))


@pytest.fixture(scope="module")
def specialists(model, tokenizer):
    """One that is the model itself, two with a top layer of their own, and one that reads the trunk."""
    decoder = model.get_decoder()
    weight_D = verdict_weight(model.get_output_embeddings(), verdict_ids(tokenizer))
    others = []
    for seed in (1, 2):
        layers = tree.copied_layers(decoder, 1)
        torch.manual_seed(seed)
        for parameter in layers.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        others.append(Specialist(f"top {seed}", decoder, 1, layers, decoder.norm, weight_D))
    whole = Specialist("whole", decoder, 0, decoder.layers, decoder.norm, weight_D)
    pools = ("last", "response_end", "response", "first_half", "second_half", "constraint", "instruction")
    no_layers, no_norm = torch.nn.ModuleList(), torch.nn.Identity()
    trunk = Specialist("trunk", decoder, 1, no_layers, no_norm, weight_D.repeat(len(pools)), bias=0.5, pools=pools)
    return [whole, *others, trunk]


token = st.integers(3, 200)
run = st.lists(token, min_size=1, max_size=12).map(tuple)
group = st.tuples(
    run,  # an instruction and its responses: empty ones, equal ones, ones cut to nothing but their first tokens
    st.lists(
        st.tuples(st.lists(token, max_size=20).map(tuple), st.lists(run, min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    ),
)


def judgements_of(groups):
    return [Encoded(ids, response, c) for ids, responses in groups for response, cs in responses for c in cs]


@pytest.mark.parametrize("way", [nullcontext, pytest.param(fused.off, marks=pytest.mark.slow)], ids=["fused", "plain"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(group, min_size=1, max_size=4), st.integers(8, 200), st.randoms(use_true_random=False))
def test_trees_give_what_each_judgement_gives_alone(specialists, model, tokenizer, way, groups, budget, rng):
    judgements = judgements_of(groups)
    rng.shuffle(judgements)
    whose = [rng.randrange(len(specialists)) for _ in judgements]
    with way():
        packed = dict(score(specialists, judgements, whose, budget=budget))
    assert sorted(packed) == list(range(len(judgements)))
    for index, (judgement, k) in enumerate(zip(judgements, whose, strict=True)):
        [(_, alone)] = score_plain(specialists[k], [judgement])
        assert packed[index] == pytest.approx(alone, abs=1e-3)
    if 0 in whose:  # the plain model, by way of its own logits
        index = whose.index(0)
        with torch.no_grad():
            logits = model(torch.tensor([judgements[index].ids])).logits[0, -1, list(verdict_ids(tokenizer))]
        assert packed[index] == pytest.approx(torch.softmax(logits.float(), -1)[0].item(), abs=1e-3)


SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.mark.parametrize("config", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_fused_layers_give_what_transformers_layers_give(config, monkeypatch):
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(config(**SIZE, **HEADS)).eval().get_decoder()
    for name, parameter in decoder.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)  # norms and biases start as ones and zeros
    whole = tree.pack(tree.group(judgements_of([((5, 6, 7), [((8, 9), [(10,), (11, 12)]), ((), [(10,)])])])))
    with torch.no_grad():
        for _ in range(2):
            assert fused.can_run(decoder)
            fused_ND = tree.forward(decoder, whole)
            with fused.off():
                assert tree.fits(decoder)  # which turns them off as well
                assert not fused.can_run(decoder)
                plain_ND = tree.forward(decoder, whole)
            torch.testing.assert_close(fused_ND, plain_ND, rtol=1e-4, atol=1e-4)
            decoder.layers[0].mlp.up_proj.weight.mul_(2)  # weights that are still trained are packed anew
    assert not fused.can_run(decoder)  # gradients
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.no_grad():
        assert not fused.can_run(decoder)


def test_layers_with_adapters_or_another_activation_are_left_to_transformers():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE, **HEADS, hidden_act="gelu")).eval()
    with torch.no_grad():
        assert not fused.can_run(model.get_decoder())
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE, **HEADS)).eval()
    with backbone.without_peft_noise():
        adapted = get_peft_model(model, LoraConfig(target_modules=["up_proj"]))
    with torch.no_grad():
        assert not fused.can_run(adapted.get_decoder())


def test_gradients_through_shared_tokens_are_those_of_each_judgement_alone(model):
    decoder = model.get_decoder()
    judgements = judgements_of([((5, 6, 7), [((8, 9), [(10,), (11, 12)]), ((13,), [(10,)])])])
    layer = decoder.layers[0].self_attn.k_proj.weight

    def gradient(states_JD):
        return torch.autograd.grad((states_JD * torch.arange(32).cos()).pow(2).sum(), layer)[0]

    whole = tree.pack(tree.group(judgements))
    together = gradient(tree.forward(decoder, whole)[whole.read_J])
    alone = gradient(tree.pool_each(decoder, judgements))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert together.abs().max() > 0.1


def test_a_tree_holds_every_shared_token_once():
    judgements = judgements_of([((1, 2, 3), [((4, 5), [(6,), (7, 8)]), ((), [(6,)])])])
    whole = tree.pack(tree.group([*judgements, judgements[0]]))
    assert whole.ids_N.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 6]
    assert whole.position_N.tolist() == [0, 1, 2, 3, 4, 5, 5, 6, 3]
    assert whole.members == ((0, 3), (1,), (2,))
    assert whole.read_J.tolist() == [5, 7, 8]


def test_batches_keep_the_budget_by_cutting_groups_between_responses():
    judgements = judgements_of(
        [((1,) * 10, [((n,) * 20, [(5,), (6,)]) for n in range(2, 9)]), ((9,), [((9,), [(9,)])])]
    )
    batches = list(tree.batches(judgements, 60))
    assert all(sum(g.n_tokens for g in batch) <= 60 for batch in batches)
    members = [i for b in batches for g in b for r in g.responses for same in r.constraints.values() for i in same]
    assert sorted(members) == list(range(len(judgements)))
    assert [len(b) for b in tree.batches(judgements[:1], 4)] == [1]  # larger than the budget: a batch of its own


def test_a_long_response_does_not_pad_all_others():
    run = range(10, 2000)
    groups = [((n,), [((n, *run[:size]), [(5,)]) for size in (*range(40, 65), 1500, *range(65, 90))]) for n in (3, 4)]
    batches = list(tree.batches(judgements_of(groups), 4096))
    members = [i for b in batches for g in b for r in g.responses for same in r.constraints.values() for i in same]
    assert sorted(members) == list(range(102))
    assert all(tree.pack(batch).levels[1].query_BT.numel() <= tree.PADDING * 4096 for batch in batches)
    assert len(batches) <= 4


def test_responses_of_one_length_keep_their_order_and_fill_a_batch():
    groups = [((n,) * 10, [((n, k) * 10, [(5,), (6,)]) for k in range(8)]) for n in range(3, 9)]
    judgements = judgements_of(groups)
    whole = tree.group(judgements)
    assert list(tree.batches(judgements, 2 * whole[0].n_tokens)) == [whole[0:2], whole[2:4], whole[4:6]]


def test_the_part_of_a_tree_is_the_tree_of_the_part():
    rng = random.Random(0)
    judgements = judgements_of(
        [((n, n), [((n, k), [(k, c) for c in range(3)]) for k in range(3)]) for n in range(10, 14)]
    )
    groups = tree.group(judgements)
    wanted = set(rng.sample(range(len(judgements)), 9))
    kept, places = tree.select(groups, wanted)
    assert torch.equal(tree.pack(groups).ids_N[places], tree.pack(kept).ids_N)
    assert {i for members in tree.pack(kept).members for i in members} == wanted


def test_a_decoder_with_another_kind_of_attention_is_scored_without_trees(tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=4, **sizes)
    other = MistralForCausalLM(config).eval()
    decoder = other.get_decoder()
    weight_D = verdict_weight(other.get_output_embeddings(), verdict_ids(tokenizer))
    judge = Specialist("mistral", decoder, 0, decoder.layers, decoder.norm, weight_D)
    judgements = judgements_of([((5, 6, 7, 8), [((9, 10, 11), [(12,), (13, 14)])])])
    assert not tree.fits(decoder)
    scored = dict(score([judge], judgements, [0, 0]))
    with torch.no_grad():
        logits = other(torch.tensor([judgements[1].ids])).logits[0, -1, list(verdict_ids(tokenizer))]
    assert scored[1] == pytest.approx(torch.softmax(logits, -1)[0].item(), abs=1e-4)


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
