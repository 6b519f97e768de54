"""Clicking through the page: everything that a person does with it. Checks of REAL need no scripted answers."""
from __future__ import annotations

import json, time
from pathlib import Path

from driver import ENTER, ESCAPE, SHIFT, TAB, Browser, DriverError


class Page:
    """The page in a browser, as a person uses it. `server` is a Fake, or anything else with a `url`."""

    def __init__(self, browser: Browser, server):
        self.browser, self.server = browser, server
        self.open()

    def open(self):
        self.browser.go(self.server.url)
        self.ready()

    def ready(self):
        self.browser.wait("return document.querySelector('#model option') || !document.querySelector('#key-form')?.hidden")

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
            while (document.body.classList.contains('running')) await new Promise((done) => setTimeout(done, 1));
          }""", texts)

    def done(self, answers: int | None = None, seconds: float | None = None):
        self.browser.wait("return !document.body.classList.contains('running') && (arguments[0] === null || "
                          "document.querySelectorAll('.assistant').length === arguments[0])", answers, seconds=seconds)

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


def sending(page: Page):
    """Enter sends, Shift+Enter starts a line; the request holds what it should, the answer and its figures appear."""
    browser = page.browser
    equal(browser.focus(), "input", "focus at the start")
    equal(browser.texts("#model option"), ["fake-small", "fake-large"])
    browser.type("#input", f"one{SHIFT}{ENTER}")
    equal(browser.js("return document.getElementById('input').value"), "one\n")
    page.done(0)
    browser.js("document.getElementById('input').value = ''")
    equal(page.ask("hello"), "Answer 1 to hello.")
    equal(browser.texts(".assistant strong"), ["hello"])
    body = page.server.requests[-1]
    equal(set(body), {"model", "messages", "stream", "stream_options", "seed"}, "nothing is sent that was not set")
    equal(body["messages"], [{"role": "user", "content": "hello"}])
    expect(body["stream"] is True and body["stream_options"] == {"include_usage": True}, body)
    equal(body["model"], "fake-small")
    equal(page.ask("again"), "Answer 2 to again.")
    equal([m["role"] for m in page.server.requests[-1]["messages"]], ["user", "assistant", "user"])
    expect(page.server.requests[-1]["seed"] != body["seed"], "each answer has a seed of its own")
    page.send("   ")
    page.done(2)
    equal(len(page.server.requests), 2, "blanks are no message")


def figures(page: Page):
    """The panel: speed, context, what was kept, experts; the answer's own line; another model's context."""
    page.ask("hello")
    browser = page.browser
    equal(browser.text("#speed"), "12.5 tokens/s")
    equal(browser.text("#context"), "100 of 4096 tokens")
    equal(browser.text("#prompt"), "93 tokens, 41 kept")
    equal(browser.text("#experts"), "97.3 %")
    expect(browser.shown("#experts-row") and browser.shown("#context-meter"), "experts and meter are shown")
    seed = page.server.requests[-1]["seed"]
    equal(page.last(".meta"), f"fake-small · 7 tokens · 12.5 tokens/s · seed {seed}")
    browser.js("const m = document.getElementById('model'); m.value = 'fake-large';"
               "m.dispatchEvent(new Event('change'))")
    page.ask("larger")
    equal(page.server.requests[-1]["model"], "fake-large")
    equal(browser.text("#context"), "100 of 32768 tokens")
    page.reload()
    equal(browser.js("return document.getElementById('model').value"), "fake-large", "the choice is kept")


def streaming(page: Page):
    """An answer grows; Esc and the button stop it and end the request; the end stays in sight unless scrolled away."""
    browser = page.browser
    for stop in (lambda: browser.press(ESCAPE), lambda: browser.click("#stop")):
        page.server.left.clear()
        page.send("slow")
        early = browser.wait("return document.querySelector('.assistant:last-child .markdown')?.textContent.length")
        expect(browser.shown("#stop") and not browser.shown("#send"), "Stop is shown while an answer grows")
        equal(browser.js("return document.getElementById('messages').ariaBusy"), "true")
        equal(browser.text("#status"), "Answering")
        browser.wait("return document.querySelector('.assistant:last-child .markdown').textContent.length > arguments[0]",
                     early + 50)
        expect("≈" in browser.text("#speed"), browser.text("#speed"))
        browser.type("#input", "not now" + ENTER)
        equal(browser.js("return document.getElementById('input').value"), "not now", "kept while an answer runs")
        stop()
        page.done()
        expect(page.server.left.wait(3), "the request goes on after Stop")
        expect(page.last(".meta").startswith("Stopped"), page.last(".meta"))
        equal((browser.focus(), browser.text("#status")), ("input", "Stopped"))
        browser.js("document.getElementById('input').value = ''")
    text = page.answer()
    time.sleep(0.15)
    equal(page.answer(), text, "nothing comes after Stop")
    page.ask("and then")
    expect(page.server.requests[-1]["messages"][-2]["content"].startswith("word0 "), "a stopped answer is part of the talk")


def switching(page: Page):
    """An answer goes on while another conversation is shown, and comes to its own."""
    browser = page.browser
    page.send("slow")
    browser.wait("return document.querySelector('.markdown')?.textContent")
    page.new()
    equal(browser.texts(".assistant"), [])
    time.sleep(0.1)
    equal(browser.texts(".assistant"), [], "another conversation's answer is shown")
    browser.click(".pick")
    size = browser.wait("return document.querySelector('.markdown')?.textContent.length")
    browser.wait("return document.querySelector('.markdown').textContent.length > arguments[0]", size)
    browser.press(ESCAPE)
    page.done(1)


def reasoning(page: Page):
    """Reasoning is folded, says when it grows, opens by keyboard, and is not sent back."""
    browser = page.browser
    page.send("thinking")
    browser.wait("return document.querySelector('summary')?.textContent === 'Reasoning…'")
    page.done(1)
    equal((page.last("summary"), page.last(".reasoning .text")), ("Reasoning", "First this, then that."))
    expect(not browser.shown(".reasoning .text"), "reasoning is not folded")
    equal(page.answer(), "So it is.")
    browser.type("summary", ENTER)
    browser.wait("return document.querySelector('.reasoning .text').checkVisibility()")
    page.ask("next")
    equal(page.server.requests[-1]["messages"][1], {"role": "assistant", "content": "So it is."})


def regenerate(page: Page):
    """The last answer alone can be had anew; a question edited replaces what follows it."""
    browser = page.browser
    page.ask("one")
    page.ask("two")
    expect(len(browser.texts(".regenerate")) == 2 and not browser.shown(".regenerate"), "only the last")
    browser.click(".assistant:last-child .regenerate")
    page.done(2)
    browser.wait("return [...document.querySelectorAll('.assistant .markdown')].at(-1).textContent === arguments[0]",
                 "Answer 3 to two.")
    first, second = page.server.requests[-2:]
    equal(first["messages"], second["messages"])
    expect(first["seed"] != second["seed"], "the same seed again")
    browser.click(".user .edit")
    browser.wait("return document.activeElement.matches('.editor textarea')")
    equal(browser.js("return document.activeElement.value"), "one")
    browser.press(ESCAPE)
    equal(browser.texts(".user .text"), ["one", "two"], "Esc leaves the editor")
    browser.click(".user .edit")
    browser.fill(".editor textarea", "uno" + ENTER)
    page.done(1)
    equal(browser.texts(".user .text"), ["uno"])
    equal(page.server.requests[-1]["messages"], [{"role": "user", "content": "uno"}])


def settings(page: Page):
    """System prompt and sampling are checked, sent, kept over a reload and can be taken back."""
    browser = page.browser
    values = {"temperature": "0.7", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "seed": "5", "max_tokens": "64"}
    page.settings(system="Be brief.", **values)
    expect(not browser.shown("#settings"), "the dialog is closed")
    page.reload()
    page.ask("hello")
    body = page.server.requests[-1]
    equal({name: body[name] for name in values}, {name: json.loads(value) for name, value in values.items()})
    equal(body["messages"][0], {"role": "system", "content": "Be brief."})
    browser.click("#open-settings")
    browser.fill("#temperature", "9")
    browser.click("#settings-form [type=submit]")
    expect(browser.shown("#settings"), "a temperature of 9 is taken")
    browser.press(ESCAPE)
    browser.wait("return !document.getElementById('settings').open")
    browser.click("#open-settings")
    equal(browser.js("return document.getElementById('temperature').value"), "0.7", "Esc takes nothing")
    browser.click("#settings-cancel")
    page.settings(system="", **{name: "" for name in values})
    page.ask("bare")
    equal(set(page.server.requests[-1]), {"model", "messages", "stream", "stream_options", "seed"})


def errors(page: Page):
    """Errors of the server and within streams are shown as text; the talk goes on after them."""
    browser = page.browser
    cases = {
        "refused": ("", "The prompt has 5000 tokens, the context 4096."),
        "busy": ("", "All slots are taken. (try again in 7 s)"),
        "proxy": ("", "The server answered 502 Bad Gateway"),
        "error within": ("The beginning", "The disk is <b>gone</b>."),
        "broken off": ("The beginning", "The connection ended before the answer did."),
        "rubbish within": ("", "The server sent a piece of an answer that cannot be read."),
        "cut by length": ("Too long", ""),
        "in pieces": ("Zwölf Boxkämpfer 🥊 日本語 Ende", ""),
    }
    for question, wanted in cases.items():
        page.ask(question)
        equal((page.answer(), page.last(".error")), wanted, question)
    expect("limit of tokens" in browser.texts(".meta")[-2], browser.texts(".meta"))
    page.new()
    page.ask("refused")
    page.ask("and now")
    equal(page.server.requests[-1]["messages"], [{"role": "user", "content": "refused\n\nand now"}])
    page.server.httpd.server_close()
    page.server.httpd.shutdown()
    page.ask("anyone")
    equal(page.last(".error"), "The server does not answer. Is it running?")


def conversations(page: Page):
    """Conversations outlive a reload, can be renamed, deleted, taken out as a file and taken in again."""
    browser = page.browser
    page.ask("first talk\nof two lines".replace("\n", " "))
    page.new()
    expect(browser.shown(".empty"), "a new conversation is empty")
    page.ask("second talk")
    equal(browser.texts(".pick"), ["second talk", "first talk of two lines"])
    page.reload()
    equal(browser.texts(".user .text"), ["second talk"], "a reload shows the same conversation")
    equal(page.answer(), "Answer 2 to second talk.")
    browser.click("li:nth-child(2) .pick")
    equal(browser.texts(".user .text"), ["first talk of two lines"])
    browser.click("li:nth-child(2) .rename")
    browser.fill("li form input", "Renamed" + ENTER)
    equal(browser.texts(".pick"), ["second talk", "Renamed"])
    browser.click("#export")
    exported = downloaded(browser)
    equal(sorted(c["title"] for c in exported["conversations"]), ["Renamed", "second talk"])
    browser.click("li:nth-child(2) .remove")
    browser.dismiss()
    equal(len(browser.texts(".pick")), 2, "not deleted unless confirmed")
    for left in (1, 0):
        browser.click("li:nth-child(1) .remove")
        browser.accept()
        browser.wait("return document.querySelectorAll('.pick').length === arguments[0]", left)
    page.reload()
    equal(browser.texts(".pick"), [], "deleted ones stay away")
    take_in(page, json.dumps(exported))
    equal(browser.texts(".pick"), ["second talk", "Renamed"])
    expect("Imported 2 of 2" in browser.text("#notice"), browser.text("#notice"))
    take_in(page, json.dumps(exported))
    expect("Imported 0 of 2" in browser.text("#notice"), browser.text("#notice"))
    page.reload()
    browser.click("li:nth-child(2) .pick")
    equal(browser.texts(".user .text"), ["first talk of two lines"])
    for bad, says in (("{", "not JSON"), ("[]", "no exported"), ('{"format":"wayinfer-conversations","version":1,'
                      '"conversations":[{"id":"x","messages":[{"role":"user"}]}]}', "Conversation 1")):
        take_in(page, bad)
        expect(says in browser.text("#notice"), browser.text("#notice"))
    equal(len(browser.texts(".pick")), 2)
    browser.click("#notice button")
    expect(not browser.shown("#notice"), "the notice can be dismissed")


def downloaded(browser: Browser) -> dict:
    end = time.monotonic() + 5
    while not (files := list(browser.downloads.glob("wayinfer-conversations-*.json"))):
        if time.monotonic() > end:
            raise DriverError("no file was exported")
        time.sleep(0.05)
    return json.loads(files[0].read_text())


def take_in(page: Page, text: str):
    path = Path(page.browser.home) / "import.json"
    path.write_text(text)
    page.browser.js("document.getElementById('notice').replaceChildren()")
    page.browser.type("#import-file", str(path))
    page.browser.wait("return document.getElementById('notice').textContent")


def two_tabs(page: Page):
    """What another tab added is there when this one is seen again."""
    page.ask("here")
    page.browser.js("""
      const opening = indexedDB.open('wayinfer', 1);
      return new Promise((done) => opening.onsuccess = () => {
        const table = opening.result.transaction('conversations', 'readwrite').objectStore('conversations');
        const all = table.getAll();
        all.onsuccess = () => {
          const [item] = all.result;
          item.messages.push({ role: 'user', content: 'there' });
          item.updated += 1;
          table.put(item).onsuccess = () => done();
        };
      });""")
    page.browser.js("document.dispatchEvent(new Event('visibilitychange'))")
    page.browser.wait("return document.querySelectorAll('.user').length === 2")


def api_key(page: Page):
    """A key is asked for when the server wants one, goes with each request, and is kept for the tab alone."""
    browser = page.browser
    browser.wait("return document.activeElement.id === 'key'")
    browser.type("#key", "wrong" + ENTER)
    browser.wait("return document.activeElement.id === 'key'")
    page.ask("hello")
    equal(page.last(".error"), "This server wants a key.")
    browser.type("#key", page.server.key + ENTER)
    browser.wait("return !document.querySelector('.error:not([hidden])') && document.querySelector('.markdown')?.textContent")
    page.done(1)
    equal(browser.texts("#model option"), ["fake-small", "fake-large"])
    expect(not browser.shown("#key-form"), "the field goes")
    page.reload()
    page.ask("again")
    expect("again" in page.answer(), page.answer())
    kept = browser.js("return [JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
    expect(page.server.key not in kept[0] and page.server.key in kept[1], kept)


def copying(page: Page):
    """The buttons copy a message and a block of code."""
    browser = page.browser
    browser.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.ask("code")
    browser.click(".code button")
    browser.wait("return document.querySelector('.code button').textContent === 'Copied'")
    equal(browser.js("return navigator.clipboard.readText()"), "fn main() {\n    let x = \"<b>\";\n}")
    browser.click(".user .actions button")
    browser.wait("return document.querySelector('.user .actions button').textContent === 'Copied'")
    equal(browser.js("return navigator.clipboard.readText()"), "code")
    browser.js("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    browser.click(".assistant .actions button")
    browser.wait("return document.querySelector('.assistant .actions button').textContent === 'Copied'")
    browser.js("delete navigator.clipboard")
    expect(browser.js("return navigator.clipboard.readText()").startswith("See:\n```rust\n"), "the old way copies too")


def keyboard(page: Page):
    """Tab reaches everything in the order of the page, and what has the focus shows it."""
    browser = page.browser
    page.ask("hello")
    browser.js("document.activeElement.blur(); getSelection().removeAllRanges(); document.body.focus()")
    order = []
    for _ in range(18):
        browser.press(TAB)
        order.append(browser.focus())
        visible = browser.js("const s = getComputedStyle(document.activeElement);"
                             "return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2")
        expect(visible or order[-1] in ("BODY", "HTML"), f"the focus on {order[-1]} cannot be seen")
    wanted = ["skip", "model", "theme", "open-settings", "new", "pick", "icon rename", "icon remove", "export",
              "import", "messages", "idle edit", "idle regenerate", "input", "send"]
    seen = [name for name in dict.fromkeys(order) if name in wanted]
    # Tab starts after what had the focus and comes round.
    start = seen.index("skip") if "skip" in seen else 0
    equal(seen[start:] + seen[:start], wanted)
    unnamed = browser.js("""
      return [...document.querySelectorAll('button, input, select, textarea')].filter((e) =>
        !(e.ariaLabel || e.title || e.labels?.length || e.textContent.trim() || e.hidden)).map((e) => e.outerHTML)""")
    equal(unnamed, [], "controls without a name")
    equal(browser.js("return document.getElementById('messages').getAttribute('aria-live')"), "polite")


def narrow(page: Page):
    """On a phone: one column, a drawer that Esc, the backdrop and a choice close, nothing wider than the screen."""
    browser = page.browser
    browser.cdp("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True)
    try:
        page.open()
        for question in ("wide", "code"):
            page.ask(question)
        overflow = browser.js("return document.documentElement.scrollWidth - innerWidth")
        expect(overflow <= 0, f"{overflow} px too wide")
        equal(browser.js("return innerWidth"), 360)
        expect(browser.shown("#menu") and not browser.shown("#drawer"), "the drawer is closed at the start")
        box = browser.js("return document.querySelector('main').getBoundingClientRect().width")
        equal(box, 360, "one column")
        for close in (lambda: browser.press(ESCAPE), lambda: browser.js(
                "document.elementFromPoint(350, 400).click()"), lambda: browser.click(".pick")):
            browser.click("#menu")
            expect(browser.shown("#drawer"), "the drawer opens")
            equal(browser.focus(), "new", "the focus goes into the drawer")
            expect(browser.js("return document.querySelector('main').inert"), "what is behind cannot be reached")
            close()
            browser.wait("return !document.getElementById('drawer').checkVisibility({ visibilityProperty: true })")
            equal(browser.focus(), "menu")
        browser.click("#open-settings")
        width = browser.js("return document.getElementById('settings').getBoundingClientRect().right")
        expect(width <= 360, "settings are too wide", width)
        browser.press(ESCAPE)
        for css in ("#input", "#send"):
            bottom = browser.js("return document.querySelector(arguments[0]).getBoundingClientRect().bottom", css)
            expect(0 < bottom <= 640, f"{css} is out of sight", bottom)
    finally:
        browser.cdp("Emulation.clearDeviceMetricsOverride")


CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
const rgb = (color) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (color) => rgb(color).slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => { for (; e; e = e.parentElement) {
  const color = getComputedStyle(e).backgroundColor;
  if (rgb(color)[3] === 255) return color;
} };
const low = new Set();
for (const e of document.querySelectorAll('body *')) {
  if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
  if (e.closest('.hidden')) continue;
  const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (!(ratio >= 4.5)) low.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
}
return [[...low], light(getComputedStyle(document.body).backgroundColor)];
"""


def themes(page: Page):
    """The system's theme, and the one chosen, which a reload keeps; every text has a contrast of 4.5 or more."""
    browser = page.browser
    for question in ("code", "refused", "thinking"):
        page.ask(question)
    browser.js("document.querySelectorAll('details').forEach((e) => e.open = true)")

    def is_dark() -> bool:
        low, background = browser.js(CONTRAST)
        equal(low, [], "texts of low contrast")
        return background < 0.2

    try:
        for scheme in ("dark", "light"):
            browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            equal(is_dark(), scheme == "dark", f"the system's theme is {scheme}")
            for chosen in ("dark", "light"):
                browser.click("#theme")
                equal(browser.js("return document.getElementById('theme').title"), f"Theme: {chosen}")
                equal(is_dark(), chosen == "dark", f"{chosen} was chosen")
                page.reload()
                equal(is_dark(), chosen == "dark", f"{chosen} is kept")
            browser.click("#theme")
            equal(browser.js("return document.getElementById('theme').title"), "Theme: system")
            equal(is_dark(), scheme == "dark", "back to the system's")
    finally:
        browser.cdp("Emulation.setEmulatedMedia", features=[])


CODE = 'See:\n```rust\nfn main() {\n    let x = "<b>";\n}\n```\n`code` and [a link](https://example.org/)'
ANSWERS = {"code": ("", CODE), "wide": ("", "a" * 3000 + "\n\n|" + "long cell|" * 30 + "\n|" + "-|" * 30 + "\n\n```\n"
                                        + "x" * 900 + "\n```")}
SCRIPTED = [sending, figures, streaming, switching, reasoning, regenerate, settings, errors, conversations, two_tabs,
            copying, keyboard, narrow, themes]
