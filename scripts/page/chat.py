"""Clicking through the page: everything that a person does with it."""
from __future__ import annotations

import json, time
from pathlib import Path

from driver import ENTER, ESCAPE, SHIFT, Browser, DriverError
from page import Page, equal, expect


# What every request holds.
BARE = {"model", "messages", "stream", "stream_options", "seed"}
# The text of the answer that grows.
GROWING = "document.querySelector('.assistant:last-child .markdown')?.textContent"


def sending(page: Page):
    """Enter sends, Shift+Enter starts a line; the request holds what it should, the answer appears."""
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
    equal(set(body), BARE, "nothing is sent that was not set")
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
    equal(browser.text("#prompt"), "93 tokens, 41 from the cache")
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
    """An answer grows, the end stays in sight; Esc and the button stop it and end the request."""
    browser = page.browser
    for stop in (lambda: browser.press(ESCAPE), lambda: browser.click("#stop")):
        page.server.left.clear()
        page.send("slow")
        early = browser.wait(f"return {GROWING}.length")
        expect(browser.shown("#stop") and not browser.shown("#send"), "Stop is shown while an answer grows")
        equal(browser.js("return document.getElementById('messages').ariaBusy"), "true")
        equal(browser.text("#status"), "Answering")
        browser.wait(f"return {GROWING}.length > arguments[0]", early + 50)
        expect("≈" in browser.text("#speed"), browser.text("#speed"))
        browser.type("#input", "not now" + ENTER)
        equal(browser.js("return document.getElementById('input').value"), "not now", "kept meanwhile")
        below = browser.js("const m = document.getElementById('messages');"
                           "return m.scrollHeight - m.scrollTop - m.clientHeight")
        expect(below < 60, "the end is out of sight", below)
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
    before = page.server.requests[-1]["messages"][-2]["content"]
    expect(before.startswith("word0 "), "a stopped answer is part of the talk", before)


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


def interrupted(page: Page):
    """A reload in the midst of an answer keeps what was there a second before, and ends the request."""
    browser = page.browser
    page.send("slow")
    browser.wait(f"return {GROWING}.includes('word60 ')")
    page.reload()
    expect("word5 " in page.answer(), page.answer()[:80])
    expect(page.last(".meta").startswith(("Interrupted", "Stopped")), page.last(".meta"))
    expect(page.server.left.wait(3), "the request goes on")
    page.ask("and then")


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
    equal(page.answer(), "Answer 3 to two.")
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
    values = {"temperature": "0.7", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "seed": "5",
              "max_tokens": "64"}
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
    equal(set(page.server.requests[-1]), BARE)


def errors(page: Page):
    """Errors of the server and within streams are shown as text; the talk goes on after them."""
    browser = page.browser
    cases = {
        "refused": ("", "The prompt has 5000 tokens, the context 4096."),
        "busy": ("", "All slots are taken. (try again in 7 s)"),
        "proxy": ("", "The server answered 502 Bad Gateway"),
        "error within": ("The beginning", "The disk is <b>gone</b>."),
        "broken off": ("The beginning", "The connection ended before the answer did."),
        "rubbish within": ("", "The server sent something that cannot be read."),
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
    equal(browser.focus(), "pick", "the focus stays in the list")
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
    broken = exported | {"conversations": [{"id": "x", "messages": [{"role": "user"}]}]}
    for bad, says in (("{", "not JSON"), ("[]", "no exported"), (json.dumps(broken), "Conversation 1")):
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
    browser.wait("return document.querySelector('.markdown').textContent")
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
    equal(browser.js("return navigator.clipboard.readText()"), CODE, "the old way copies too")


CODE = 'See:\n```rust\nfn main() {\n    let x = "<b>";\n}\n```\n`code` and [a link](https://example.org/)'
WIDE = "a" * 3000 + "\n\n|" + "long cell|" * 30 + "\n|" + "-|" * 30 + "\n\n```\n" + "x" * 900 + "\n```"
ANSWERS = {"code": ("", CODE), "wide": ("", WIDE)}
CHECKS = [sending, figures, streaming, switching, interrupted, reasoning, regenerate, settings, errors,
          conversations, two_tabs, copying]
