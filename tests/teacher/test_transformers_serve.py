"""The remote backend against a real server with a real model: `transformers serve` and the embedded model."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tjd import backbone
from tjd.config import BackendConfig
from tjd.teacher import Request, open_teacher, user

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name by which litellm knows the served model."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = backbone.resolve(backbone.EMBEDDED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    transformers = str(Path(sys.executable).with_name("transformers"))
    command = [transformers, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", folder]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            _await_health(server, port, tmp_path / "server.log")
            monkeypatch.setenv("HOSTED_VLLM_API_BASE", f"http://127.0.0.1:{port}/v1")
            yield f"hosted_vllm/{folder}"
        finally:
            server.terminate()
            server.wait(30)


def _await_health(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_a_served_model_answers(served: str) -> None:
    teacher = open_teacher(served, BackendConfig(concurrency=2, timeout_s=120), None)
    questions = ["What is the capital of France? Answer in one word.", "Say hello."]
    france, hello = teacher.ask(Request(user(text), max_tokens=16) for text in questions)
    assert "Paris" in (france.text or france.error or "")
    assert hello.text
    assert hello.n_tokens is not None
