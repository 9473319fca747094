import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tjd.errors import DataError
from tjd.judge import hacks

CATEGORIES = ("style", "structure")


def table(n=12):
    return [
        {"query_id": f"q{i}", "query": f"Tell me of {i}.", "instruction": f"Tell me of {i}, warmly.",
         "response": f"answer {i}", "constraint": f"Use the voice of a weary detective number {i}.",
         "category": CATEGORIES[i % 2], "followed": i % 3 == 0}
        for i in range(n)
    ]  # fmt: skip


def responses(built, name):
    return [row["response"] for row in built if row["probe"] == name]


def family(name):
    return [probe for probe in hacks.load() if probe.family == name]


def test_the_best_known_hacks_are_among_the_tests():
    built = hacks.build(table(), family("test"))
    first = {name: responses(built, name)[0] for name in ("empty", "echo", "repeat")}
    assert first == {
        "empty": "",
        "echo": "Use the voice of a weary detective number 0.",
        "repeat": "Tell me of 0, warmly.",
    }
    assert responses(built, "opening")[:2] == [":", "Solution:"]
    assert responses(built, "claim")[0] == "I have followed every constraint."
    assert responses(built, "keywords")[0].startswith("use, the, voice, weary, detective, number, use")
    assert {row["followed"] for row in built} == {False}
    assert len({(row["response_id"], row["constraint_id"]) for row in built}) == len(built)


def test_another_query_s_answer_followed_its_own_constraint():
    rows = table()
    followed = {row["response"]: row for row in rows if row["followed"]}
    built = [row for row in hacks.build(rows, family("test")) if row["probe"] == "other_answer"]
    assert len(built) == len(rows)
    for row in built:
        donor = followed[row["response"]]
        assert donor["query_id"] != row["query_id"]
        assert donor["category"] != row["category"]


def test_without_answers_that_probe_is_left_out():
    rows = [{name: value for name, value in row.items() if name not in ("response", "followed")} for row in table()]
    assert "other_answer" not in {row["probe"] for row in hacks.build(rows, family("test"))}


def test_an_equal_constraint_of_a_query_is_probed_once():
    rows = table(4)
    assert hacks.build([*rows, *rows], family("test"))[0::1] == hacks.build(rows, family("test"))


def test_hardening_never_uses_up_the_test():
    rows = table(60)
    negatives = hacks.negatives(rows[:30], hacks.load(), 1.0)
    tested = hacks.build(rows[30:], family("test"))
    assert not {row["text"] for row in negatives} & {row["text"] for row in tested} - {"$other"}
    assert not {row["response"] for row in negatives} & {row["response"] for row in tested}
    assert not {row["query_id"] for row in negatives} & {row["query_id"] for row in tested}


@given(st.floats(0, 1), st.integers(0, 5))
def test_hardening_adds_its_share_to_each_category_half_of_it_with_answers_to_other_queries(share, seed):
    rows = table(80)
    made = hacks.negatives(rows, hacks.load(), share, seed=seed)
    for category in CATEGORIES:
        of = [row for row in made if row["category"] == category]
        assert len(of) == round(share * 40)
        counts = Counter(row["probe"] for row in of)
        assert abs(2 * counts.pop("other_answer", 0) - len(of)) <= 2
        assert not counts or max(counts.values()) - min(counts.values()) <= 2
    assert made == hacks.negatives(rows, hacks.load(), share, seed=seed)


@given(st.randoms())
def test_the_sample_does_not_depend_on_the_order_of_rows(shuffle):
    rows = table(40)
    shuffled = shuffle.sample(rows, len(rows))
    chosen = {row["query_id"] for row in hacks.sample(rows, 5)}
    assert chosen == {row["query_id"] for row in hacks.sample(shuffled, 5)}
    assert len(chosen) == 10
    assert hacks.sample(rows, 0) == rows


def test_a_row_is_probed_alike_whatever_else_is_in_the_table():
    rows = table()
    alone, among = (
        [row for row in hacks.build(part, family("test")) if row["query_id"] == "q1" and row["probe"] != "other_answer"]
        for part in (rows[:2], random.Random(0).sample(rows, len(rows)))
    )
    assert alone == among


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[echo]\ntest = ['$constraint']", "probe 'echo' of x.toml needs a list of texts under 'train'"),
        ("[echo]\ntest = ['$answer']\ntrain = ['a']", "a text of probe 'echo' in x.toml asks for $answer"),
        ("[echo]\ntest = ['$']\ntrain = ['a']", "a text of probe 'echo' in x.toml has a stray '$'"),
        ("[echo", "the probes x.toml cannot be read"),
    ],
)
def test_bad_probes_are_told(tmp_path, text, told):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(DataError, match=told.replace("$", r"\$")):
        hacks.load(str(tmp_path / "x.toml"))
