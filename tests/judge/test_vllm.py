"""The wiring of vLLM, which is not installed: a stand-in of its interface that runs the same weights through transformers."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import PeftModel

from tests.test_cli import fails, labels, tjd
from tjd import backbone
from tjd.errors import ConfigError
from tjd.judge import ensemble, tree
from tjd.judge.vllm import probability

ROWS = [
    {"query": query, "response": response, "constraint": constraint, "category": category}
    for query in ("Greet me.", "Count to three.")
    for response in ("Hello!", "one two", "")
    for constraint in ("Be kind.", "Use a list.")
    for category in ("style", "structure")
]


class StandIn:
    """`vllm.LLM`: what it is started with, what it is asked, and the log-probabilities of the allowed tokens alone."""

    started: list["StandIn"] = []  # noqa: RUF012

    def __init__(self, model, **settings):
        self.model, self.settings, self.prompts = model, settings, []
        StandIn.started.append(self)

    def generate(self, prompts, params, *, lora_request, use_tqdm):
        assert self.settings["logprobs_mode"] == "processed_logprobs"
        assert self.settings["enable_prefix_caching"]
        assert (params.max_tokens, params.logprobs, use_tqdm) == (1, 2, False)
        requests = lora_request or [None] * len(prompts)
        outputs = []
        for prompt, request in zip(prompts, requests, strict=True):
            ids = prompt["prompt_token_ids"]
            assert len(ids) < self.settings["max_model_len"]
            self.prompts.append((request.lora_name if request else None, tuple(ids)))
            model = backbone.load_model(self.model, dtype=self.settings["dtype"])
            if request:
                assert request.lora_int_id > 0
                with backbone.without_peft_noise():
                    model = PeftModel.from_pretrained(model, request.lora_path)
            with torch.inference_mode():
                logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
            allowed = torch.log_softmax(logits_V[params.allowed_token_ids], 0).tolist()
            found = {
                i: SimpleNamespace(logprob=value) for i, value in zip(params.allowed_token_ids, allowed, strict=True)
            }
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(logprobs=[found])]))
        return outputs


@pytest.fixture
def stand_in(monkeypatch):
    root, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    root.__spec__ = SimpleNamespace(name="vllm")  # what find_spec looks at
    root.LLM, root.SamplingParams = StandIn, SimpleNamespace
    request.LoRARequest = lambda name, number, path: SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=path)
    for module in (root, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(StandIn, "started", [])


def trained(tmp_path, tiny_model_dir, *options):
    rows = [
        {"query_id": f"q{i}", "category": category, "response": "ab" * (i + 1), "followed": i % 2 == 0, "split": split}
        for split in ("train", "validation", "test")
        for category in ("style", "structure")
        for i in range(4)
    ]
    rows = [row | {"query_id": f"{row['split']}{row['query_id']}"} for row in rows]
    command = ("train-judge", labels(tmp_path / "l.parquet", *rows), "-b", tiny_model_dir, "-o", tmp_path / "judges",
               "-c", "style", "-c", "structure", "--epochs", 1, "--dtype", "float32")  # fmt: skip
    assert tjd(*command, *options).exit_code == 0
    return tmp_path / "judges"


@pytest.mark.parametrize("full", [True, False])
def test_scores_are_those_of_transformers_and_prompts_those_of_the_trees(stand_in, tmp_path, tiny_model_dir, full):
    judges = trained(tmp_path, tiny_model_dir, "--learning-rate", 1e-2, *(["--full"] if full else []))
    own, served = (ensemble.load(judges, dtype="float32", engine=engine) for engine in ("transformers", "vllm"))
    expected, found = own.score(ROWS), served.score(ROWS)
    assert [v.score for v in found] == pytest.approx([v.score for v in expected], abs=1e-5)
    assert [(v.followed, v.judge, v.threshold) for v in found] == [(v.followed, v.judge, v.threshold) for v in expected]
    assert len({round(v.score, 4) for v in found}) >= 8
    read = {
        whole.ids + response.ids + constraint
        for groups in tree.batches([own.encoder(row) for row in ROWS], 10_000)
        for whole in groups
        for response in whole.responses
        for constraint in response.constraints
    }
    assert len(StandIn.started) == (2 if full else 1)
    for engine in StandIn.started:
        assert {ids for _, ids in engine.prompts} == read
        names = list(dict.fromkeys(name for name, _ in engine.prompts))
        assert engine.prompts == sorted(engine.prompts, key=lambda prompt: (names.index(prompt[0]), prompt[1]))
        assert "enable_lora" not in engine.settings if full else engine.settings["max_loras"] == 2


def test_without_vllm_and_for_what_it_cannot_serve_there_is_one_line(tmp_path, tiny_model_dir):
    judges = trained(tmp_path, tiny_model_dir)
    row = tmp_path / "l.parquet"
    line = "--engine vllm needs the package vllm, which is not installed: pip install vllm"
    assert fails(2, "score", row, "-j", judges, "-o", tmp_path / "s.parquet", "--engine", "vllm") == line
    assert fails(2, "eval-judge", row, "-j", judges, "--engine", "vllm") == line
    manifest = json.loads((judges / "manifest.json").read_text())
    large = manifest["config"] | {"lora_rank": 600}
    (judges / "manifest.json").write_text(json.dumps(manifest | {"config": large}))
    with pytest.raises(ConfigError, match="vLLM takes adapters of rank 512 at most, and these have 600"):
        ensemble.load(judges, engine="vllm")
    (judges / "manifest.json").write_text(json.dumps(manifest | {"head": "probe"}))
    with pytest.raises(ConfigError, match="these judges have the head 'probe'; leave --engine out"):
        ensemble.load(judges, engine="vllm")


def test_the_probability_is_among_the_two_verdicts():
    assert probability(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert probability(-math.inf, -2.0) == 0
    assert probability(-2.0, -math.inf) == 1
    assert probability(-1e4, -1.0) == 0
