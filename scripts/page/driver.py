"""A headless Chromium, driven over the WebDriver protocol by Debian's chromedriver."""
from __future__ import annotations

import json, os, re, shutil, subprocess, tempfile, threading, time, urllib.error, urllib.request
from contextlib import suppress
from pathlib import Path

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, by the WebDriver standard
ENTER, ESCAPE, TAB, SHIFT = "\ue007", "\ue00c", "\ue004", "\ue008"


class DriverError(Exception):
    """The browser refused a command, or what was waited for did not come."""


class Browser:
    """One window. Files that it downloads lie in `downloads`."""

    def __init__(self):
        for program in ("chromedriver", "chromium"):
            if not shutil.which(program):
                raise DriverError(f"{program} is missing: apt-get install chromium chromium-driver")
        self.home = Path(tempfile.mkdtemp(prefix="page-test-"))
        self.downloads = self.home / "downloads"
        self.process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, start_new_session=True)
        self.session = None
        self.patience = 8.0  # seconds to wait for what should come
        try:
            self.base = f"http://127.0.0.1:{self._port()}"
            self.session = self._call("POST", "/session", self._capabilities())["sessionId"]
        except BaseException:
            self.close()
            raise

    def _port(self) -> int:
        for line in self.process.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                # Nobody reads the rest, but a full pipe would stop the driver.
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                return int(found[1])
        raise DriverError("chromedriver did not start")

    def _capabilities(self) -> dict:
        arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900",
                     "--disable-background-networking", "--no-first-run",
                     f"--user-data-dir={self.home}/profile"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")
        options = {"args": arguments, "prefs": {"download.default_directory": str(self.downloads),
                                                "profile.default_content_setting_values.clipboard": 1}}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
                  "unhandledPromptBehavior": "ignore"}
        return {"capabilities": {"alwaysMatch": wanted}}

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if method == "GET" else json.dumps(body or {}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise DriverError(f"{path}: {value['error']}: {value['message'].splitlines()[0]}") from None
        except TimeoutError:
            raise DriverError(f"{path}: the browser hangs") from None

    def call(self, method: str, path: str, body: dict | None = None):
        return self._call(method, f"/session/{self.session}{path}", body)

    def close(self):
        if self.session:
            with suppress(Exception):
                self._call("DELETE", f"/session/{self.session}")
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.home, ignore_errors=True)

    def go(self, url: str):
        self.call("POST", "/url", {"url": url})

    def reload(self):
        self.call("POST", "/refresh")

    def js(self, body: str, *arguments):
        """What a function of this body returns; promises are awaited."""
        return self.call("POST", "/execute/sync", {"script": body, "args": list(arguments)})

    def cdp(self, command: str, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def wait(self, body: str, *arguments, seconds: float | None = None):
        """Waits until the script returns something true, and returns that."""
        seconds = seconds or self.patience
        end = time.monotonic() + seconds
        while True:
            if value := self.js(body, *arguments):
                return value
            if time.monotonic() > end:
                raise DriverError(f"waited {seconds} s in vain: {body} {list(arguments) or ''}")
            time.sleep(0.03)

    def find(self, css: str) -> str:
        return self.call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def click(self, css: str):
        self.call("POST", f"/element/{self.find(css)}/click")

    def type(self, css: str, text: str):
        self.call("POST", f"/element/{self.find(css)}/value", {"text": text})

    def fill(self, css: str, text: str):
        self.call("POST", f"/element/{self.find(css)}/clear")
        self.type(css, text)

    def press(self, *keys: str):
        """Presses keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def text(self, css: str) -> str:
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", css)

    def texts(self, css: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css)

    def shown(self, css: str) -> bool:
        return self.js("return Boolean(document.querySelector(arguments[0])?.checkVisibility("
                       "{ visibilityProperty: true }))", css)

    def focus(self) -> str:
        """What has the focus: its id, else its class, else its tag."""
        return self.js("const e = document.activeElement; return e.id || e.className || e.tagName")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call, failed requests apart."""
        entries = self.call("POST", "/se/log", {"type": "browser"})
        bad = [e for e in entries if e["level"] in ("SEVERE", "WARNING") and e["source"] != "network"]
        return [entry["message"] for entry in bad]

    def accept(self):
        self.call("POST", "/alert/accept")

    def dismiss(self):
        self.call("POST", "/alert/dismiss")
