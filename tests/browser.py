"""A headless Chromium spoken to over its DevTools pipe: what a page looks like and does, without another library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
QUIET = ("--disable-background-networking", "--no-first-run", "--disable-component-update", "--disable-sync")


def find() -> str | None:
    """Return the path of a browser on this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page of a browser: commands go in and answers come out as JSON ended by NUL."""

    def __init__(self, read: int, write: int):
        self.incoming, self.outgoing = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self.buffer, self.sent, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the browser's answer to one command; events that come before it are kept."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.outgoing.write(json.dumps(message).encode() + b"\0")
        self.outgoing.flush()
        while (answer := self._next()).get("id") != self.sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            block = os.read(self.incoming.fileno(), 1 << 20)
            assert block, "the browser ended"
            self.buffer += block
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path, width: int, dark: bool = False, media: str = "screen") -> None:
        """Show a page at a width in CSS pixels and wait until it has loaded."""
        self.events.clear()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Return the value of a script's last expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def complaints(self) -> list[str]:
        """What the page wrote to the console since it was opened, and what it could not do."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in methods]

    def picture(self, path: Path) -> None:
        """Write a screenshot of the whole page, however long."""
        height = self.run("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.run("innerWidth"), "height": height, "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """Return the page as it prints."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])


@contextmanager
def tab(executable: str, profile: Path) -> Iterator[Tab]:
    """Yield a tab of a browser of its own, ended afterwards."""
    (out, into), (back, answers) = os.pipe(), os.pipe()
    command = [executable, *FLAGS, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe"]

    def connect() -> None:
        """Put the pipes where the browser looks for them: commands on descriptor 3, answers on 4."""
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 16) for end in (out, answers)]
        for place, end in enumerate(ends, 3):
            os.dup2(end, place)

    process = subprocess.Popen(
        command, pass_fds=(3, 4), preexec_fn=connect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(out)
    os.close(answers)
    try:
        yield Tab(back, into)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
