"""Swapped constraints: a response beside a constraint that was asked of another query, as a negative to train on.

In: labelled rows of the training split. Out: rows with `followed` false. That is a guess: a response may well follow what it
was not asked for, and a judge may learn instead that its instruction does not ask for it.
"""

import random
from collections.abc import Sequence

from tjd.tables import Row, text_id

TRIES = 20  # per wanted row; small tables run out of new pairs


def negatives(rows: Sequence[Row], share: float, *, seed: int = 0) -> list[Row]:
    """Swapped rows, per category this share of its rows.

    Args:
        rows: Of the training split alone, with `query_id`, `response`, `category` and `constraint`.
        share: Of the number of rows, at least 0.
        seed: Of the choice of pairs.

    Returns:
        The rows of responses, with the constraint of a row of the same category and another query. No pair is made twice,
        or of a constraint that the query has already.
    """
    asked = {(row["query_id"], row["constraint"].strip()) for row in rows}
    by_category: dict[str, list[Row]] = {}
    for row in rows:
        by_category.setdefault(row["category"], []).append(row)
    made: dict[tuple[str, str, str], Row] = {}
    for category, members in sorted(by_category.items()):
        rng = random.Random(f"{seed}:swap:{category}")
        wanted = len(made) + round(share * len(members))
        for _ in range(TRIES * wanted):
            if len(made) >= wanted:
                break
            row, donor = rng.choice(members), rng.choice(members)
            constraint = donor["constraint"].strip()
            if (row["query_id"], constraint) not in asked:
                made.setdefault((row["query_id"], row["response"], constraint), _swapped(row, donor))
    return list(made.values())


def _swapped(row: Row, donor: Row) -> Row:
    constraint_id = donor.get("constraint_id") or text_id(donor["constraint"])
    swapped = {"constraint_id": constraint_id, "constraint": donor["constraint"], "followed": False}
    return row | swapped | {"donor_query_id": donor["query_id"]}
