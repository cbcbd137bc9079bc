"""Drive Chromium over its DevTools protocol: enough to measure the pages of the site and to take pictures of them.

Used by tests/site and by `tools/site.py shot`. Needs Chromium (found on the path, or named by CHROMIUM) and the
package websocket-client. The browser can reach 127.0.0.1 and nothing else.
"""

import base64
import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
LOAD_SECONDS = 60
SETTLE = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(true), 100)))"


def find_chromium() -> str | None:
    """The path of an installed Chromium, or None."""
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve `folder` on a free port of the loopback; gives the address without a slash at its end."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class Browser:
    """One tab. `requests` and `failures` list what the last opened page asked for, and what did not come."""

    def __enter__(self) -> "Browser":
        import websocket

        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={self.profile.name}"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--disable-background-networking"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses its sandbox to root, as in a container
        command = [find_chromium() or "chromium", *flags, "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = Path(self.profile.name) / "DevToolsActivePort"
        for _ in range(600):
            if port_file.exists() and "\n" in port_file.read_text():
                break
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=LOAD_SECONDS) as answer:
            tab = next(t for t in json.load(answer) if t["type"] == "page")
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=LOAD_SECONDS)
        self.last_id = 0
        self.events: list[dict] = []
        self.script: str | None = None
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Network.setCacheDisabled", cacheDisabled=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=LOAD_SECONDS)
        self.profile.cleanup()

    def call(self, method: str, **params: Any) -> dict:
        """Send one command and wait for its answer; events that come before it are kept."""
        self.last_id += 1
        self.socket.send(json.dumps({"id": self.last_id, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.last_id:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Give the page a screen of this many CSS pixels; a narrow one is a phone's."""
        self.width = width
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def open(self, address: str, *, width: int = 1280, height: int = 900, theme: str = "light") -> None:
        """Load a page on a screen of `width` CSS pixels, and wait for its scripts, pictures, fonts and formulas."""
        self.resize(width, height)
        if self.script:
            self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=self.script)
        source = f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
        self.script = self.call("Page.addScriptToEvaluateOnNewDocument", source=source)["identifier"]
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv()))
        self.evaluate("window.MathJax?.startup?.promise ?? null")
        self.evaluate("document.fonts.ready.then(() => true)")
        self.evaluate(SETTLE)

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        sent = (e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [address for address in sent if not address.startswith(("data:", "blob:"))]

    @property
    def failures(self) -> list[str]:
        """Files that did not come, and scripts that stopped with an error."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Network.responseReceived" and params["response"]["status"] >= 400:
                found.append(f"{params['response']['status']} {params['response']['url']}")
            elif event["method"] == "Network.loadingFailed" and not params.get("canceled"):
                found.append(f"{params['errorText']} ({params['type']})")
            elif event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
        return found

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        self.resize(self.width, size["height"])
        self.evaluate(SETTLE)
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return base64.b64decode(data)
