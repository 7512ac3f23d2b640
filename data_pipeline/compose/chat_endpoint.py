"""A client for OpenAI-compatible chat endpoints: one question, one short answer, with retries and without any library."""

from __future__ import annotations

import dataclasses
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from segearth_r2_jax.errors import UserError

# A sentence and its answer are a few hundred bytes; no reply has a reason to be longer.
MAX_REPLY_BYTES = 64 * 1024
_LONGEST_WAIT = 60.0


class EndpointError(Exception):
    """The endpoint gave no usable reply to one question; the message is a few words that can be counted."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes to the host that the user named and to no other."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class ChatEndpoint:
    """`url` is the interface's root ("http://127.0.0.1:8000/v1") or the address of its chat completions; `key` is sent as bearer token.

    A question is asked `attempts` times at most, with `pause` seconds after the first failure and twice as many after each further one.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 60.0
    attempts: int = 4
    pause: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--rewrite-endpoint {self.url}: expected an address such as http://127.0.0.1:8000/v1")

    @property
    def address(self) -> str:
        """Where questions are sent."""
        root = self.url.rstrip("/")
        return root if root.endswith("/chat/completions") else f"{root}/chat/completions"

    def ask(self, system: str, question: str) -> str:
        """The text of the reply.

        Raises EndpointError where there is none after all attempts, and UserError where asking again is of no use: the address or the key
        is wrong.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0.7}).encode()
        for attempt in range(1, self.attempts + 1):
            try:
                return self._text(self._send(body))
            except urllib.error.HTTPError as error:
                with error:
                    reason, wait = f"status {error.code}", error.headers.get("Retry-After", "")
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    raise UserError(f"{self.address}: answered {error.code} {error.reason}; {_advice(error.code)}") from None
            except TimeoutError:
                reason, wait = "timeout", ""
            except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                reason, wait = ("timeout" if isinstance(cause, TimeoutError) else "no connection"), ""
            if attempt < self.attempts:
                self.sleep(min(_LONGEST_WAIT, max(self.pause * 2 ** (attempt - 1), float(wait) if wait.isdigit() else 0.0)))
        raise EndpointError(reason)

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "segearth-r2-jax"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.address, body, headers)
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout) as reply:
            content = reply.read(MAX_REPLY_BYTES + 1)
        if len(content) > MAX_REPLY_BYTES:
            raise EndpointError("huge reply")
        return content

    @staticmethod
    def _text(content: bytes) -> str:
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            raise EndpointError("reply is not that of a chat endpoint") from None
        if not isinstance(text, str):
            raise EndpointError("reply without text")
        return text


def _advice(code: int) -> str:
    if code in (401, 403):
        return "is the key right? Name the environment variable that holds it with --rewrite-key-env"
    if 300 <= code < 400:
        return "it points to another address; give that one"
    return "are --rewrite-endpoint and --rewrite-model right?"
