"""A headless Chromium, driven over its own debugging pipe: no driver, no package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 60
"""Seconds that the browser may take for an answer."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def executable() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a headless Chromium (the DevTools protocol: a JSON message, then a zero byte).

    Args:
        folder: for its profile.
    """

    def __init__(self, folder: Path):
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        command = [
            executable() or NAMES[0], "--headless=new", "--remote-debugging-pipe", "--no-sandbox",
            "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-breakpad", "--disable-crash-reporter", "--disable-extensions",
            f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
        # The browser reads from descriptor 3 and writes to 4.
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._count, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def look(self, width: int, height: int, dark: bool) -> None:
        """The size of the window, and what the user prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        self.events.clear()
        self._call("Page.navigate", url=address)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self._receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f"still not so: {script}"
            time.sleep(0.05)

    def centre(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view; where its middle is then."""
        box = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center', inline: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }"
            f")(document.querySelector({json.dumps(selector)}))"
        )
        return box[0], box[1]

    def hover(self, x: float, y: float) -> None:
        """Move the mouse."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        x, y = self.centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key that writes a character, such as Enter."""
        text = "\r" if key == "Enter" else key
        code = {"windowsVirtualKeyCode": 13} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, text=text, **code)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """What is seen, or the whole page, as PNG."""
        found = self._call(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole)
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "scale": 1, "width": size["width"],
                         "height": size["height"]}}  # fmt: skip

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, errors on the console, and what was asked of the network."""
        found = []
        for event in self.events:
            method, given = event["method"], event["params"]
            asked = given.get("request", {}).get("url", "")
            if (
                method == "Runtime.exceptionThrown"
                or (method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"))
                or (method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"))
                or (method == "Network.requestWillBeSent" and asked.startswith("http"))
            ):
                found.append(event)
        return found

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """The next message; an event is kept too."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], PATIENCE)
            assert ready, f"the browser has said nothing for {PATIENCE} s"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has gone"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message
