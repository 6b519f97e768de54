"""How the page is used without a mouse, on a phone, in the dark."""
from __future__ import annotations

from driver import ESCAPE, TAB
from page import Page, equal, expect


def keyboard(page: Page):
    """Tab reaches everything in the order of the page, and what has the focus shows it."""
    browser = page.browser
    page.ask("hello")
    browser.js("document.activeElement.blur(); getSelection().removeAllRanges(); document.body.focus()")
    order = []
    for _ in range(19):
        browser.press(TAB)
        order.append(browser.focus())
        visible = browser.js("const s = getComputedStyle(document.activeElement);"
                             "return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2")
        expect(visible or order[-1] in ("BODY", "HTML"), f"the focus on {order[-1]} cannot be seen")
    wanted = ["skip", "model", "theme", "open-residency", "open-settings", "new", "pick", "icon rename", "icon remove",
              "export", "import", "messages", "idle edit", "idle regenerate", "input", "send"]
    seen = [name for name in dict.fromkeys(order) if name in wanted]
    # Tab starts after what had the focus and comes round.
    start = seen.index("skip") if "skip" in seen else 0
    equal(seen[start:] + seen[:start], wanted)
    unnamed = browser.js("""
      const named = (e) => e.ariaLabel || e.title || e.labels?.length || e.textContent.trim() || e.hidden;
      const controls = [...document.querySelectorAll('button, input, select, textarea')];
      return controls.filter((e) => !named(e)).map((e) => e.outerHTML)""")
    equal(unnamed, [], "controls without a name")
    equal(browser.js("return document.getElementById('messages').getAttribute('aria-live')"), "polite")


def narrow(page: Page):
    """On a phone: one column, a drawer that Esc, the backdrop and a choice close, nothing too wide."""
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
            expect(browser.js("return document.querySelector('main').inert"), "what is behind can be reached")
            close()
            expect(not browser.shown("#drawer"), "the drawer closes")
            equal(browser.focus(), "menu")
        browser.click("#open-settings")
        width = browser.js("return document.getElementById('settings').getBoundingClientRect().right")
        expect(width <= 360, "settings are too wide", width)
        browser.press(ESCAPE)
        browser.click("#open-residency")
        browser.wait("return document.querySelector('#residency svg.picture')")
        width = browser.js("return document.getElementById('residency').getBoundingClientRect().right")
        expect(width <= 360, "the panel of residency is too wide", width)
        expect(browser.js("const e = document.getElementById('residency'); return e.scrollWidth <= e.clientWidth"),
               "the panel is scrolled sideways, not the picture")
        browser.press(ESCAPE)
        for css in ("#input", "#send"):
            bottom = browser.js(f"return document.querySelector('{css}').getBoundingClientRect().bottom")
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
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = (color) =>
  rgb(color).slice(0, 3).reduce((sum, v, i) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
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
    """The system's theme, and the one chosen, which a reload keeps; every text has a contrast of 4.5."""
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
            preferred = {"name": "prefers-color-scheme", "value": scheme}
            browser.cdp("Emulation.setEmulatedMedia", features=[preferred])
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


def residency(page: Page):
    """The panel of residency: figures in words, a picture with a name and texts in it, Esc closes it alone."""
    browser = page.browser
    browser.click("#open-residency")
    browser.wait("return document.querySelector('#residency svg.picture')")
    equal(browser.text("#residency-weights"), "9 GB of weights in 2 GB")
    for text in ("30 of 40, 75.0 % of their bytes", "4, 3 of them right", "1.23 MB", "1.50 s"):
        expect(text in browser.text("#residency-figures"), text, browser.text("#residency-figures"))
    drawn = browser.js("""
      const picture = document.querySelector('#residency svg.picture');
      const [cell, text] = picture.children;
      return [picture.ariaLabel, cell.querySelector('title').textContent, text.textContent,
              getComputedStyle(cell).fill !== getComputedStyle(text).fill]""")
    equal(drawn, ["Use of experts by layer", "blk 0, expert 0", "17", True])
    equal(browser.js(CONTRAST)[0], [], "texts of low contrast")
    browser.press(ESCAPE)
    expect(not browser.js("return document.getElementById('residency').open"), "Esc closes the panel")


CHECKS = [keyboard, narrow, themes, residency]
