"""A small server on loopback that speaks OpenAI's batch protocol: files, batches, and how a batch moves on.

POST /files takes a JSONL file of requests; POST /batches starts a job of it; GET /batches/{id} moves it on by one status a
look (validating, in_progress, completed); GET /files/{id}/content gives results, one line a request. A test scripts how
each request is answered, and how jobs end.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.server import Reply, content

Script = Callable[[dict[str, Any], int], Reply | None]
"""Body of a request, and how often it was in a job before; its result, or None where it has none."""


@dataclass
class Job:
    """A batch, as the server keeps it."""

    id: str
    file: str
    created_at: int
    looks: int = 0


@dataclass
class BatchServer:
    """A running server, and what it saw."""

    url: str
    script: Script
    end: Callable[[int], str] = lambda number: "completed"  # how a job ends, by its number from 0
    errors: dict[str, Any] | None = None  # of a job that failed
    patience: int = 0  # looks at a job before the one that finds it ended
    ending: threading.Event = field(default_factory=threading.Event)  # no job ends before it is set
    trouble: Callable[[str, str], int | None] = lambda method, path: None  # a status to answer instead
    files: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # lines by id
    jobs: list[Job] = field(default_factory=list)
    results: dict[str, list[str]] = field(default_factory=dict)
    in_jobs: dict[str, int] = field(default_factory=dict)  # how often a custom_id was in a job that ended
    keys: set[str] = field(default_factory=set)  # what callers authorised themselves with
    calls: list[str] = field(default_factory=list)  # "METHOD /path"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lines(self) -> list[dict[str, Any]]:
        """All requests in submitted jobs, in order."""
        return [line for job in self.jobs for line in self.files[job.file]]

    def described(self, job: Job) -> dict[str, Any]:
        """A batch in OpenAI's form."""
        number, lines = self.jobs.index(job), self.files[job.file]
        over = job.looks > self.patience and self.ending.is_set()
        status = self.end(number) if over else "validating" if job.looks < 2 else "in_progress"
        if over and f"{job.id}-out" not in self.results:
            self.answer(job, status)
        return {
            "id": job.id, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h",
            "status": status, "input_file_id": job.file, "created_at": job.created_at,
            "output_file_id": f"{job.id}-out" if self.results.get(f"{job.id}-out") else None,
            "error_file_id": f"{job.id}-err" if self.results.get(f"{job.id}-err") else None,
            "errors": self.errors if status == "failed" else None,
            "request_counts": {"total": len(lines), "completed": len(lines) if over else 0, "failed": 0},
        }  # fmt: skip

    def answer(self, job: Job, status: str) -> None:
        """Write the two files of results: out of order, as the protocol allows."""
        out, err = [], []
        for line in self.files[job.file]:
            before = self.in_jobs.get(line["custom_id"], 0)
            self.in_jobs[line["custom_id"]] = before + 1
            reply = self.script(line["body"], before) if status != "failed" else None
            row: dict[str, Any] = {"id": "r", "custom_id": line["custom_id"], "response": None, "error": None}
            if reply is None and status == "expired":
                row["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
                err.append(json.dumps(row))
            elif reply is not None:
                row["response"] = {"status_code": reply.status, "request_id": "q", "body": content(reply, line["body"])}
                raw = reply.raw.decode() if reply.raw is not None else json.dumps(row)
                (out if reply.status == 200 else err).append(raw)
        self.results |= {f"{job.id}-out": out[::-1], f"{job.id}-err": err}

    def respond(self, method: str, path: str, query: str, body: bytes, content_type: str) -> Any:
        """What a call is answered with; None where there is no such thing."""
        _, kind, *rest = path.split("/")
        if (method, kind, rest) == ("POST", "files", []):
            return self.upload(body, content_type)
        if (method, kind, rest) == ("POST", "batches", []):
            wanted = json.loads(body)
            assert (wanted["endpoint"], wanted["completion_window"]) == ("/v1/chat/completions", "24h")
            job = Job(f"batch_{len(self.jobs)}", wanted["input_file_id"], 2_000_000_000 + len(self.jobs))
            self.jobs.append(job)
            return self.described(job)
        if (method, kind, rest) == ("GET", "batches", []):  # newest first, two a page
            newest = [job.id for job in self.jobs][::-1]
            after = next((part.removeprefix("after=") for part in query.split("&") if "after=" in part), None)
            start = newest.index(after) + 1 if after else 0
            page = [next(job for job in self.jobs if job.id == id) for id in newest[start : start + 2]]
            return {"object": "list", "data": [self.described(job) for job in page],
                    "has_more": start + 2 < len(newest)}  # fmt: skip
        if (method, kind, len(rest)) == ("GET", "batches", 1):
            job = next((job for job in self.jobs if job.id == rest[0]), None)
            if job is not None:
                job.looks += 1
                return self.described(job)
        if (method, kind, rest[1:]) == ("GET", "files", ["content"]) and rest[0] in self.results:
            return "\n".join(self.results[rest[0]]) + "\n"
        return None

    def upload(self, body: bytes, content_type: str) -> dict[str, Any]:
        """Keep the lines of a file."""
        form = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        parts: dict[str, bytes] = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)  # type: ignore
            for part in form.get_payload()
        }
        assert parts["purpose"].strip() == b"batch"
        id = f"file_{len(self.files)}"
        self.files[id] = [json.loads(line) for line in parts["file"].splitlines() if line]
        return {"id": id, "object": "file", "bytes": len(body), "created_at": 1, "filename": "tjd.jsonl",
                "purpose": "batch", "status": "processed"}  # fmt: skip


@contextmanager
def serve_batches(script: Script) -> Iterator[BatchServer]:
    """Run a server until the block ends."""
    state = BatchServer("", script)
    state.ending.set()

    class Respond(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.respond("POST", body)

        def do_GET(self) -> None:
            self.respond("GET", b"")

        def respond(self, method: str, body: bytes) -> None:
            path, _, query = self.path.removeprefix("/v1").partition("?")
            with state.lock:
                state.calls.append(f"{method} {path}")
                state.keys.add(self.headers["Authorization"])
                status = state.trouble(method, path)
                answer = (
                    None if status else state.respond(method, path, query, body, self.headers["Content-Type"] or "")
                )
            if status == 0:  # it is done, but nobody hears of it
                self.close_connection = True
                return
            status = status or (404 if answer is None else 200)
            answer = {"error": {"message": f"trouble with {path}"}} if answer is None else answer
            payload = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
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
