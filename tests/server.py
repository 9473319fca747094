"""A small OpenAI-compatible server on loopback whose behaviour a test scripts.

It is real HTTP: litellm is not told that it is a test.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends for one call."""

    text: str | None = "Yes"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # instead of a proper body
    delay_s: float = 0.0
    finish_reason: str = "stop"
    logprobs: list[dict[str, Any]] | None = None  # the tokens of the text, in OpenAI's form
    hang_up: bool = False  # close the connection without a word


Script = Callable[[dict[str, Any], int], Reply]
"""Body of the call, and how often this prompt was asked before; what to send."""


@dataclass
class Server:
    """A running server, and what it saw."""

    url: str
    script: Script
    calls: list[dict[str, Any]] = field(default_factory=list)  # bodies, in order of arrival
    headers: list[dict[str, str]] = field(default_factory=list)  # likewise
    asked: Counter[str] = field(default_factory=Counter)  # by prompt and seed
    answered: Counter[str] = field(default_factory=Counter)  # likewise; whole replies that were sent
    at_once: int = 0  # most calls in flight
    lock: threading.Lock = field(default_factory=threading.Lock)
    in_flight: int = 0


def last_user(body: dict[str, Any]) -> str:
    """The text of the last turn."""
    return body["messages"][-1]["content"]


@contextmanager
def serve(script: Script) -> Iterator[Server]:
    """Run a server until the block ends."""
    state = Server("", script)

    class Respond(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = json.dumps([body["messages"], body.get("seed")])
            with state.lock:
                before = state.asked[key]
                state.asked[key] += 1
                state.calls.append(body)
                state.headers.append(dict(self.headers))
                state.in_flight += 1
                state.at_once = max(state.at_once, state.in_flight)
            try:
                reply = state.script(body, before)
                time.sleep(reply.delay_s)
            finally:  # before the reply is sent: who has it may ask again at once
                with state.lock:
                    state.in_flight -= 1
            try:
                self.send(reply, body)
                if reply.status == 200 and reply.raw is None and not reply.hang_up:
                    with state.lock:
                        state.answered[key] += 1
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def send(self, reply: Reply, body: dict[str, Any]) -> None:
            if reply.hang_up:
                self.close_connection = True
                return
            payload = reply.raw if reply.raw is not None else json.dumps(content(reply, body)).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
            self.wfile.flush()

        def log_message(self, *args: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        request_queue_size = 512  # a longer queue than Python's 5, from which the kernel drops calls under load

        def handle_error(self, request: object, client_address: object) -> None: ...  # clients that are killed

    httpd = Quiet(("127.0.0.1", 0), Respond)
    httpd.daemon_threads = True
    httpd.block_on_close = False
    state.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def content(reply: Reply, body: dict[str, Any]) -> dict[str, Any]:
    """The body of a reply in OpenAI's form."""
    if reply.status != 200:
        return {"error": {"message": reply.text, "type": "error", "code": reply.status}}
    n_prompt = sum(len(message["content"].split()) for message in body["messages"])
    n_tokens = len((reply.text or "").split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text},
                "finish_reason": reply.finish_reason,
                **({"logprobs": {"content": reply.logprobs}} if reply.logprobs is not None else {}),
            }
        ],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens},
    }
