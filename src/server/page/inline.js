// Markdown within a block: a text is cut into tokens, a stack pairs emphasis as in CommonMark, nodes follow.
// Time is linear in the text and depth is bounded: models write anything.

import { h } from "./dom.js";

const MAX_DEPTH = 12;
const SPECIAL = /[\\`*_~[\]!<&\n]|\bhttps?:\/\//g;
const ESCAPED = /\\([\\`*_{}#+.!|<>~$-])/y;
// Stops at what surrounds an address in running text, in other scripts too.
const BARE = /https?:\/\/[^\s<>"'`*|\\\u3000-\u303f\uff00-\uff0f\uff1a-\uff1f\u201c\u201d]{1,2048}/y;
// An address, which may hold brackets, and a title, which is dropped.
const TARGET = /\]\(<?((?:[^\s()<>]|\([^\s()<>]{0,999}\)){1,2048})>?(?:\s{1,9}"[^"]{0,500}")?\)/y;
const BREAK = /<br ?\/?>/iy;
const ENTITY = /&(?:#(\d{1,6})|(amp|lt|gt|quot|nbsp));/y;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', nbsp: "\u00a0" };
const WORD = /[\p{L}\p{N}]/u;

/** Appends a text to a node, with its Markdown as elements. */
export function inline(text, parent) {
  build(pair(new Scanner(text).tokens()), parent);
  return parent;
}

/** An address that may be followed: absolute, http or https. Otherwise null. */
function safeAddress(target) {
  if (!/^https?:\/\//i.test(target)) return null;
  try {
    const address = new URL(target);
    return address.protocol === "http:" || address.protocol === "https:" ? address : null;
  } catch {
    return null;
  }
}

/** Tokens are { text }, { code }, { tag }, { address, label } and runs of delimiters. */
class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.list = [];
    this.brackets = []; // places in `list` of [ and ![ that may start a link
    this.runs = codeRuns(text);
  }

  tokens() {
    while (this.at < this.text.length) {
      SPECIAL.lastIndex = this.at;
      const next = SPECIAL.exec(this.text)?.index ?? this.text.length;
      this.plain(this.text.slice(this.at, next), next - this.at);
      if (next < this.text.length && !this.special(this.text[next])) this.plain(this.text[next], 1);
    }
    return this.list;
  }

  push(token, length) {
    this.list.push(token);
    this.at += length;
    return true;
  }

  plain(text, length) {
    const last = this.list.at(-1);
    if (last?.text && !last.mark) last.text += text;
    else if (text) this.list.push({ text });
    this.at += length;
    return true;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  /** Takes what starts with this character. False where that is nothing but text. */
  special(char) {
    const { text, at } = this;
    let match;
    if (char === "\n") return this.push({ tag: "br" }, 1);
    if (char === "`") return this.code(runLength(text, at));
    if ("*_~".includes(char)) return this.push(delimiter(text, at), runLength(text, at));
    if (char === "[") return this.open("[");
    if (char === "]") return this.close();
    if (char === "!") return text[at + 1] === "[" && this.open("![");
    if (char === "h") return this.bare(trimmed(this.match(BARE)?.[0] ?? ""));
    if (char === "\\" && text[at + 1] === "\n") return this.plain("", 1);
    if ((match = this.match(ESCAPED))) return this.plain(match[1], 2);
    if ((match = this.match(BREAK))) return this.push({ tag: "br" }, match[0].length);
    if (!(match = this.match(ENTITY))) return false;
    return this.plain(NAMED[match[2]] ?? String.fromCodePoint(match[1]), match[0].length);
  }

  code(length) {
    const start = this.at + length;
    const run = this.runs.get(length);
    while (run.places[run.next] < start) run.next += 1;
    const end = run.places[run.next];
    if (end === undefined) return this.plain(this.text.slice(this.at, start), length);
    return this.push({ code: this.text.slice(start, end) }, end + length - this.at);
  }

  bare(target) {
    const address = safeAddress(target);
    return address ? this.push({ address }, target.length) : false;
  }

  open(mark) {
    this.brackets.push(this.list.length);
    return this.push({ text: mark, mark: true }, mark.length);
  }

  /** Turns what follows the last open bracket into a link, for an image too: nothing is loaded unasked. */
  close() {
    const start = this.brackets.pop();
    const match = start === undefined ? null : this.match(TARGET);
    const address = safeAddress(match?.[1] ?? "");
    if (!address) return false;
    const image = this.list[start].text === "![";
    const label = this.list.splice(start).slice(1).map(flat);
    if (image) label.unshift({ text: label.length ? "Image: " : "Image" });
    // A link holds no link: brackets that are still open stay brackets. An image may be all of a link's text.
    this.brackets.splice(0, this.brackets.length - (image ? 1 : 0));
    return this.push({ address, label: pair(label) }, match[0].length);
  }
}

/** A link within a link's text is text. */
function flat(token) {
  if (!token.address) return token;
  const parts = token.label?.map((part) => part.text ?? part.code ?? " ");
  return { text: parts ? parts.join("") : token.address.href };
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** Where runs of backticks stand, by their length, in the order of the text. */
function codeRuns(text) {
  const runs = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!runs.has(run.length)) runs.set(run.length, { places: [], next: 0 });
    runs.get(run.length).places.push(index);
  }
  return runs;
}

/** A run of *, _ or ~. Only _ looks for letters: languages without blanks need * beside punctuation. */
function delimiter(text, at) {
  const char = text[at];
  const count = runLength(text, at);
  const before = text[at - 1] ?? " ";
  const after = text[at + count] ?? " ";
  const possible = char !== "~" || count === 2;
  const opens = possible && /\S/.test(after) && !(char === "_" && WORD.test(before));
  const closes = possible && /\S/.test(before) && !(char === "_" && WORD.test(after));
  return { char, count, opens, closes, closed: [], opened: [] };
}

/** A bare address without a sentence's punctuation after it and brackets that it did not open. */
function trimmed(target) {
  let open = target.split("(").length - target.split(")").length;
  let end = target.length;
  for (; end > 0; end -= 1) {
    const last = target[end - 1];
    if (last === ")" && open < 0) open += 1;
    else if (!".,;:!?]}_~".includes(last)) break;
  }
  return target.slice(0, end);
}

/** Pairs delimiters. Counts of openers by character keep a closer without one from searching for it. */
function pair(list) {
  const stack = [];
  const open = { "*": 0, _: 0, "~": 0 };
  for (const closer of list) {
    while (closer.closes && closer.count > 0 && open[closer.char] > 0) {
      while (stack.at(-1).char !== closer.char) open[stack.pop().char] -= 1;
      const opener = stack.at(-1);
      const count = Math.min(2, opener.count, closer.count);
      const tag = closer.char === "~" ? "del" : count === 2 ? "strong" : "em";
      opener.opened.unshift(tag);
      closer.closed.push(tag);
      opener.count -= count;
      closer.count -= count;
      if (opener.count === 0) open[stack.pop().char] -= 1;
    }
    if (closer.opens && closer.count > 0) {
      stack.push(closer);
      open[closer.char] += 1;
    }
  }
  return list;
}

function build(list, parent) {
  const path = [parent];
  let plain = "";
  // One text node for neighbours: a line of brackets would be a node for each.
  const append = (...nodes) => {
    path.at(-1).append(...(plain ? [plain] : []), ...nodes);
    plain = "";
  };
  for (const { address, label, tag, code, text, char, count, closed, opened } of list) {
    if (address) append(link(address, label));
    else if (tag) append(h(tag));
    else if (code != null) append(h("code", {}, codeText(code)));
    else if (text) plain += text;
    else {
      if (closed.length) append();
      path.length -= closed.length;
      plain += char.repeat(count);
      for (const name of opened) {
        const node = path.length > MAX_DEPTH ? path.at(-1) : h(name);
        if (node !== path.at(-1)) append(node);
        path.push(node);
      }
    }
  }
  append();
}

/** A link that shows where it leads, whatever its text says. */
function link({ href, host }, label) {
  const node = h("a", { href, target: "_blank", rel: "noopener noreferrer", title: href });
  build(label ?? [{ text: href }], node);
  if (node.textContent !== href) node.append(h("span", { class: "host" }, ` (${host})`));
  return node;
}

function codeText(source) {
  const text = source.replaceAll("\n", " ");
  return text.startsWith(" ") && text.endsWith(" ") && text.trim() ? text.slice(1, -1) : text;
}
