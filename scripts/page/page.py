"""The page as a person uses it, and how a check fails."""
from __future__ import annotations

from driver import ENTER, Browser


class Page:
    """The page in a browser, as a person uses it. `server` is a Fake, or anything else with a `url`."""

    def __init__(self, browser: Browser, server):
        self.browser, self.server = browser, server
        self.open()

    def open(self):
        self.browser.go(self.server.url)
        self.ready()

    def ready(self):
        self.browser.wait("return document.querySelector('#model option') || "
                          "!document.querySelector('#key-form').hidden")

    def reload(self):
        self.browser.reload()
        self.ready()

    def send(self, text: str):
        self.browser.type("#input", text + ENTER)

    def ask_all(self, texts: list[str]):
        """Sends many texts, each after the answer to the one before: what cannot be typed, and quicker."""
        self.browser.js("""
          for (const text of arguments[0]) {
            document.getElementById('input').value = text;
            document.getElementById('composer').requestSubmit();
            while (document.body.classList.contains('running')) await new Promise((go) => setTimeout(go, 1));
          }""", texts)

    def done(self, answers: int | None = None, seconds: float | None = None):
        script = ("return !document.body.classList.contains('running') && (arguments[0] === null || "
                  "document.querySelectorAll('.assistant').length === arguments[0])")
        self.browser.wait(script, answers, seconds=seconds)

    def ask(self, text: str, seconds: float | None = None) -> str:
        before = len(self.browser.texts(".assistant"))
        self.send(text)
        self.done(before + 1, seconds)
        return self.answer()

    def answer(self) -> str:
        """The text of the last answer."""
        return (self.browser.texts(".assistant .markdown") or [""])[-1]

    def last(self, part: str) -> str:
        return self.browser.js("return [...document.querySelectorAll('.assistant')].at(-1)"
                               "?.querySelector(arguments[0])?.textContent ?? ''", part)

    def settings(self, **values: str):
        self.browser.click("#open-settings")
        for name, value in values.items():
            self.browser.fill(f"#{name}", value)
        self.browser.click("#settings-form [type=submit]")

    def new(self):
        self.browser.click("#new")


def expect(condition, *what):
    """Fails a check. Unlike an assertion it is there under -O too, and shows what was seen."""
    if not condition:
        raise AssertionError(" | ".join(str(item) for item in what) or "not as expected")


def equal(got, wanted, what: str = ""):
    expect(got == wanted, what, f"got {got!r}", f"wanted {wanted!r}")
