"""That nothing runs, loads or hangs, whatever a model, a file or a server says; and that the checks would notice."""
from __future__ import annotations

import html.parser, json, re, time
from collections.abc import Callable

from attacks import DEPTH, HUGE, INSPECT, RUN, attacks
from chat import Page, conversations, equal, expect, streaming, take_in
from driver import Browser, DriverError
from fake import FILES, POLICY, Fake

MOST_BYTES = 60_000
MOST_SECONDS = 15  # for a huge answer; the slowest takes 0.8 s on an idle machine
MOST_DEPTH = 60  # elements within each other: browsers lay out by recursion


def files(_browser: Browser):
    """The page's files: small, without anything inline or from elsewhere, and without ways to parse HTML."""
    sizes = {path.name: path.stat().st_size for path in FILES.iterdir() if path.suffix in (".html", ".css", ".js")}
    expect(sum(sizes.values()) < MOST_BYTES, f"{sum(sizes.values())} bytes", sizes)
    for path in FILES.glob("*.js"):
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|"
                           r"createContextualFragment|srcdoc|setHTML", path.read_text())
        equal(found, [], path.name)
    for name, text in {path.name: path.read_text() for path in FILES.iterdir() if path.name in sizes}.items():
        elsewhere = [url for url in re.findall(r"(?:src|href|url|import|from)[\s=(\"']+(https?:)?//", text) if url]
        equal(elsewhere, [], name)

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            names = [name for name, _ in attributes]
            expect(not [n for n in names if n.startswith("on") or n == "style"], f"inline handler or style: {tag}")
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
    """Scripts, handlers, images, links and HTML in answers, reasoning and questions: nothing runs or loads."""
    equal(attack(browser), [])
    equal([c for c in browser.complaints() if "Content Security Policy" in c], [], "the policy had to step in")


def answers_without_policy(browser: Browser):
    """The same without the policy: the page alone keeps them out."""
    equal(attack(browser, policy=None), [])


def other_texts(browser: Browser):
    """Names of models, errors, titles, statistics and files taken in hold attacks too."""
    evil = f'"><img src=x onerror={RUN}><script>{RUN}</script>'
    with Fake(policy=None, models=[{"id": evil, "context_length": evil}, {"id": 5}, None, {"id": "b"}]) as server:
        server.answers = {"hello": ("", evil)}
        page = Page(browser, server)
        page.ask("hello")
        equal(server.requests[-1]["model"], evil)
        page.ask("error within")
        equal(page.last(".error"), "The disk is <b>gone</b>.")
        message = {"role": "assistant", "content": evil, "reasoning": evil, "model": evil, "error": evil, "note": evil,
                   "seed": evil, "stats": {"speed": evil, "experts": {"toFixed": evil}, "prompt": 1e999}}
        item = {"id": evil, "title": evil, "system": evil, "updated": evil,
                "messages": [{"role": "user", "content": evil}, message]}
        file = {"format": "wayinfer-conversations", "version": 1, "conversations": [item, item | {"id": "__proto__"}]}
        take_in(page, json.dumps(file).replace("Infinity", "1e999"))
        expect("Imported 2 of 2" in browser.text("#notice"), browser.text("#notice"))
        browser.click("li:last-child .pick")
        equal(browser.texts(".user .text"), [evil])
        equal(page.last(".error"), evil)
        equal(inspect(page), [])
        page.reload()
        equal(len(browser.texts(".pick")), 3)
        equal(inspect(page), [])


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
            wide = browser.js("const m = document.getElementById('messages'); return m.scrollWidth - m.clientWidth")
            expect(wide <= 0, f"{name}: {wide} px too wide")
            page.new()
        equal(inspect(page), [])
        return f"the slowest, {slowest[1]}, took {slowest[0]:.2f} s"


MARKDOWN = [
    ("a *b* **c** ***d*** _e_ __f__ ~~g~~ `h`", "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <em>e</em> "
     "<strong>f</strong> <del>g</del> <code>h</code></p>"),
    ("snake_case_name 2 * 3 * 4 a*b*c", "<p>snake_case_name 2 * 3 * 4 a<em>b</em>c</p>"),
    ("**強調。**次 **\"q\"**x", "<p><strong>強調。</strong>次 <strong>\"q\"</strong>x</p>"),
    ("**a *b* c** *a **b** c*", "<p><strong>a <em>b</em> c</strong> <em>a <strong>b</strong> c</em></p>"),
    ("**open *only ~~one", "<p>**open *only ~~one</p>"),
    ("``a ` b`` `` ` `` \\*no\\* `\\*`", "<p><code>a ` b</code> <code>`</code> *no* <code>\\*</code></p>"),
    ("a\nb  \nc\\\nd", "<p>a<br>b<br>c<br>d</p>"),
    ("a\n\nb", "<p>a</p><p>b</p>"),
    ("# A\n### C#\n## B ##\n####### no", "<h3>A</h3><h5>C#</h5><h4>B</h4><p>####### no</p>"),
    ("a\n---\nb\n***", "<p>a</p><hr><p>b</p><hr>"),
    ("> a\n> b\nc\n\n> > d", "<blockquote><p>a<br>b<br>c</p></blockquote><blockquote><blockquote><p>d</p></blockquote>"
     "</blockquote>"),
    ("- a\n- b\n  - c\n  - d\n- e", '<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li><li>'
     '<p>d</p></li></ul></li><li><p>e</p></li></ul>'),
    ("3. a\n4. b\n  - c", '<ol start="3"><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul>'
     '</li></ol>'),
    ("1. a\n\n   b\n\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
    ("text\n- a\n\nafter", '<p>text</p><ul><li><p>a</p></li></ul><p>after</p>'),
    ("in\n1986. a year", "<p>in<br>1986. a year</p>"),
    ("|a|b|\n|:-|-:|\n|`x|y`|\\||\n|1|\nend", '<div class="table" tabindex="0"><table><thead><tr><th class="start">a</th>'
     '<th class="end">b</th></tr></thead><tbody><tr><td class="start"><code>x|y</code></td><td class="end">|</td></tr><tr>'
     '<td class="start">1</td></tr></tbody></table></div><p>end</p>'),
    ("a | b\nc | d", "<p>a | b<br>c | d</p>"),
    ("x &lt;b&gt; &amp;amp; &#65; &unknown; <br> <b>", "<p>x &lt;b&gt; &amp;amp; A &amp;unknown; <br> &lt;b&gt;</p>"),
    ("a![x](y) [z](w) [ ] !", "<p>a![x](y) [z](w) [ ] !</p>"),
]
LINKS = [
    ("[a](https://e.org/x_(y) \"t\")", ["https://e.org/x_(y)"], "a (e.org)"),
    ("see https://e.org/a_b, (https://e.org/c_(d)). **https://e.org/**", ["https://e.org/a_b", "https://e.org/c_(d)",
     "https://e.org/"], "see https://e.org/a_b, (https://e.org/c_(d)). https://e.org/"),
    ("<https://e.org/?a=b&c>", ["https://e.org/?a=b&c"], "<https://e.org/?a=b&c>"),
    ("![i](https://e.org/i.png)", ["https://e.org/i.png"], "Image: i (e.org)"),
    ("[a [b] c](https://e.org/) [*x* `y`](http://f.org/)", ["https://e.org/", "http://f.org/"],
     "a [b] c (e.org) x y (f.org)"),
    ("[見る](https://e.org/)。https://e.org/x。", ["https://e.org/", "https://e.org/x"], "見る (e.org)。https://e.org/x。"),
    ("[j](javascript:x) xhttps://e.org", [], "[j](javascript:x) xhttps://e.org"),
]
RENDER = """
const { Markdown } = await import(new URL('page/markdown.js', document.baseURI));
return arguments[0].map((text) => {
  const node = document.createElement('div');
  new Markdown(node).update(text, true);
  const links = [...node.querySelectorAll('a')].map((a) => a.href);
  return [node.innerHTML, links, node.textContent];
});
"""
GROW = """
const { Markdown } = await import(new URL('page/markdown.js', document.baseURI));
const wrong = [];
for (const text of arguments[0]) {
  const [grown, whole] = [document.createElement('div'), document.createElement('div')];
  const markdown = new Markdown(grown);
  for (let end = 1; end <= text.length; end += 1) markdown.update(text.slice(0, end), false);
  markdown.update(text, true);
  new Markdown(whole).update(text, true);
  if (grown.innerHTML !== whole.innerHTML) wrong.push(text);
}
return wrong;
"""
KEEPS = """
const { Markdown } = await import(new URL('page/markdown.js', document.baseURI));
const node = document.createElement('div');
const markdown = new Markdown(node);
markdown.update('first\\n\\nsec', false);
const [first] = node.children;
markdown.update('first\\n\\nsecond', false);
return node.children[0] === first && node.children.length === 2;
"""
COLOUR = """
const { highlight } = await import(new URL('page/highlight.js', document.baseURI));
const wrong = [];
let coloured = 0;
for (const language of arguments[1].split(' ')) for (const code of arguments[0]) {
  const node = document.createElement('code');
  node.append(...highlight(code, language));
  if (node.textContent !== code) wrong.push([language, code]);
  coloured += node.children.length;
}
return [wrong, coloured];
"""


def markdown(browser: Browser):
    """Markdown becomes the elements it should; the same while it grows as at once; colours lose no letter of a code."""
    with Fake() as server:
        Page(browser, server)
        for (source, wanted), (got, _, _) in zip(MARKDOWN, browser.js(RENDER, [source for source, _ in MARKDOWN])):
            equal(got, wanted, source)
        for (source, *wanted), (_, *got) in zip(LINKS, browser.js(RENDER, [link[0] for link in LINKS])):
            equal(got, wanted, source)
        texts = [case[0] for case in MARKDOWN + LINKS] + attacks(server.url)
        texts.append("```py\nx = 1  # c\n```\n- a\n  ```\n  b\n  ```\n\n> ~~~\n> c")
        equal(browser.js(GROW, texts), [], "grows otherwise than at once")
        expect(browser.js(KEEPS), "blocks that do not change are made anew")
        sources = [path.read_text()[:5000] for path in sorted(FILES.iterdir()) if path.suffix in (".js", ".css", ".html")]
        sources += ["fn f<'a>(x: &'a str) -> char { '\\'' } // \"", "x = '''a\nb'''\n# c \"\necho ${x#y}", "+a\n-b\n@@ c"]
        wrong, coloured = browser.js(COLOUR, sources, "js rust python sql html diff json css lua yaml constructor nothing")
        equal(wrong, [])
        expect(coloured > 500, f"only {coloured} words are coloured")


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
    "path.at(-1).insertAdjacentHTML('beforeend', plain); path.at(-1).append(...nodes);")]})(attacked("ran", "element IMG"))
canary("links lead anywhere", {"inline.js": [
    ("if (!/^https?:\\/\\//i.test(target)) return null;", ""),
    ('return address.protocol === "http:" || address.protocol === "https:" ? address : null;', "return address;"),
]})(attacked("link to javascript:", "link to data:"))
canary("links hide where they lead", {"inline.js": [(
    "if (node.textContent !== href) node.append", "if (false) node.append")]})(attacked("link that hides"))
canary("images are loaded", {"inline.js": [(
    'const node = h("a", { href,', 'const node = h("img", { src: href,')]})(attacked("element IMG", "asked for"))
canary("Stop does nothing", {"app.js": [("state.run?.controller.abort();", "")]})(fails(streaming))
canary("nothing is kept", {"store.js": [(
    'run("readwrite", "put", item);', "run('readonly', 'count');")]})(fails(conversations))
CHECKS = [files, markdown, answers, answers_without_policy, other_texts, huge]
