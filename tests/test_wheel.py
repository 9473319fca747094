"""The package as a user installs it: a wheel in a clean environment, without extras."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_without_extras_explains_itself_and_finds_its_files(tmp_path):
    def run(*command, code=0):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT)
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    [wheel] = tmp_path.glob("tjd-*.whl")
    run(binaries / "pip", "install", "-c", ROOT / "constraints.txt", wheel)
    assert "synthesize" in run(binaries / "tjd", "--help")
    code = "from tjd import prompts, taxonomy; print(len(taxonomy.load()), prompts.load('again.v1', ['reason']).name)"
    assert run(binaries / "python", "-c", code).split() == ["7", "again.v1"]
    shown = run(binaries / "tjd", "show", ROOT / "data" / "demo" / "pool.parquet", "-n", "1")
    assert "1750 rows" in shown
    told = run(binaries / "tjd", "train-judge", ROOT / "data" / "demo" / "pool.parquet", "-o", "judges", code=4)
    assert "pip install 'tjd[train]'" in told
