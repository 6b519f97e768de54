"""The page with wayinfer itself on the demo: what needs no scripted answer."""
from __future__ import annotations

import re, signal, subprocess, threading, urllib.request
from pathlib import Path

from driver import ENTER, ESCAPE, Browser, DriverError
from fake import FILES, PICTURES, POLICY, TYPES
from page import Page, equal, expect

PATIENCE = 60  # seconds for an answer: a debug build on a busy machine is slow
KEY = "secret-key"
QUESTION = "Tell me about the sea."


class Program:
    """`wayinfer serve` on a model, the demo as a rule, and a free port."""

    def __init__(self, program: str, *arguments: str, model: str = "demo"):
        if not Path(program).is_file():
            raise DriverError(f"{program} is missing: cargo build, or --fake")
        command = [program, "serve", "-m", model, "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", line):
                self.url = found[1] + "/"
                break
        else:
            raise DriverError(f"the program did not start: {''.join(self.log)[-500:]}")
        # A full pipe would stop the program.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        self.log.extend(self.process.stderr)

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "a kill, for it did not end"
        expect(code == 0 or failure, f"the program ended with {code}", "".join(self.log)[-500:])


def files(_browser: Browser, program: Program):
    """Every file is served as it lies here, with its type and the policy."""
    for path in [*FILES.iterdir(), PICTURES]:
        if path.suffix not in TYPES:
            continue
        address = program.url + ("" if path.name == "index.html" else f"page/{path.name}")
        with urllib.request.urlopen(address, timeout=10) as response:
            equal(response.read(), path.read_bytes(), path.name)
            equal(response.headers["Content-Type"], TYPES[path.suffix], path.name)
            equal(response.headers["Content-Security-Policy"], POLICY, path.name)


def answers(browser: Browser, program: Program):
    """An answer streams in, with its figures; the same seed gives the same answer, another one another."""
    page = Page(browser, program)
    page.settings(seed="7", max_tokens="24", temperature="1")
    first = page.ask(QUESTION)
    expect(first.strip(), "no answer", page.last(".error"))
    equal(page.last(".error"), "")
    expect(re.fullmatch(r"\d+(\.\d+)? tokens/s", browser.text("#speed")), browser.text("#speed"))
    expect(re.fullmatch(r"\d+ of \d+ tokens", browser.text("#context")), browser.text("#context"))
    expect(re.search(r"seed 7$", page.last(".meta")), page.last(".meta"))
    browser.click(".regenerate")
    page.done(1)
    equal(page.answer(), first, "the same seed, another answer")
    page.settings(seed="8")
    browser.click(".regenerate")
    page.done(1)
    expect(page.answer() != first, "another seed, the same answer", first)
    page.ask("And then?")
    browser.click(".user .edit")
    browser.wait("return document.activeElement.matches('.editor textarea')")
    browser.fill(".editor textarea", "Tell me about the wood." + ENTER)
    page.done(1)
    equal(browser.texts(".user .text"), ["Tell me about the wood."])
    text = page.answer()
    page.reload()
    equal(page.answer(), text, "a reload keeps the answer")


def stopping(browser: Browser, program: Program):
    """Esc ends a long answer, and its place in the server is free again."""
    page = Page(browser, program)
    page.new()
    page.settings(max_tokens="4000", seed="3", system="Go on and on.")
    page.send("Tell me a very long story.")
    browser.wait("return document.querySelector('.assistant .markdown')?.textContent.length > 5")
    browser.press(ESCAPE)
    page.done(1)
    expect(page.last(".meta").startswith("Stopped"), page.last(".meta"))
    page.settings(max_tokens="4")
    expect(page.ask(QUESTION).strip(), "no answer after Stop", page.last(".error"))
    expect("Ended by the limit" in page.last(".meta"), page.last(".meta"))


def refusals(browser: Browser, program: Program):
    """What the server refuses is said in its words."""
    page = Page(browser, program)
    page.new()
    page.settings(max_tokens="4")
    browser.js("document.getElementById('input').value = 'many words '.repeat(20000)")
    browser.type("#input", ENTER)
    page.done(1)
    expect(re.search(r"context|tokens", page.last(".error")), page.last(".error"), page.answer()[:80])


def mapped(browser: Browser, program: Program):
    """The panel of residency says that a mapped model streams nothing, and has the time of its tokens and the use of its experts."""
    page = Page(browser, program)
    page.settings(max_tokens="4")
    page.ask(QUESTION)
    browser.click("#open-residency")
    browser.wait("return document.querySelector('#residency svg.picture')")
    expect("nothing is streamed" in browser.text("#residency-weights"), browser.text("#residency-weights"))
    equal(browser.texts("#residency h3"), ["Time by token", "Experts by layer"])
    browser.press(ESCAPE)


def streamed(browser: Browser, program: Program):
    """While an answer runs the panel is kept fresh: hits, reads, waiting and the use of experts."""
    page = Page(browser, program)
    page.new()
    page.settings(max_tokens="4000", seed="3")
    page.send("Tell me a very long story.")
    browser.wait("return document.querySelector('.assistant .markdown')?.textContent.length > 5")
    browser.click("#open-residency")
    browser.wait("return document.querySelectorAll('#residency svg.picture').length === 4")
    expect("of weights in" in browser.text("#residency-weights"), browser.text("#residency-weights"))
    titles = ["Time by token", "From disk by token", "Experts found in memory by token", "Experts by layer"]
    equal(browser.texts("#residency h3"), titles)
    before = browser.text("#residency-figures")
    expect("Read from disk" in before and "Waited for weights" in before, before)
    browser.wait("return document.getElementById('residency-figures').innerText !== arguments[0]", before)
    expect(browser.texts("#residency text.c"), "no figures in the map of experts")
    browser.press(ESCAPE)
    browser.press(ESCAPE)
    page.done(1)


def keys(browser: Browser, program: Program):
    """With a key the page is served all the same, and asks for it."""
    page = Page(browser, program)
    browser.wait("return document.activeElement.id === 'key'")
    browser.type("#key", KEY + ENTER)
    browser.wait("return document.querySelector('#model option')")
    page.settings(max_tokens="4")
    expect(page.ask(QUESTION).strip(), "no answer with a key", page.last(".error"))
    browser.click("#open-residency")
    browser.wait("return document.querySelector('#residency svg.picture')")


def least_ram(program: str) -> str:
    """What `--ram` has to be at the least for the model of noise, as the program says it."""
    command = [program, "serve", "-m", NOISE, "--port", "0", *SLOWLY, "--ram", "1M"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    found = re.search(r"of memory: ([\d.]+) MiB", told)
    expect(found, "the program does not say how much memory is needed", told[-500:])
    return f"{float(found[1]) + 0.2:.1f}M"


CHECKS = [files, answers, refusals, mapped]
# A model of noise, which does not end by itself, slow enough to be stopped.
ENDLESS = [stopping]
NOISE = str(Path(__file__).resolve().parents[2] / "fixtures/moe-q4_k_m.gguf")
SLOWLY = ["--template", "chatml", "--ctx", "4096", "--isa", "scalar", "--threads", "1"]
# The same in little memory: its weights come from the disk.
STREAMED = [streamed]
KEYED = [keys]
