"""That Markdown becomes the elements it should, at once and while it grows."""
from __future__ import annotations

from attacks import attacks
from driver import Browser
from fake import FILES, TYPES, Fake
from page import Page, equal, expect

MARKDOWN = [
    ("a *b* **c** ***d*** _e_ __f__ ~~g~~ `h`",
     "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <em>e</em> <strong>f</strong> "
     "<del>g</del> <code>h</code></p>"),
    ("snake_case_name 2 * 3 * 4 a*b*c", "<p>snake_case_name 2 * 3 * 4 a<em>b</em>c</p>"),
    ("**強調。**次 **\"q\"**x", "<p><strong>強調。</strong>次 <strong>\"q\"</strong>x</p>"),
    ("**a *b* c** *a **b** c*",
     "<p><strong>a <em>b</em> c</strong> <em>a <strong>b</strong> c</em></p>"),
    ("**open *only ~~one", "<p>**open *only ~~one</p>"),
    ("``a ` b`` `` ` `` \\*no\\* `\\*`", "<p><code>a ` b</code> <code>`</code> *no* <code>\\*</code></p>"),
    ("a\nb  \nc\\\nd", "<p>a<br>b<br>c<br>d</p>"),
    ("a\n\nb", "<p>a</p><p>b</p>"),
    ("# A\n### C#\n## B\n####### no", "<h3>A</h3><h5>C#</h5><h4>B</h4><p>####### no</p>"),
    ("a\n---\nb\n***", "<p>a</p><hr><p>b</p><hr>"),
    ("> a\n> b\nc\n\n> > d",
     "<blockquote><p>a<br>b<br>c</p></blockquote><blockquote><blockquote><p>d</p></blockquote></blockquote>"),
    ("- a\n- b\n  - c\n  - d\n- e",
     "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li><li><p>d</p></li></ul></li>"
     "<li><p>e</p></li></ul>"),
    ("3. a\n4. b\n  - c", '<ol start="3"><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li></ol>'),
    ("1. a\n\n   b\n\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
    ("text\n- a\n\nafter", "<p>text</p><ul><li><p>a</p></li></ul><p>after</p>"),
    ("in\n1986. a year", "<p>in<br>1986. a year</p>"),
    ("|a|b|\n|:-|-:|\n|`x|y`|\\||\n|1|\nend",
     '<div class="table" tabindex="0"><table><thead><tr><th class="start">a</th><th class="end">b</th></tr>'
     '</thead><tbody><tr><td class="start"><code>x|y</code></td><td class="end">|</td></tr>'
     '<tr><td class="start">1</td></tr></tbody></table></div><p>end</p>'),
    ("a | b\nc | d", "<p>a | b<br>c | d</p>"),
    ("x &lt;b&gt; &amp;amp; &#65; &unknown; <br> <b>",
     "<p>x &lt;b&gt; &amp;amp; A &amp;unknown; <br> &lt;b&gt;</p>"),
    ("a![x](y) [z](w) [ ] !", "<p>a![x](y) [z](w) [ ] !</p>"),
]
# Each with its targets and its text.
LINKS = [
    ("[a](https://e.org/x_(y) \"t\")", ["https://e.org/x_(y)"], "a (e.org)"),
    ("see https://e.org/a_b, (https://e.org/c_(d)). **https://e.org/**",
     ["https://e.org/a_b", "https://e.org/c_(d)", "https://e.org/"],
     "see https://e.org/a_b, (https://e.org/c_(d)). https://e.org/"),
    ("<https://e.org/?a=b&c>", ["https://e.org/?a=b&c"], "<https://e.org/?a=b&c>"),
    ("![i](https://e.org/i.png)", ["https://e.org/i.png"], "Image: i (e.org)"),
    ("[![i](https://e.org/i.png)](https://f.org/)", ["https://f.org/"], "Image: i (f.org)"),
    ("[a [b] c](https://e.org/) [*x* `y`](http://f.org/)", ["https://e.org/", "http://f.org/"],
     "a [b] c (e.org) x y (f.org)"),
    ("[見る](https://e.org/)。https://e.org/x。", ["https://e.org/", "https://e.org/x"],
     "見る (e.org)。https://e.org/x。"),
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
    """Markdown becomes the elements it should, the same while it grows; colours lose no letter of a code."""
    with Fake() as server:
        Page(browser, server)
        shown = browser.js(RENDER, [case[0] for case in MARKDOWN])
        for (source, wanted), (got, _, _) in zip(MARKDOWN, shown, strict=True):
            equal(got, wanted, source)
        shown = browser.js(RENDER, [case[0] for case in LINKS])
        for (source, *wanted), (_, *got) in zip(LINKS, shown, strict=True):
            equal(got, wanted, source)
        texts = [case[0] for case in MARKDOWN + LINKS] + attacks(server.url)
        texts.append("```py\nx = 1  # c\n```\n- a\n  ```\n  b\n  ```\n\n> ~~~\n> c")
        equal(browser.js(GROW, texts), [], "grows otherwise than at once")
        expect(browser.js(KEEPS), "blocks that do not change are made anew")
        sources = [path.read_text()[:5000] for path in FILES.iterdir() if path.suffix in TYPES]
        sources += ["fn f<'a>(x: &'a str) -> char { '\\'' } // \"", "+a\n-b\n@@ c"]
        sources += ["x = '''a\nb'''\n# c \"\necho ${x#y}"]
        languages = "js rust python sql html diff json css lua yaml constructor nothing"
        wrong, coloured = browser.js(COLOUR, sources, languages)
        equal(wrong, [])
        expect(coloured > 500, f"only {coloured} words are coloured")
