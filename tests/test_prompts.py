"""Prompts: strict templates, and a golden rendering of each; `make golden` rewrites them."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tjd import prompts, taxonomy
from tjd.benchmarks import cfbench, followbench
from tjd.config import LabelConfig, SynthesizeConfig
from tjd.errors import PromptError
from tjd.prompts import Prompt
from tjd.resources import folder
from tjd.stages import label, synthesize
from tjd.teacher import verdicts, verification

GOLDEN = Path(__file__).parent / "golden" / "prompts"
ROW = {
    "query_id": "q1",
    "query": "Tell me how tides work. It costs $5 {or so}.",
    "instruction": "As an old harbour pilot, tell me how tides work in at most 80 words. It costs $5 {or so}.",
    "response": "Twice a day the moon leans on the water.\nYou feel it in the keel.",
    "constraints": [
        {"constraint_id": "q1/rule-0", "kind": "rule", "category": None, "text": "Use at most 80 words.", "checker": "x",
         "kwargs": "{}"},
        {"constraint_id": "q1/soft-0", "kind": "soft", "category": "style", "text": "Speak as an old harbour pilot.",
         "checker": None, "kwargs": None},
        {"constraint_id": "q1/soft-1", "kind": "soft", "category": "semantic", "text": "Name one tide that was felt.",
         "checker": None, "kwargs": None},
    ],
}  # fmt: skip


def rendered_synthesize() -> str:
    prompt = prompts.load("synthesize.v1", synthesize.VARIABLES)
    row = {**ROW, "constraints": ROW["constraints"][:1]}
    request = synthesize.request_of(row, ("style", "semantic"), prompt, SynthesizeConfig(), taxonomy.load())
    return request.messages[0]["content"]


def rendered_label(mode: str, **form) -> str:
    prompt = prompts.load(verdicts.prompt_name(mode, **form), verdicts.VARIABLES[mode])
    config = LabelConfig(mode=mode, **form)
    question = label.questions(ROW, mode)[0]
    return label.requests_of(ROW, question, prompt, config)[0].messages[0]["content"]


def rendered_judge() -> str:
    prompt = prompts.load("judge.v1", ("instruction", "response", "constraint"))
    return prompt.render(instruction=ROW["instruction"], response=ROW["response"], constraint="Speak as an old pilot.")


def rendered_again() -> str:
    return prompts.load("again.v1", ("reason",)).render(reason="neither Yes nor No")


def rendered_verify() -> str:
    prompt = prompts.load("verify.v1", verification.VARIABLES)
    request = verification.verification_request(prompt, ROW["query"], ROW["instruction"], ROW["constraints"])
    return request.messages[0]["content"]


def rendered_followbench() -> str:
    row = {
        "level": 2,
        "details": json.dumps({"path": ["Name a river.", "Name a long river.", "Name a long, cold river."]}),
    }
    return prompts.load(followbench.PROMPT, followbench.VARIABLES).render(**followbench.ask(row, ROW["response"]))


def rendered_cfbench() -> str:
    row = {"query": "写一首关于雨的诗。", "details": json.dumps({"gold": ""}),
           "constraints": [{"text": "是一首诗"}, {"text": "主题是雨"}]}  # fmt: skip
    return prompts.load(cfbench.PROMPT, cfbench.VARIABLES).render(**cfbench.ask(row, "雨落山城\n$5"))


RENDERINGS = {
    "synthesize.v1": rendered_synthesize,
    "label.pointwise.v1": lambda: rendered_label("pointwise"),
    "label.batch.v1": lambda: rendered_label("batch"),
    "label.pointwise.json.v1": lambda: rendered_label("pointwise", format="json"),
    "label.pointwise.rationale.v1": lambda: rendered_label("pointwise", format="json", rationale=True),
    "label.batch.json.v1": lambda: rendered_label("batch", format="json"),
    "label.batch.rationale.v1": lambda: rendered_label("batch", format="json", rationale=True),
    "judge.v1": rendered_judge,
    "again.v1": rendered_again,
    "verify.v1": rendered_verify,
    "followbench.v1": rendered_followbench,
    "cfbench.v1": rendered_cfbench,
}


@pytest.mark.parametrize("name", RENDERINGS)
def test_the_rendering_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    rendered = RENDERINGS[name]() + "\n"
    if os.environ.get("TJD_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rendered, encoding="utf-8")
    assert rendered == path.read_text(encoding="utf-8")


def test_every_shipped_prompt_has_a_golden_rendering() -> None:
    assert {path.stem for path in folder("prompts").glob("*.md")} == set(RENDERINGS)


def test_a_variable_nobody_gave_is_told() -> None:
    with pytest.raises(PromptError, match=r"prompt p asks for \$b, which nobody gives; its variables must be \['a'\]"):
        Prompt("p", "$a $b").render(a="1")


def test_a_variable_nobody_uses_is_told() -> None:
    with pytest.raises(PromptError, match=r"prompt p does not use \$b"):
        Prompt("p", "$a").render(a="1", b="2")


def test_a_stray_dollar_is_told() -> None:
    with pytest.raises(PromptError, match=r"prompt p has a stray '\$'; write '\$\$'"):
        Prompt("p", "costs $ 5").render()


@given(st.text())
def test_values_are_inserted_as_they_are(value: str) -> None:
    assert Prompt("p", "<$a>").render(a=value) == f"<{value}>"


def test_an_unknown_prompt_is_told_with_those_there_are() -> None:
    with pytest.raises(
        PromptError, match=r"there is no prompt 'nope'; give a path .* or one of again\.v1, cfbench\.v1, "
    ):
        prompts.load("nope", ())


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("\n$a!\n", encoding="utf-8")
    mine = prompts.load(str(tmp_path / "mine.md"), ("a",))
    assert (mine.name, mine.render(a="hi")) == ("mine", "hi!")
    with pytest.raises(PromptError, match="prompt mine asks for"):
        prompts.load(str(tmp_path / "mine.md"), ("b",))


def test_the_digest_is_that_of_the_wording() -> None:
    assert Prompt("a", "x").digest == Prompt("b", "x").digest != Prompt("a", "y").digest


def test_split_at_gives_the_fixed_pieces() -> None:
    assert Prompt("p", "a $x b $y c").split_at("x", "y") == ["a ", " b ", " c"]
    assert Prompt("p", "$$5 ${x}$$ $y $$c").split_at("x", "y") == ["$5 ", "$ ", " $c"]
    with pytest.raises(PromptError, match=r"must use \$x, \$y once, in this order"):
        Prompt("p", "$x $y $x").split_at("x", "y")
    with pytest.raises(PromptError, match="once, in this order"):
        Prompt("p", "$y $x").split_at("x", "y")
