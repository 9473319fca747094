"""Completions on disk."""

import multiprocessing
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest

from tjd.errors import BackendError
from tjd.teacher import Completion, Request, Spoken, Usage, user
from tjd.teacher.cache import FILE, Ledger


def ledger(folder: Path | None, identity: str = "m") -> Ledger:
    return Ledger("m", identity, folder, Usage())


def keep(folder: Path, texts: Iterable[str]) -> None:
    book = ledger(folder)
    for text in texts:
        book.enter([(Request(user(text)), Completion(text.upper(), "m", "stop", 1, 2, 0.1))])
    book.close()


def test_a_completion_is_found_as_it_arrived(tmp_path: Path) -> None:
    completion = Completion("yes — ja 😀\n\0", "m", "length", 3, None, None)
    ledger(tmp_path).enter([(Request(user("q")), completion)])
    book = ledger(tmp_path)
    assert book.find(Request(user("q"))) == completion
    assert book.usage == Usage(cached=1)


@pytest.mark.parametrize(
    "other",
    [
        Request(user("other")),
        Request(user("q"), temperature=0.1),
        Request(user("q"), top_p=0.9),
        Request(user("q"), max_tokens=5),
        Request(user("q"), seed=1),
        Request(user("q"), schema={"type": "object"}),
        Request(user("q"), logprobs=True),
    ],
)
def test_whatever_can_change_an_answer_is_part_of_the_key(tmp_path: Path, other: Request) -> None:
    book = ledger(tmp_path)
    book.enter([(Request(user("q")), Completion("a", "m"))])
    assert book.find(other) is None
    assert ledger(tmp_path, identity="another model").find(Request(user("q"))) is None
    assert book.find(Request(user("q"), note="for the asker alone")) is not None


def test_keys_of_plain_requests_never_change() -> None:
    request = Request(user("q"), temperature=0.7, top_p=0.9, max_tokens=5, seed=3)
    assert ledger(None).key(request).hex() == "a169f9130b5c40f31f80e3d94de29689b90d8600d8ae30d10e4644c192bdf678"


def test_log_probabilities_are_kept(tmp_path: Path) -> None:
    request = Request(user("q"), logprobs=True)
    completion = Completion("Yes", "m", logprobs=(Spoken(0, "Yes", {"Yes": -0.1, " Nö": -2.5}),))
    ledger(tmp_path).enter([(request, completion)])
    assert ledger(tmp_path).find(request) == completion


def test_a_file_of_an_earlier_version_is_used_on(tmp_path: Path) -> None:
    old, new = Request(user("old")), Request(user("new"), logprobs=True)
    with sqlite3.connect(tmp_path / FILE) as file:  # the table as it was without log probabilities
        file.execute(
            "CREATE TABLE completions (key BLOB PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT,"
            " n_prompt_tokens INTEGER, n_tokens INTEGER, cost_usd REAL, arrived_at INTEGER NOT NULL DEFAULT (unixepoch()))"
        )
        columns = "key, model, text, finish_reason, n_prompt_tokens, n_tokens, cost_usd"
        row = (ledger(None).key(old), "m", "kept", "stop", 1, 2, 0.5)
        file.execute(f"INSERT INTO completions ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    file.close()
    book = ledger(tmp_path)
    assert book.find(old) == Completion("kept", "m", "stop", 1, 2, 0.5)
    book.enter([(new, Completion("a", "m", logprobs=()))])
    assert ledger(tmp_path).find(new) == Completion("a", "m", logprobs=())


def test_a_failed_call_is_counted_and_not_kept(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.enter([(Request(user("q")), Completion(None, "m", error="boom"))])
    assert book.find(Request(user("q"))) is None
    assert book.usage == Usage(calls=1, failed=1)


def test_no_folder_keeps_nothing() -> None:
    book = ledger(None)
    book.enter([(Request(user("q")), Completion("a", "m", cost_usd=0.5))])
    assert book.find(Request(user("q"))) is None
    assert (book.usage.calls, book.usage.cost_usd) == (1, 0.5)


def test_one_unknown_price_makes_the_sum_unknown(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.enter([(Request(user("a")), Completion("a", "m", cost_usd=1.0))])
    book.enter([(Request(user("b")), Completion("b", "m", cost_usd=None))])
    book.enter([(Request(user("c")), Completion("c", "m", cost_usd=1.0))])
    assert book.usage.cost_usd is None


def test_several_processes_share_the_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    texts = [[f"{worker}-{i}" for i in range(50)] for worker in range(3)]
    workers = [context.Process(target=keep, args=(tmp_path, own)) for own in texts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    book = ledger(tmp_path)
    assert all(book.find(Request(user(text))) for own in texts for text in own)


def test_a_file_that_is_no_database_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database, " * 100)
    with pytest.raises(BackendError, match=r"the cache completions.sqlite cannot be used \(file is not a database\); "):
        ledger(tmp_path).find(Request(user("q")))


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="or point TJD_CACHE to a folder you can write to"):
        ledger(tmp_path / "file" / "cache").find(Request(user("q")))


def test_a_full_disk_is_told_and_breaks_nothing(tmp_path: Path) -> None:
    keep(tmp_path, ["before"])
    book = ledger(tmp_path)
    book.find(Request(user("before")))
    assert book._connection is not None
    book._connection.execute("PRAGMA max_page_count = 4")  # as a disk without room
    with pytest.raises(BackendError, match=r"cannot be used \(database or disk is full\); free space"):
        book.enter([(Request(user("big")), Completion("x" * 1_000_000, "m"))])
    book.close()
    assert ledger(tmp_path).find(Request(user("before"))) is not None
    assert sqlite3.connect(tmp_path / FILE).execute("PRAGMA integrity_check").fetchone() == ("ok",)
