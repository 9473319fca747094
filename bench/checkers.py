"""Rule checkers side by side: tjd's and lm-eval's `ifeval`, strict and loose, on GPT-4's responses to IFEval.

    pip install --group bench '.[eval]' && pip install --no-deps lm-eval==0.4.13
    python bench/checkers.py FOLDER    # which holds IFEval's input_data.jsonl and input_response_data_gpt4_*.jsonl

Prints how far the verdicts agree, responses per second of CPU time on one core (the median of several passes, taken in
turns), and tjd's throughput over one and two processes. lm-eval downloads Punkt's parameters where it does not find
them; here they are written to a temporary folder from the package that tjd takes them from. Its detector of languages
draws at random; here it gets seed 0.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from tjd import checkers
from tjd.checkers import languages, loose, parallel, punkt, text, treebank

Verdicts = list[tuple[bool | None, bool | None]]  # strict and loose, a pair per constraint

MEMOS = (languages.detect, loose.loose_variants, punkt.sentences, text.heuristic_sentences, treebank.sentence_tokens)
MEMOS += (treebank.tokens,)


def read(folder: Path) -> list[dict[str, Any]]:
    """IFEval's prompts with their responses; the two files are in the same order, and one prompt was edited since."""
    responses_file = next(folder.glob("input_response_data_gpt4_*.jsonl"), None)
    if responses_file is None or not (folder / "input_data.jsonl").is_file():
        sys.exit(f"{folder} must hold IFEval's input_data.jsonl and input_response_data_gpt4_*.jsonl")
    prompts, responses = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for file in (folder / "input_data.jsonl", responses_file)
    )
    return [prompt | {"response": answer["response"]} for prompt, answer in zip(prompts, responses, strict=True)]


def official() -> Any:
    """lm-eval's ifeval task, without the rest of lm-eval, which needs packages that the task does not."""
    from nltk import data
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params
    from punkt.data import english

    parameters = PunktParameters()
    parameters.abbrev_types, parameters.collocations = set(english.ABBREV_TYPES), set(english.COLLOCATIONS)
    parameters.sent_starters, parameters.ortho_context = set(english.SENT_STARTERS), dict(english.ORTHO_CONTEXT)
    folder = Path(tempfile.mkdtemp(prefix="punkt_"))
    (target := folder / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    data.path.insert(0, str(folder))  # before it is written to: nltk writes to no other place
    save_punkt_params(parameters, dir=str(target))

    import langdetect

    langdetect.DetectorFactory.seed = 0
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        sys.exit("lm-eval is not installed: pip install --no-deps lm-eval==0.4.13")
    tasks = types.ModuleType("lm_eval.tasks")
    tasks.__path__ = [str(Path(package.submodule_search_locations[0]) / "tasks")]
    sys.modules["lm_eval.tasks"] = tasks
    from lm_eval.tasks.ifeval import utils  # type: ignore[import-not-found]

    return utils


def by_official(utils: Any, rows: list[dict[str, Any]]) -> Verdicts:
    verdicts: Verdicts = []
    for row in rows:
        example = utils.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
        strict = utils.test_instruction_following_strict(example, row["response"]).follow_instruction_list
        loose = utils.test_instruction_following_loose(example, row["response"]).follow_instruction_list
        verdicts += zip(map(bool, strict), map(bool, loose), strict=True)
    return verdicts


def by_tjd(rows: list[dict[str, Any]]) -> Verdicts:
    return [
        (strict.followed, loose.followed)
        for row in rows
        for checker, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
        for strict, loose in [checkers.strict_and_loose(checker, kwargs, row["response"])]
    ]


def forget() -> None:
    """Empty what tjd remembers of texts, so that each pass does all the work; loaded models stay."""
    for memo in MEMOS:
        memo.cache_clear()


def measure(passes: int, contestants: dict[str, Callable[[], Verdicts]]) -> dict[str, list[float]]:
    """CPU seconds of each pass, the contestants taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(passes + 1):
        for name, run in contestants.items():
            forget()
            start = time.process_time()
            run()
            if number:  # the first pass loads models
                seconds[name].append(time.process_time() - start)
    return seconds


def questions(rows: list[dict[str, Any]], copies: int) -> Iterator[parallel.Question]:
    """Every response several times, each time with another last line, so that nothing is remembered."""
    for copy in range(copies):
        for row in rows:
            for checker, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
                yield parallel.Question(checker, json.dumps(kwargs), f"{row['response']}\n{copy}")


def cpu_s() -> float:
    """CPU seconds of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--copies", type=int, default=20, help="of the responses, for the throughput of processes")
    options = parser.parse_args()
    rows = read(options.folder)
    n = len(rows)

    utils = official()
    theirs, ours = by_official(utils, rows), by_tjd(rows)
    for name, place in (("strict", 0), ("loose", 1)):
        differing = [
            i for i, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one[place] is not other[place]
        ]
        followed = sum(bool(each[place]) for each in ours)
        print(f"{name}: {len(ours) - len(differing)} of {len(ours)} verdicts agree; tjd: {followed} followed")
        ids = [(row["key"], checker) for row in rows for checker in row["instruction_id_list"]]
        for index in differing:
            print(f"  key {ids[index][0]} {ids[index][1]}: lm-eval {theirs[index][place]}, tjd {ours[index][place]}")

    seconds = measure(options.passes, {"lm-eval": lambda: by_official(utils, rows), "tjd": lambda: by_tjd(rows)})
    print(f"\nstrict + loose, one core, {n} responses, {options.passes} passes, CPU time")
    for name, taken in seconds.items():
        spread = f"{n / max(taken):.0f} to {n / min(taken):.0f}"
        print(f"{name:>8}: {n / median(taken):6.0f} responses/s ({spread})")
    print(f"   ratio: {median(seconds['lm-eval']) / median(seconds['tjd']):6.1f}")

    total = n * options.copies
    print(f"\ntjd over processes, {total} responses, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    rates = {}
    for workers in (1, 2):
        forget()
        start, before, first = time.perf_counter(), cpu_s(), 0.0
        for _ in parallel.decide(questions(rows, options.copies), workers=workers):
            first = first or time.perf_counter()
        end = time.perf_counter()
        rates[workers] = total / (end - first)
        print(
            f"processes {workers}: {rates[workers]:.0f} responses/s after {first - start:.1f} s to the first answer; "
            f"{cpu_s() - before:.1f} s of CPU in {end - start:.1f} s"
        )
    print(f"speed-up: {rates[2] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
