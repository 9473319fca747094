"""Write English conversations of Multi-IF, in the benchmark's own form, from the goldens' table of verdicts.

    python bench/multi_if_goldens.py FOLDER -o multi_if.jsonl

The table holds single turns; conversations are kept as far as their turns are there without a gap.
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

SOURCE = "gpt4_ifeval"  # only rows of these responses list all constraints of a turn


def main() -> None:
    """Read, gather, write."""
    folder, _, out = sys.argv[1:]
    turns: dict[str, dict[int, dict]] = {}
    for row in pq.read_table(Path(folder) / "goldens/multi_if.parquet").to_pylist():
        if row["response_source"] != SOURCE:
            continue
        key, turn = row["prompt_id"].removeprefix("multi_if:").rsplit(":t", 1)
        entry = turns.setdefault(key, {}).setdefault(int(turn), {"prompt": row["prompt"], "ids": [], "kwargs": []})
        entry["ids"].append(row["instruction_id"])
        entry["kwargs"].append(row["kwargs"])
    written = 0
    with open(out, "w", encoding="utf-8") as file:
        for key, found in sorted(turns.items(), key=lambda entry: -len(entry[1])):  # the longest first
            if 1 not in found:
                continue
            line = {"key": key, "language": "English"}
            for turn in (1, 2, 3):
                if not all(earlier in found for earlier in range(1, turn + 1)):
                    break
                message = {"role": "user", "content": found[turn]["prompt"]}
                line[f"turn_{turn}_prompt"] = json.dumps(message)
                line[f"turn_{turn}_instruction_id_list"] = json.dumps(found[turn]["ids"])
                line[f"turn_{turn}_kwargs"] = json.dumps(found[turn]["kwargs"])
            file.write(json.dumps(line) + "\n")
            written += 1
    print(f"{written} conversations -> {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
