"""A chat endpoint on this machine that answers as a test wants, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator


class ChatStub(http.server.ThreadingHTTPServer):
    """`answer(question, number)` gives the text of a reply, an int for a status, or bytes for the whole body."""

    daemon_threads = True

    def __init__(self, answer: Callable):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[dict] = []
        self.headers_seen: list[dict] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that stopped waiting is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.headers_seen.append(dict(self.headers))
            number = len(self.server.asked)
        reply = self.server.answer(json.loads(body["messages"][1]["content"]), number)
        status, headers = 200, {}
        if isinstance(reply, int):
            status, reply, headers = reply, b"{}", {"Location": "http://127.0.0.1:9/elsewhere"} if 300 <= reply < 400 else {}
        elif isinstance(reply, str):
            reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments) -> None:
        """Silence."""


@contextlib.contextmanager
def chat_stub(answer: Callable) -> Iterator[ChatStub]:
    """A running stub."""
    server = ChatStub(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slow(seconds: float) -> Callable:
    """An answer that comes too late."""

    def answer(question, number):
        time.sleep(seconds)
        return ""

    return answer
