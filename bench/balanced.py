"""A small, balanced part of a table of labels, on which every head can be trained in an hour.

    python bench/balanced.py LABELS OUT

Of each default category as many rows of either verdict: at most 100 of each in train, at most 40 in validation; in test every
row that did not follow its constraint, and up to four times as many that did.
"""

import random
import sys

from tjd.splits import split, usable
from tjd.tables import open_table, output_schema, provenance, write_rows
from tjd.taxonomy import choose, load

MOST = {"train": 100, "validation": 40, "test": sys.maxsize}
FOLLOWED_PER_OTHER = {"train": 1, "validation": 1, "test": 4}

source, out = sys.argv[1:]
labels = open_table(source, "labels")
kept = []
for name, rows in split((row for row in labels.rows() if usable(row)), 0).items():
    rng = random.Random(0)
    for category in choose(load(), ()):
        of_category = [row for row in rows if row["category"] == category]
        followed, other = ([row for row in of_category if row["followed"] == truth] for truth in (True, False))
        n_other = min(len(other), MOST[name])
        n_followed = min(len(followed), FOLLOWED_PER_OTHER[name] * n_other)
        kept += rng.sample(followed, n_followed) + rng.sample(other, n_other)
        print(f"{name}, {category}: {n_followed} followed, {n_other} did not")
told = provenance("bench/balanced.py", {}, {"labels": labels.digest}, {})
write_rows(kept, out, output_schema("labels", like=labels.schema), told)
