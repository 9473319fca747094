"""The local backend with a real, tiny model."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import build_model, build_tokenizer
from tjd import backbone
from tjd.config import BackendConfig
from tjd.errors import ConfigError
from tjd.teacher import Completion, Request, Teacher, asked_again, in_turn, open_teacher, user
from tjd.teacher.generate import choose


def open_tiny(folder: Path, cache: Path | None, batch_size: int = 4) -> Teacher:
    return open_teacher(f"hf:{folder}", BackendConfig(batch_size=batch_size), cache)


def some_requests(n: int, temperature: float = 1.0, seed: int = 0) -> list[Request]:
    return [
        Request(user("tell me " + "more " * (i % 5) + str(i)), temperature=temperature, max_tokens=12, seed=seed)
        for i in range(n)
    ]


def test_completions_come_in_order_with_counts(tiny_model_dir: Path) -> None:
    teacher = open_tiny(tiny_model_dir, None)
    completions = list(teacher.ask(some_requests(11)))
    assert teacher.name == "tiny"
    assert len(completions) == 11
    assert all(c.model == "tiny" and c.text is not None and c.cost_usd == 0.0 for c in completions)
    assert all(c.n_tokens <= 12 and c.finish_reason in ("stop", "length") for c in completions)
    assert all((c.finish_reason == "length") == (c.n_tokens == 12) for c in completions)
    assert teacher.usage.calls == 11
    assert teacher.usage.tokens == sum(c.n_tokens for c in completions)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_does_not_hang_on_its_neighbours(tiny_model_dir: Path, temperature: float) -> None:
    requests = some_requests(9, temperature)
    together = [c.text for c in open_tiny(tiny_model_dir, None, batch_size=9).ask(requests)]
    teacher = open_tiny(tiny_model_dir, None, batch_size=2)
    backwards = [c.text for c in teacher.ask(requests[::-1])][::-1]
    assert together == backwards


def test_greedy_agrees_with_transformers(tiny_model_dir: Path) -> None:
    requests = some_requests(3, temperature=0.0)
    model, tokenizer = backbone.load_model(str(tiny_model_dir)), backbone.load_tokenizer(str(tiny_model_dir))
    mine = open_tiny(tiny_model_dir, None, batch_size=1).ask(requests)
    for request, completion in zip(requests, mine, strict=True):
        ids = tokenizer.apply_chat_template(
            list(request.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            whole = model.generate(**ids, max_new_tokens=12, do_sample=False)
        assert tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == completion.text


def test_seeds_differ_and_repeat(tiny_model_dir: Path) -> None:
    teacher = open_tiny(tiny_model_dir, None)
    first = [c.text for c in teacher.ask(some_requests(3, seed=1))]
    assert first == [c.text for c in teacher.ask(some_requests(3, seed=1))]
    assert first != [c.text for c in teacher.ask(some_requests(3, seed=2))]


def test_a_resumed_run_asks_only_what_is_missing(tiny_model_dir: Path, cache: Path) -> None:
    requests = some_requests(20)
    whole = list(open_tiny(tiny_model_dir, None).ask(requests))
    broken_off = open_tiny(tiny_model_dir, cache)
    next(broken_off.ask(requests))
    broken_off.close()
    resumed = open_tiny(tiny_model_dir, cache)
    assert list(resumed.ask(requests)) == whole
    assert resumed.usage.cached == broken_off.usage.calls == 8
    assert resumed.usage.calls == 12


def test_another_model_of_the_same_name_is_not_taken_from_the_cache(
    tiny_model_dir: Path, cache: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(tiny_model_dir, twin)
    build_model(twin, seed=1)
    list(open_tiny(tiny_model_dir, cache).ask(some_requests(4)))
    other = open_tiny(twin, cache)
    list(other.ask(some_requests(4)))
    assert other.name == "tiny"
    assert other.usage.cached == 0


def test_equal_requests_are_asked_once(tiny_model_dir: Path, cache: Path) -> None:
    teacher = open_tiny(tiny_model_dir, cache)
    one, two = teacher.ask(some_requests(1) * 2)
    assert one == two
    assert teacher.usage.calls == 1


def test_a_follow_up_adds_its_tokens(tiny_model_dir: Path) -> None:
    def again(request: Request, completion: Completion) -> Request | None:
        return asked_again(request, completion, "once more") if "2" in request.messages[0]["content"] else None

    plain = list(open_tiny(tiny_model_dir, None).ask(some_requests(4)))
    asked = list(open_tiny(tiny_model_dir, None).ask(some_requests(4), again))
    assert [a == b for a, b in zip(plain, asked, strict=True)] == [True, True, False, True]
    assert asked[2].n_prompt_tokens > 2 * plain[2].n_prompt_tokens


def test_a_prompt_that_does_not_fit_fails_alone(tiny_model_dir: Path) -> None:
    long, short = open_tiny(tiny_model_dir, None).ask([Request(user("x" * 3000)), Request(user("x"), max_tokens=2)])
    assert long.text is None
    assert "too long" in long.error
    assert short.text is not None


def test_a_base_model_reads_the_plain_text(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    (base / "chat_template.jinja").unlink()
    build_tokenizer(base, chat_template=None)
    (completion,) = open_tiny(base, None).ask([Request(user("abc"), max_tokens=2)])
    assert completion.n_prompt_tokens == 3


def test_a_missing_folder_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"there is no model folder \./nowhere"):
        open_teacher("hf:./nowhere", BackendConfig(), None)


def test_models_that_share_a_name_are_refused(tiny_model_dir: Path) -> None:
    twice = [open_tiny(tiny_model_dir, None), open_tiny(tiny_model_dir, None)]
    with pytest.raises(ConfigError, match="two models are called tiny"):
        next(in_turn(twice))


def test_choose_follows_the_distribution() -> None:
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    draws_B = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    B = len(draws_B)
    ones_B = torch.ones(B)
    drawn_B = choose(logits_V.expand(B, 4), ones_B, ones_B, draws_B)
    assert torch.bincount(drawn_B, minlength=4).tolist() == pytest.approx([500, 300, 150, 50], abs=1)
    nucleus_B = choose(logits_V.expand(B, 4), ones_B, 0.7 * ones_B, draws_B)
    assert torch.bincount(nucleus_B, minlength=4).tolist() == pytest.approx([625, 375, 0, 0], abs=1)
    hot_B = choose(logits_V.expand(B, 4), 1e6 * ones_B, ones_B, draws_B)
    assert torch.bincount(hot_B, minlength=4).tolist() == pytest.approx([250] * 4, abs=1)
    greedy_B = choose(logits_V.expand(B, 4), 0 * ones_B, ones_B, draws_B)
    assert greedy_B.unique().tolist() == [0]


@pytest.mark.slow
def test_the_embedded_model_answers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "TJD_TEST_CACHE" in os.environ:  # a converted model can be reused
        monkeypatch.setenv("TJD_CACHE", os.environ["TJD_TEST_CACHE"])
    teacher = open_teacher("hf:embedded", BackendConfig(), cache)
    (completion,) = teacher.ask([Request(user("What is the capital of France?"), max_tokens=24)])
    assert teacher.name == "SmolLM2-135M-Instruct"
    assert "Paris" in completion.text
