"""Texts that a model may write to run or load things or to hang the page, and how to see that they fail."""
from __future__ import annotations

RUN = "window.pwned=(window.pwned||0)+1"


def attacks(origin: str) -> list[str]:
    """`origin` is the page's own server, which its policy lets images and scripts come from."""
    js = f"javascript:{RUN}"
    return [
        f"<script>{RUN}</script>",
        f"<script src='{origin}pwn.js'></script>",
        f'<img src=x onerror="{RUN}">',
        f"<svg onload={RUN}><animate onbegin={RUN} attributeName=x></svg>",
        f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe><iframe src='{js}'></iframe>",
        f"<details open ontoggle={RUN}><summary>x</summary></details>",
        f"<style>body{{display:none}}</style><link rel=stylesheet href='{origin}pwn.css'>",
        f"<base href='http://x.test/'><form action='{origin}pwn'><button autofocus onfocus={RUN}>x</button>",
        f"<input autofocus onfocus={RUN}><body onload={RUN}><video><source onerror={RUN}></video>",
        f"<meta http-equiv=refresh content='0;url={origin}pwn'>",
        f"[click]({js}) [click](<{js}>) [x]( {js}) [x](java\nscript:{RUN}) [x](JaVaScRiPt:{RUN})",
        f"[x](javascript&colon;{RUN}) [x](&#106;avascript:{RUN}) [x](\\javascript:{RUN}) [x](\u0001{js})",
        f"<{js}> <data:text/html,x> [x](//x.test/) [x](/pwn)",
        "[x](vbscript:x) [x](file:///etc/passwd) [x](blob:x) [x](https:x) [x](http:/pwn) [x](HTTPS://X.IO/)",
        f"[x](data:text/html,<script>{RUN}</script>) [x](data:text/html;base64,PHNjcmlwdD4=)",
        f"![image]({origin}pwn.png) ![]({origin}pwn.png) ![x]({js}) [![x]({origin}pwn.png)](https://x.test/)",
        f"<img src='{origin}pwn.png'> ![x](data:image/svg+xml,<svg onload={RUN}>)",
        f'[x](https://x.test/"onmouseover="{RUN}) [x](https://x.test/ "a" onmouseover="{RUN}")',
        "[bank.example](https://evil.example/) [x](https://bank.example@evil.example/)",
        "[x](https://\u0430pple.example/) https://\u0430pple.example/",
        f"[a [b](https://x.test/) c](https://y.test/) [https://bank.example](https://evil.example/)",
        f"```html\n<script>{RUN}</script><img src={origin}pwn.png onerror={RUN}>\n"
        f"</code></pre><script>{RUN}</script>\n```",
        f"```\"><img src=x onerror={RUN}>\ncode\n```\n```js\n'</span><script>{RUN}</script>'\n```",
        f"~~~ <script>{RUN}</script>\nx\n~~~\n`<img src=x onerror={RUN}>` ``</code><script>{RUN}</script>``",
        f"# <script>{RUN}</script>\n> <img src=x onerror={RUN}>\n\n"
        f"- <svg onload={RUN}>\n1. <script>{RUN}</script>",
        f"|<script>{RUN}</script>|<img src=x onerror={RUN}>|\n|:-|-:|\n|<svg onload={RUN}>|[x]({js})|",
        f"**<img src=x onerror={RUN}>** *<script>{RUN}</script>* ~~<svg onload={RUN}>~~",
        f"&lt;script&gt;{RUN}&lt;/script&gt; &lt;img src=x onerror={RUN}&gt;",
        f"&#60;img src=x onerror={RUN}&#62; \\<script>{RUN}</script> <!--><script>{RUN}</script>-->",
        f"</div></article></main><script>{RUN}</script><textarea><xmp><noscript><template>",
        "__proto__ [constructor](https://x.test/)\n```__proto__\nx\n```\n```constructor\nlet x\n```",
        "\u202egnp.exe \u0000 \ufffe \u2028 \u2029 {{7*7}} ${alert(1)}",
    ]


HUGE = {
    "letters": "a" * 400_000,
    "words": "word " * 60_000,
    "stars": "*" * 200_000,
    "stars and letters": "*a **b " * 30_000,
    "underscores": "_a" * 60_000 + "__" * 10_000,
    "brackets": "[" * 100_000 + "]" * 100_000,
    "link starts": "[a](" * 50_000,
    "images in images": "![" * 20_000 + "](https://x.test/)" * 20_000,
    "titles": "[a](https://x.test/ \"" * 10_000,
    "backticks": "".join("`" * n + " " for n in range(1, 500)),
    "unclosed code": "```js\n" + "let x = '/*' + \"`\\\n" * 10_000,
    "quotes": ">" * 100_000,
    "quotes by line": "\n".join(">" * n + " x" for n in range(1, 400)),
    "lists": "- " * 50_000,
    "lists by line": "\n".join("  " * n + "- x" for n in range(400)),
    "numbers": "\n".join(f"{n}. x" for n in range(1, 4_000)),
    "bars": "|" * 60_000 + "\n" + "|-" * 60_000 + "|",
    "wide table": "|a" * 1_000 + "|\n" + "|-" * 1_000 + "|\n" + "|x\n" * 10_000,
    "spaces": "# " + " " * 200_000 + "x\n" + "-" + " " * 200_000 + "x\n* " + "* " * 50_000 + "x",
    "addresses": "https://x.test/" * 10_000 + "https://" * 20_000 + "(" * 50_000,
    "entities": "&amp" * 30_000 + "&#" * 30_000 + "<br" * 30_000,
    "lines": "x\n" * 15_000,
    "paragraphs": "x\n\n" * 10_000,
    "code of one line": "```py\n" + "x" * 300_000 + "\n```",
    "marks and code": "`a` *b* _c_ ~~d~~ " * 3_000,
}

# What an answer may consist of. `host` shows where a link leads.
INSPECT = r"""
const tags = new Set(`ARTICLE DIV P SPAN A CODE PRE BUTTON UL OL LI H3 H4 H5 H6 HR BR EM STRONG DEL BLOCKQUOTE
  TABLE THEAD TBODY TR TH TD DETAILS SUMMARY OPTION METER DT DD`.split(/\s+/));
const attributes = new Set(`class href target rel title tabindex type hidden start aria-label aria-current id
  value selected min max high open`.split(/\s+/));
const found = new Set();
const roots = arguments[0].flatMap((css) => [...document.querySelectorAll(css)]);
for (const node of roots.flatMap((root) => [...root.querySelectorAll("*")])) {
  if (!tags.has(node.tagName)) found.add(`element ${node.tagName}`);
  for (const { name } of node.attributes) {
    if (!attributes.has(name)) found.add(`attribute ${name} of ${node.tagName}`);
  }
  if (node.tagName !== "A") continue;
  if (!/^https?:\/\/[^/]/.test(node.getAttribute("href"))) found.add(`link to ${node.getAttribute("href")}`);
  if (node.target !== "_blank" || !node.relList.contains("noopener")) found.add("link without noopener");
  if (!node.textContent.includes(new URL(node.href).host)) found.add(`link that hides ${node.href}`);
}
if (window.pwned) found.add("ran");
if (document.title !== "WayInfer") found.add("title");
if (!document.querySelector("main").checkVisibility()) found.add("page hidden");
return [...found];
"""
DEPTH = r"""
let deepest = 0;
const walk = (node, depth) => {
  deepest = Math.max(deepest, depth);
  for (const child of node.children) walk(child, depth + 1);
};
walk(document.getElementById("messages"), 0);
return deepest;
"""
