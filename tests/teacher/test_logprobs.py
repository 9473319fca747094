"""Soft labels: the probability of Yes at the token that says the verdict."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.server import Reply, serve
from tests.test_cli import DEMO, fails, tjd
from tjd import backbone
from tjd.config import BackendConfig
from tjd.teacher import Completion, Request, Spoken, local, open_teacher, user
from tjd.teacher.generate import Continuation, Wanted, generate
from tjd.teacher.logprobs import p_yes, spoken
from tjd.teacher.verdicts import Asked, Ballot, read


def tokens_of(*tokens, **tops):
    """Tokens of a text; a top is given by the token's name, probabilities instead of their logarithms."""
    return spoken((t.encode(), {k: math.log(v) for k, v in tops.get(t.strip(), {t: 1.0}).items()}) for t in tokens)


def test_only_tokens_that_may_begin_a_verdict_are_kept():
    kept = tokens_of("No", "te", ": ", " yes", ' "', 'No"', "}", "Not", "Y", "ES", "nothing")
    assert [(token.start, token.token) for token in kept] == [(0, "No"), (6, " yes"), (12, 'No"'), (19, "Y")]


def test_places_are_counted_in_bytes():
    kept = spoken(
        [("é ".encode()[:1], {}), ("é ".encode()[1:], {}), (b"Yes", {"Yes": math.log(0.9), "No": math.log(0.1)})]
    )
    assert kept == (Spoken(3, "Yes", {"Yes": math.log(0.9), "No": math.log(0.1)}),)
    assert p_yes("é Yes", 2, True, kept) == pytest.approx(0.9)


def test_all_spellings_count_and_the_rest_does_not():
    kept = tokens_of("Yes", Yes={"Yes": 0.4, " yes": 0.1, "YES": 0.1, "No": 0.1, '"n': 0.1, "Not": 0.1, "Well": 0.1})
    assert p_yes("Yes", 0, True, kept) == pytest.approx(0.6 / 0.8)


def test_what_the_token_does_not_say_is_null():
    assert p_yes("No", 0, False, tokens_of("Yes")) is None
    assert p_yes("Yes", 0, True, ()) is None
    assert p_yes("Oh Yes", 3, True, tokens_of("Yes")) is None


@pytest.mark.parametrize(
    ("tokens", "asked", "softs"),
    [
        (["Yes"], Asked(None), [0.8]),
        (["No", " reason", ".\n", "**", "Verdict", ":", " Yes", "**", "."], Asked(None), [0.8]),
        (["<think>", "No", "</think>", "\n", "Yes"], Asked(None), [0.8]),
        (["2", ":", " No", "\n", "1", ":", " _", "Yes", "_"], Asked(2), [0.8, 0.3]),
        (['{"', "verdict", '": "', "Yes", '"}'], Asked(None, "json"), [0.8]),
        (['{"reason": "', "No", ', \\"verdict\\": \\"', "No", '\\"", "verdict":"', "Yes", '"}'], Asked(None, "json"), [0.8]),
        (['{"verdicts": [{"number": 1, "verdict": "', "No", '"}, {"number": 2, "reason": "', "No", '", "verdict": "', "Yes",
          '"}]}'], Asked(2, "json"), [0.3, 0.8]),
        (['{"verdicts": [{"verdict": "', "No", '", "number": 2, "reason": "', "Yes", '"}, {"number": 1, "verdict": "', "Yes",
          '"}]}'], Asked(2, "json"), [0.8, 0.3]),
        (['{"verdict": "', "\\u0059es", '"}'], Asked(None, "json"), [None]),
    ],
)  # fmt: skip
def test_the_verdict_is_found_in_every_form(tokens, asked, softs):
    logprobs = tokens_of(*tokens, Yes={"Yes": 0.8, "No": 0.2}, No={"Yes": 0.3, "No": 0.7})
    ballots, error = read(Completion("".join(tokens), "m", "stop", logprobs=logprobs), asked)
    assert error is None
    assert [ballot.soft for ballot in ballots] == [soft and pytest.approx(soft) for soft in softs]


def test_without_log_probabilities_there_is_no_soft_label():
    assert read(Completion("Yes", "m"), Asked(None))[0][0].soft is None


SENT = [
    {"token": "Yes", "bytes": [89, 101, 115], "logprob": math.log(0.75),
     "top_logprobs": [{"token": token, "bytes": None, "logprob": math.log(p)} for token, p in (("Yes", 0.75), ("No", 0.25))]},
    {"token": ".", "logprob": 0.0, "top_logprobs": []},
]  # fmt: skip


def test_a_server_is_asked_and_its_answer_kept(cache: Path, monkeypatch):
    schema = {"type": "object"}
    request = Request(user("q"), schema=schema, logprobs=True)
    with serve(lambda body, before: Reply("Yes.", logprobs=SENT if body.get("logprobs") else None)) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none-0123456789")

        def asked(request: Request, name: str = "openai/x") -> Completion:
            teacher = open_teacher(name, BackendConfig(retries=0), cache)
            [completion] = teacher.ask([request])
            teacher.close()
            return completion

        first = asked(request)
        assert p_yes("Yes.", 0, True, first.logprobs or ()) == pytest.approx(0.75)
        assert asked(request) == first  # from the cache
        assert len(server.calls) == 1
        body = server.calls[0]
        assert body["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": schema}
        assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
        assert asked(Request(user("q"))).logprobs is None  # another request, though the words are the same
        assert not {"response_format", "logprobs"} & set(server.calls[1])
        assert asked(request, "openai/gpt-4").text  # a model that is listed as one without schemas
        assert "response_format" not in server.calls[2]
        assert asked(request, "openai/gpt-4o-mini").text
        assert "response_format" in server.calls[3]


def test_a_server_that_tells_of_no_alternative_gives_no_soft_label(monkeypatch):
    alone = [{**SENT[0], "top_logprobs": []}]
    with serve(lambda body, before: Reply("Yes", logprobs=alone)) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none-0123456789")
        teacher = open_teacher("openai/x", BackendConfig(retries=0), None)
        [completion] = teacher.ask([Request(user("q"), logprobs=True)])
    assert read(completion, Asked(None)) == ([Ballot(True, None, None)], None)


def test_labels_hold_the_reason_and_the_soft_label(tmp_path: Path, cache: Path, monkeypatch):
    pieces = ['{"reason": "', "It sings", '.", "verdict": "', "Yes", '"}']
    sent = [{**SENT[0], "token": piece, "bytes": list(piece.encode())} for piece in pieces]
    with serve(lambda body, before: Reply("".join(pieces), logprobs=sent)) as server:
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none-0123456789")
        out = tmp_path / "labels.parquet"
        asked = (
            "label",
            DEMO / "pool.parquet",
            "-t",
            "openai/x",
            "--limit",
            3,
            "--format",
            "json",
            "--rationale",
            "-o",
            out,
        )
        assert tjd(*asked, "--logprobs").exit_code == 0
        for row in pq.read_table(out).to_pylist():
            assert (row["followed"], row["rationale"]) == (True, "It sings.")
            assert row["soft"] == pytest.approx(0.75)
        properties = server.calls[0]["response_format"]["json_schema"]["schema"]["properties"]
        assert list(properties) == ["reason", "verdict"]
        assert "label.pointwise.rationale.v1" in json.loads(pq.read_schema(out).metadata[b"tjd"])["prompts"]
        assert fails(2, *asked[:6], "--rationale", "-o", out).startswith("--rationale needs --format json")


def test_a_local_model_tells_of_its_alternatives(tiny_model_dir: Path, cache: Path):
    requests = [Request(user("tell me"), max_tokens=4, logprobs=True), Request(user("and me"), max_tokens=6)]
    teacher = open_teacher(f"hf:{tiny_model_dir}", BackendConfig(), cache)
    told, untold = teacher.ask(requests)
    assert (told.logprobs is None, untold.logprobs) == (False, None)
    assert list(teacher.ask(requests)) == [told, untold]  # from the cache
    plain = next(
        iter(open_teacher(f"hf:{tiny_model_dir}", BackendConfig(), None).ask([replace(requests[0], logprobs=False)]))
    )
    assert plain.text == told.text


def test_the_alternatives_are_the_models_own(tiny_model_dir: Path):
    model, tokenizer = backbone.load_model(str(tiny_model_dir)), backbone.load_tokenizer(str(tiny_model_dir))
    ids = tokenizer("tell me")["input_ids"]
    told, untold = generate(model, [Wanted(ids, 2, 0.0, 1.0, 0, top=3), Wanted(ids, 2, 0.0, 1.0, 0)], frozenset())
    assert (told.ids, untold.top) == (untold.ids, [])
    for place in range(2):
        with torch.inference_mode():
            logprobs = model(torch.tensor([ids + told.ids[:place]])).logits[0, -1].float().log_softmax(-1)
        assert told.top[place] == pytest.approx(
            {int(i): float(logprobs[i]) for i in logprobs.topk(3).indices}, abs=1e-4
        )


def test_places_in_the_text_of_a_local_model_are_those_of_its_tokens(tiny_model_dir: Path):
    tokenizer = backbone.load_tokenizer(str(tiny_model_dir))
    text = "è un no: Yes"  # the first letter is two tokens
    ids = tokenizer(text)["input_ids"]
    got = Continuation(ids, top=[{token: -0.1} for token in ids])
    assert p_yes(text, 9, True, local._spoken(tokenizer, got)) == 1
