"""A client of the WebDriver protocol (W3C), as small as these tests need it, and Chromium without a screen under chromedriver."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# Keys that are no characters, as the protocol writes them.
ESCAPE, LEFT, RIGHT = "\ue00c", "\ue012", "\ue014"


class Browser:
    """One session; every method is one command."""

    def __init__(self, address: str, profile: Path):
        self._address = address
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        match = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": match}})["sessionId"]
        self._address += f"/session/{session}"
        # Away from the page of a new tab, which asks for much of its own.
        self._send("POST", "/url", {"url": "about:blank"})
        self.addresses()

    def _send(self, method: str, path: str, body: dict | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def open(self, path: Path) -> None:
        self._send("POST", "/url", {"url": path.as_uri()})

    def reload(self) -> None:
        self._send("POST", "/refresh")

    def run(self, script: str, *arguments: Any) -> Any:
        """What the function body `script` returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def _find(self, selector: str) -> str:
        return self._send("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def click(self, selector: str) -> None:
        self._send("POST", f"/element/{self._find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        self._send("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def press(self, key: str) -> None:
        """Presses a key, wherever the focus is."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def point_at(self, selector: str) -> None:
        origin = {_ELEMENT: self._find(selector)}
        move = {"type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0}
        self._send("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def count(self, selector: str) -> int:
        """How many elements match and are shown."""
        return self.run("return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).length", selector)

    def resize(self, width: int, height: int) -> None:
        """The size of the page in pixels: a window may not be made as narrow as a phone."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})

    def download_to(self, folder: Path) -> None:
        how = {"behavior": "allow", "downloadPath": str(folder)}
        self._send("POST", "/goog/cdp/execute", {"cmd": "Browser.setDownloadBehavior", "params": how})

    def screenshot(self) -> bytes:
        return base64.b64decode(self._send("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """What the console has been told of errors since the last call: scripts that fail, files that are missing, forbidden things."""
        entries = self._send("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def addresses(self) -> set[str]:
        """Every address pages have asked for since the last call, without what `data:` holds."""
        messages = [json.loads(entry["message"])["message"] for entry in self._send("POST", "/se/log", {"type": "performance"})]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {address.split(",")[0] if address.startswith("data:") else address for address in asked if not address.startswith("chrome:")}

    def quit(self) -> None:
        with contextlib.suppress(OSError):
            self._send("DELETE", "")


def missing() -> str | None:
    """What is not installed, in words; None if all is there."""
    if shutil.which("chromedriver") is None:
        return "chromedriver is not installed (Debian: apt-get install chromium chromium-driver)"
    return None


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in `folder`, ended at the end with its driver."""
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            started = next((match for line in driver.stdout if (match := re.search(r"started successfully on port (\d+)", line))), None)
            assert started, "chromedriver did not start"
            browser = Browser(f"http://127.0.0.1:{started[1]}", folder / "profile")
            try:
                yield browser
            finally:
                browser.quit()
        finally:
            driver.terminate()


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value
