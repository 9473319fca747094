"""Five benchmarks of a few prompts of our own, in the forms of the real ones."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

IFEVAL = [
    {"key": 1, "prompt": "Greet me. Use no commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Describe rain without commas in at least 3 words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": None, "relation": None}, {"num_words": 3, "relation": "at least"}],  # as on the hub
    },
]
IFBENCH = [
    {
        "key": "0",
        "prompt": " Give a list with the separator ## in it. ",
        "instruction_id_list": ["format:list"],
        "kwargs": [{"sep": "##", "N": None}],
    },
    {
        "key": "1",
        "prompt": "Answer in one word of no spaces.",
        "instruction_id_list": ["format:no_whitespace"],
        "kwargs": [{"sep": None}],
    },
]
MULTI_IF = [
    {
        "key": "7:0:en",
        "language": "English",
        "turn_1_prompt": json.dumps({"role": "user", "content": "Name a river. No commas."}),
        "turn_1_instruction_id_list": json.dumps(["punctuation:no_comma"]),
        "turn_1_kwargs": json.dumps(["{}"]),
        "turn_2_prompt": json.dumps({"role": "user", "content": "Say it in quotes."}),
        "turn_2_instruction_id_list": json.dumps(["punctuation:no_comma", "startend:quotation"]),
        "turn_2_kwargs": json.dumps(["{}", json.dumps({"num_words": None})]),
        "turn_3_prompt": "None",
        "turn_3_instruction_id_list": "None",
        "turn_3_kwargs": "None",
    },
    {
        "key": "8:0:fr",
        "language": "French",
        "turn_1_prompt": json.dumps({"role": "user", "content": "Cite un fleuve. Sans virgule."}),
        "turn_1_instruction_id_list": json.dumps(["punctuation:no_comma"]),
        "turn_1_kwargs": json.dumps(["{}"]),
    },
]
FOLLOWBENCH = {  # category: (example_id, source, target)
    "content": [(1, "sharegpt", ""), (14, "E2E", "name[The Mill]")],
    "situation": [(1, "BBH_logical", "(A)")],
    "style": [(1, "quora", "")],
    "format": [(1, "quora", ""), (22, "koala", "")],
    "mixed": [(1, "ROCStories", "")],
    "example": [(1, "drop", "{instruction}\nBOT: {answer}")],
}
CFBENCH = [
    {
        "idx": 0, "prompt": "写一首关于雨的诗。", "isanswer": "否", "gold": "", "doamin": "", "scenario": "", "source": "",
        "split": "easy",
        "criteria": [
            ["是一首诗", "主需", "风格约束", "形式文体约束"],
            ["主题是雨", "次需", "内容约束", "语义内容约束"],
            ["不超过二十个字", "次需", "数值约束", "单词数值约束"],
        ],
    },
    {
        "idx": 1, "prompt": "用两段话介绍茶。", "isanswer": "是", "gold": "茶是一种饮料。", "doamin": "", "scenario": "",
        "source": "", "split": "hard",
        "criteria": [
            ["介绍了茶 ", "主需", "内容约束", "语义内容约束"],
            ["正好两段", "次需", "数值约束", "段落数值约束"],
        ],
    },
]  # fmt: skip


def write_benchmarks(folder: Path) -> Path:
    """Write all five below a folder, each in one of its own."""
    for name, file, rows in (
        ("ifeval", "input_data.jsonl", IFEVAL),
        ("ifbench", "IFBench_test.jsonl", IFBENCH),
        ("multi-if", "multi_if.jsonl", MULTI_IF),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "followbench").mkdir()
    for category, groups in FOLLOWBENCH.items():
        records = [record for group in groups for record in followbench_group(category, *group)]
        (folder / "followbench" / f"{category}_constraints.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "cfbench").mkdir()
    (folder / "cfbench" / "cfbench_data.json").write_text(json.dumps(CFBENCH), encoding="utf-8")
    return folder


def followbench_group(category: str, example_id: int, source: str, target: str) -> list[Row]:
    """The levels of one group; level 0, the seed, is there but for examples."""
    kinds = {0: "mixed", 1: "format", 2: "format, style"}
    return [
        {
            "example_id": example_id,
            "category": kinds.get(level, "format, style, content") if category == "mixed" else category,
            "source": source,
            "level": level,
            "instruction": f"{category} {example_id}: do it" + "".join(f", and {n}" for n in range(1, level + 1)),
            "target": target,
        }
        for level in range(1 if category == "example" else 0, 6)
    ]
