"""That nothing runs, loads or hangs, whatever models, files and servers say, and that checks would notice."""
from __future__ import annotations

import html.parser, json, re, time
from collections.abc import Callable

from attacks import DEPTH, HUGE, INSPECT, RUN, attacks
from chat import conversations, streaming, take_in
from driver import Browser, DriverError
from fake import FILES, TYPES, Fake
from page import Page, equal, expect

MOST_BYTES = 68 << 10
MOST_SECONDS = 15  # for a huge answer; the slowest takes 0.8 s on an idle machine
MOST_DEPTH = 60  # elements within each other: browsers lay out by recursion


PARSERS = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|"
                     r"new Function|createContextualFragment|srcdoc|setHTML")
ELSEWHERE = re.compile(r"(?:src|href|url|import|from)[\s=(\"']+(?:https?:)?//")


def files(_browser: Browser):
    """The page's files: small, without anything inline or from elsewhere, and without ways to parse HTML."""
    sizes = {path.name: path.stat().st_size for path in FILES.iterdir() if path.suffix in TYPES}
    expect(sum(sizes.values()) < MOST_BYTES, f"{sum(sizes.values())} bytes", sizes)
    for path in FILES.glob("*.js"):
        equal(PARSERS.findall(path.read_text()), [], path.name)
    for name in sizes:
        equal(ELSEWHERE.findall((FILES / name).read_text()), [], name)

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            names = [name for name, _ in attributes]
            inline = [name for name in names if name.startswith("on") or name == "style"]
            equal(inline, [], tag)
            expect(tag != "style" and (tag != "script" or "src" in names), f"inline {tag}")

    Reader().feed((FILES / "index.html").read_text())


def inspect(page: Page) -> list[str]:
    """What is wrong with the page after an attack."""
    roots = ["#messages", "#conversations", "#notice", "#panel", "#model"]
    wrong = page.browser.js(INSPECT, roots)
    if page.browser.js("return location.href") != page.server.url:
        wrong.append("navigated")
    return wrong + [f"asked for {path}" for path in page.server.unexpected]


def attack(browser: Browser, **options) -> list[str]:
    """All attacks as answers, reasoning and questions of one conversation: what went wrong."""
    with Fake(**options) as server:
        texts = attacks(server.url)
        # An alert would block all: one stands for whatever runs.
        server.answers = {f"a{index}": (text, text) for index, text in enumerate(texts)}
        server.answers |= {text: ("", "asked") for text in texts}
        page = Page(browser, server)
        page.ask_all([f"a{index}" for index in range(len(texts))])
        browser.js("document.querySelectorAll('details').forEach((e) => e.open = true);"
                   "document.querySelectorAll('#messages a').forEach((e) => e.focus())")
        wrong = inspect(page)
        if wrong:
            return wrong
        shown = browser.texts(".assistant .reasoning .text")
        equal(shown, texts, "reasoning is shown as it is")
        page.new()
        page.ask_all(texts)
        equal(browser.texts(".user .text"), texts, "questions are shown as they are")
        return inspect(page)


def answers(browser: Browser):
    """Scripts, handlers, images and links in answers, reasoning and questions: nothing runs or loads."""
    equal(attack(browser), [])
    blocked = [text for text in browser.complaints() if "Content Security Policy" in text]
    equal(blocked, [], "the policy had to step in")


def answers_without_policy(browser: Browser):
    """The same without the policy: the page alone keeps them out."""
    equal(attack(browser, policy=None), [])


def other_texts(browser: Browser):
    """Names of models, errors, titles, statistics and files taken in hold attacks too."""
    evil = f'"><img src=x onerror={RUN}><script>{RUN}</script>'
    models = [{"id": evil, "context_length": evil}, {"id": 5}, None, {"id": "b"}]
    with Fake(policy=None, models=models) as server:
        server.answers = {"hello": ("", evil)}
        page = Page(browser, server)
        page.ask("hello")
        equal(server.requests[-1]["model"], evil)
        page.ask("error within")
        equal(page.last(".error"), "The disk is <b>gone</b>.")
        stats = {"speed": evil, "experts": {"toFixed": evil}, "prompt": 1e999}
        texts = {name: evil for name in ("content", "reasoning", "model", "error", "note", "seed")}
        message = {"role": "assistant", "stats": stats, **texts}
        item = {"id": evil, "title": evil, "system": evil, "updated": evil,
                "messages": [{"role": "user", "content": evil}, message]}
        items = [item, item | {"id": "__proto__"}]
        file = {"format": "wayinfer-conversations", "version": 1, "conversations": items}
        take_in(page, json.dumps(file).replace("Infinity", "1e999"))
        expect("Imported 2 of 2" in browser.text("#notice"), browser.text("#notice"))
        browser.click("li:last-child .pick")
        equal(browser.texts(".user .text"), [evil])
        equal(page.last(".error"), evil)
        equal(inspect(page), [])
        page.reload()
        equal(len(browser.texts(".pick")), 3)
        equal(inspect(page), [])


WIDER = "const m = document.getElementById('messages'); return m.scrollWidth - m.clientWidth"


def huge(browser: Browser):
    """Huge and deeply nested answers: shown in time, bounded in depth, within the window."""
    with Fake(answers={name: ("", text) for name, text in HUGE.items()}) as server:
        page = Page(browser, server)
        slowest = (0.0, "")
        for name in HUGE:
            start = time.monotonic()
            page.ask(name, seconds=MOST_SECONDS)
            # A layout of all, as the next scroll would cause.
            depth = browser.js("document.getElementById('messages').scrollHeight;" + DEPTH)
            slowest = max(slowest, (time.monotonic() - start, name))
            expect(depth <= MOST_DEPTH, f"{name}: {depth} elements deep")
            wide = browser.js(WIDER)
            expect(wide <= 0, f"{name}: {wide} px too wide")
            page.new()
        equal(inspect(page), [])
        return f"the slowest, {slowest[1]}, took {slowest[0]:.2f} s"


# Faults that the checks above must notice, as changes of the page's files.
CANARIES: list[tuple[str, dict, Callable[[Browser, dict], str]]] = []


def canary(what: str, patches: dict):
    def add(check):
        CANARIES.append((what, patches, check))
        return check
    return add


def attacked(*wanted: str):
    """The attack set must find each of these."""
    def check(browser: Browser, patches: dict):
        wrong = attack(browser, policy=None, patches=patches)
        for fault in wanted:
            expect(any(fault in item for item in wrong), f"not noticed: {fault}", wrong)
    return check


def fails(check: Callable[[Page], None]):
    """This check must fail."""
    def run(browser: Browser, patches: dict):
        with Fake(patches=patches) as server:
            page = Page(browser, server)
            browser.patience, patience = 2, browser.patience
            try:
                check(page)
            except (AssertionError, DriverError):
                return
            finally:
                browser.patience = patience
                browser.go("about:blank")
        raise AssertionError("not noticed")
    return run


canary("texts are parsed as HTML", {"dom.js": [(
    "node.append(...children);",
    "for (const child of children) if (child instanceof Node) node.append(child);"
    "else node.insertAdjacentHTML('beforeend', child);")]})(attacked("ran", "element IMG", "asked for"))
canary("Markdown's texts are parsed as HTML", {"inline.js": [(
    "path.at(-1).append(...(plain ? [plain] : []), ...nodes);",
    "path.at(-1).insertAdjacentHTML('beforeend', plain); path.at(-1).append(...nodes);",
)]})(attacked("ran", "element IMG"))
canary("links lead anywhere", {"inline.js": [
    ("if (!/^https?:\\/\\//i.test(target)) return null;", ""),
    ('address.protocol === "http:" || address.protocol === "https:" ? address : null', "address"),
]})(attacked("link to javascript:", "link to data:"))
canary("links hide where they lead", {"inline.js": [(
    "if (node.textContent !== href) node.append", "if (false) node.append")]})(attacked("link that hides"))
canary("images are loaded", {"inline.js": [(
    'const node = h("a", { href,', 'const node = h("img", { src: href,',
)]})(attacked("element IMG", "asked for"))
canary("Stop does nothing", {"app.js": [("state.run?.controller.abort();", "")]})(fails(streaming))
canary("nothing is kept", {"store.js": [(
    'run("readwrite", "put", item);', "run('readonly', 'count');")]})(fails(conversations))
CHECKS = [files, answers, answers_without_policy, other_texts, huge]
