"""A real browser, Chromium by its driver, that opens pages from files and has no network."""

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver, section 11


class Browser:
    """One window."""

    def __init__(self, driver: str, profile: Path):
        self.driver, self.downloads = driver, profile / "downloads"
        self.downloads.mkdir(parents=True, exist_ok=True)
        options = {
            "args": [*_FLAGS, f"--user-data-dir={profile / 'profile'}"],
            "prefs": {"download.default_directory": str(self.downloads)},
        }
        logs = {"browser": "ALL"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
        self.session = ""
        made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{made['sessionId']}"

    def call(self, method: str, path: str, body: dict | None = None):
        """Send one command of the protocol."""
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(f"{self.driver}{self.session}{path}", data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path) -> None:
        self.call("POST", "/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments):
        """Run JavaScript in the page and return its result."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, keys: str, selector: str = "body") -> None:
        """Type keys into an element."""
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{found[_ELEMENT]}/value", {"text": keys})

    def click(self, selector: str) -> None:
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{found[_ELEMENT]}/click")

    def errors(self) -> list[str]:
        """The console's errors and warnings since the last call."""
        log = self.call("POST", "/se/log", {"type": "browser"})
        return [row["message"] for row in log if row["level"] in ("SEVERE", "WARNING")]

    def picture(self, path: Path, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
        self.call("POST", "/goog/cdp/execute", command)
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own; skip the test where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("no browser is installed: tests/browser/install.sh does it on Debian, as root")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = next(
            found[1]
            for line in process.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        window = Browser(f"http://127.0.0.1:{port}", profile)
        try:
            yield window
        finally:
            window.call("DELETE", "")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
