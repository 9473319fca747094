"""Agreement: any table of votes through the command line, the paper's annotation protocol, and the queue."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.test_cli import DEMO, RECORDED, fails, tjd, write
from tjd import tables
from tjd.stages.agreement import why_open

PEOPLE = ("ann", "bob", "cy")


def rated(path, *ratings, **more):
    """A foreign table: a row per triple of ratings, two rows a query."""
    rows = [
        {"query_id": f"q{i // 2}", "category": ["style", "layout"][i % 2], **dict(zip(PEOPLE, three, strict=True)), **more}
        for i, three in enumerate(ratings)
    ]  # fmt: skip
    return write(path, rows)


def of(rows, raters, category, metric):
    [row] = [row for row in rows if (row["raters"], row["category"], row["metric"]) == (raters, category, metric)]
    return row


def raters(*names):
    return [part for name in names for part in ("--rater", name)]


def test_people_are_compared(tmp_path):
    ratings = [("yes", "yes", "no"), ("no", "no", "no"), ("yes", "yes", "yes"), ("no", "yes", "no"), ("yes", None, "yes"),
               ("no", "no", "yes")] * 5  # fmt: skip
    table, out = rated(tmp_path / "t.parquet", *ratings), tmp_path / "out.parquet"
    shown = tjd("agreement", table, *raters(*PEOPLE), "-o", out).stdout
    assert "ann ~ bob" in shown
    assert "Fleiss' kappa" in shown
    rows = list(tables.open_table(str(out), "agreement").rows())
    everyone = of(rows, "all", "all", "percent_agreement")
    assert everyone["value"] == pytest.approx((1 / 3 + 1 + 1 + 1 / 3 + 1 + 1 / 3) / 6)
    assert (everyone["n"], everyone["n_invalid"], everyone["prevalence"]) == (30, 0, pytest.approx(9 / 17))
    pair = of(rows, "ann ~ bob", "all", "cohen_kappa")
    ann, bob = zip(*[(a, b) for a, b, _ in ratings if b is not None], strict=True)
    assert pair["value"] == pytest.approx(cohen_kappa_score(ann, bob))
    assert pair["low"] < pair["value"] < pair["high"]
    assert (pair["n"], pair["n_invalid"], pair["prevalence"]) == (25, 5, 0.5)
    bob = of(rows, "bob", "all", "yes_rate")
    assert (bob["value"], bob["n"]) == (3 / 5, 25)
    assert of(rows, "bob", "all", "bias")["value"] == pytest.approx(3 / 5 - 7 / 15)  # on the rows that bob rated
    assert {row["category"] for row in rows} == {"all", "style", "layout"}
    assert of(rows, "all", "style", "fleiss_kappa")["n"] == 15
    again = json.loads(tjd("agreement", table, *raters(*PEOPLE), "--json").stdout)
    assert again == rows


def test_the_papers_annotation_protocol(tmp_path):
    ratings = [(5, 4, 4), (1, 2, 1), (3, 4, 4), (2, 4, 5), (5, 5, 5), (4, None, None), (1.0, 3, 1), (1, 3, 3)]
    table, queue = rated(tmp_path / "t.parquet", *ratings, reason="an old one"), tmp_path / "queue.parquet"
    done = tjd("agreement", table, "--likert", *raters(*PEOPLE), "--queue", queue, "--json")
    rows = json.loads(done.stdout)
    assert of(rows, "all", "all", "percent_agreement")["value"] == pytest.approx((5 + 2 * 1 / 3) / 7)
    assert of(rows, "all", "all", "fleiss_kappa_of_ratings")["value"] < of(rows, "all", "all", "fleiss_kappa")["value"]
    assert of(rows, "ann", "all", "yes_rate")["value"] == 3 / 8
    assert "5 rows of 8 to adjudicate" in done.stderr
    open_rows = pq.read_table(queue).to_pylist()
    told = [((row["ann"], row["bob"], row["cy"]), row["reason"]) for row in open_rows]
    assert told == [
        ((3, 4, 4), "split 2:1"),
        ((2, 4, 5), "variance 2.33"),
        ((4, None, None), "1 of 3 ratings"),
        ((1, 3, 1), "variance 1.33"),
        ((1, 3, 3), "variance 1.33"),
    ]


@pytest.mark.parametrize("flags", [(), ("--likert",)])
def test_ratings_may_be_text(tmp_path, flags):
    ratings = (
        [(5, 4, 4), (1, None, 2), (3, 4, 5), (4, None, None)] if flags else [(1, 1, 0), (0, 0, 0), (1, None, None)]
    )
    table = rated(tmp_path / "t.parquet", *ratings, query="one query of many rows")
    rows = pq.read_table(table).to_pylist()
    names = list(rows[0])
    as_csv, as_jsonl, queue = (tmp_path / name for name in ("t.csv", "t.jsonl", "queue.parquet"))
    lines = [names, *([row[name] for name in names] for row in rows)]
    as_csv.write_text("\n".join(",".join("" if cell is None else str(cell) for cell in line) for line in lines))
    as_jsonl.write_text("\n".join(map(json.dumps, rows)))
    found = [tjd("agreement", path, *flags, *raters(*PEOPLE), "--json").stdout for path in (table, as_csv, as_jsonl)]
    assert found[0] == found[1] == found[2] != ""
    assert tjd("agreement", as_csv, *flags, *raters(*PEOPLE), "--queue", queue).exit_code == 0
    assert pq.read_table(queue).to_pylist()[-1].items() >= {"bob": None, "reason": "1 of 3 ratings"}.items()
    assert "lacks the column 'votes'" in fails(3, "agreement", as_csv)


def test_what_leaves_a_verdict_open():
    assert why_open([1, 1, 1], likert=False) is None
    assert why_open([1, 1, 0], likert=False) == "split 2:1"
    assert why_open([1, None, None], likert=False) == "1 of 3 ratings"
    assert why_open([1, 1, None], likert=False) is None
    assert why_open([3, 4, 5], likert=True) == "split 2:1"  # a variance of 1.0 is not above it
    assert why_open([1, 2, 3], likert=True) is None
    assert why_open([1, 1, 3], likert=True) == "variance 1.33"


def test_votes_of_labels(tmp_path):
    labels, queue = tmp_path / "labels.parquet", tmp_path / "queue.parquet"
    done = tjd("label", DEMO / "pool.parquet", "-t", RECORDED, "--votes", 3, "--limit", 300, "-o", labels)
    assert done.exit_code == 0
    found = tjd("agreement", labels, "--queue", queue)
    assert found.stdout in done.stderr  # the same grid at the end of `tjd label`
    rows = json.loads(tjd("agreement", labels, "--json").stdout)
    assert {row["raters"] for row in rows} == {"all"}  # votes of one teacher are nobody to be compared
    assert of(rows, "all", "all", "fleiss_kappa")["value"] > 0.9
    for row in pq.read_table(queue).to_pylist():
        votes = [vote for vote in row["votes"] if vote is not None]
        assert row["reason"] == (f"split {sum(votes)}:{votes.count(False)}" if len(votes) > 1 else "1 of 3 ratings")
    silent = tjd("label", DEMO / "pool.parquet", "-t", RECORDED, "--limit", 30, "-o", labels)
    assert "kappa" not in silent.stderr
    assert "no row of" in fails(3, "agreement", labels)


def test_raters_of_a_panel_are_its_teachers(tmp_path):
    teachers = ["a", "b", "a", "b", "a", "b"]
    votes = [[True, False, True, True, False, False], [False, False, False, True, False, True], [], None]
    rows = [
        {"query_id": str(i), "votes": given, "teachers": teachers if given else given, "category": None}
        for i, given in enumerate(votes)
    ]
    schema = pa.schema({"query_id": pa.string(), "category": pa.string(), "votes": tables.LABELS.field("votes").type,
                        "teachers": tables.LABELS.field("teachers").type})  # fmt: skip
    found = json.loads(tjd("agreement", write(tmp_path / "t.parquet", rows, schema), "--json").stdout)
    # a says yes (2 of 3) and no; b says no (1 of 3) and yes (2 of 3)
    assert of(found, "a ~ b", "all", "percent_agreement")["value"] == 0
    assert of(found, "a ~ b", "all", "cohen_kappa")["value"] == -1
    assert (of(found, "a", "all", "yes_rate")["value"], of(found, "a", "all", "bias")["value"]) == (0.5, 0)
    assert {row["category"] for row in found} == {"all"}


def test_raters_who_always_say_yes_have_no_kappa(tmp_path):
    table = rated(tmp_path / "t.parquet", *[(1, 1, 1)] * 10)
    rows = json.loads(tjd("agreement", table, *raters(*PEOPLE), "--json").stdout)
    kappa, share = (of(rows, "all", "all", metric) for metric in ("fleiss_kappa", "percent_agreement"))
    assert (kappa["value"], kappa["low"], kappa["prevalence"]) == (None, None, 1)
    assert share["value"] == 1
    assert share["low"] < 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"votes": 1}, "row 1 has 1 in the column 'votes'; it must be a list (--rater names a column per rater)"),
        ({"votes": [1, 0], "teachers": "ab"}, "row 1 has 'ab' in the column 'teachers'; it must be a list "),
        ({"votes": [1, 0, 1], "teachers": ["a", "b"]}, "row 1 has 3 votes and 2 teachers; give each vote its teacher"),
    ],
)
def test_votes_that_are_nobodys(tmp_path, row, told):
    assert fails(3, "agreement", write(tmp_path / "t.parquet", [{"query_id": "q"} | row])).startswith(told)


def test_what_cannot_be_measured(tmp_path):
    table = rated(tmp_path / "t.parquet", (1, 0, 1), (1, 5, 1))
    line = fails(3, "agreement", table, *raters(*PEOPLE))
    assert line == (
        "row 2 has 5 in the column 'bob'; it must be 1 or 0, true or false, yes or no, or null (with --likert: 1 to 5)"
    )
    line = fails(3, "agreement", table, "--likert", *raters(*PEOPLE))
    assert line == "row 1 has 0 in the column 'bob'; it must be a whole number from 1 to 5, or null"
    assert "lacks the column 'votes'" in fails(3, "agreement", table)
    nameless = rated(tmp_path / "n.parquet", (1, 0, 1), query_id=None)
    assert "row 1 of" in fails(3, "agreement", nameless, *raters(*PEOPLE))
    assert "lacks the column 'dan'" in fails(3, "agreement", table, "--rater", "dan")
    assert "lacks the column 'id'" in fails(3, "agreement", table, "--query-id", "id", "--rater", "ann")
    assert "lacks the column 'kind' of --category" in fails(
        3, "agreement", table, "--category", "kind", "--rater", "ann"
    )
    line = fails(3, "agreement", table, "--rater", "ann", "-o", tmp_path / "out.parquet")
    assert line.endswith("has two ratings; label with --votes 3, or name columns with --rater")
    assert not (tmp_path / "out.parquet").exists()
