// Markdown of answers as nodes: the part of it that models write. HTML in it is text.

import { copyButton, h } from "./dom.js";
import { highlight } from "./highlight.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 12; // quotes and lists within each other; what is deeper is a paragraph
const MAX_COLUMNS = 64; // a browser's time for a table grows with rows times columns
const FENCE = /^( {0,3})(`{3,}(?=[^`]*$)|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|\t|$)/;
const ALIGNED = { ":-": "start", ":-:": "center", "-:": "end" };

/** Shows a growing text. Blocks that did not change keep their nodes, and so a reader's selection. */
export class Markdown {
  constructor(parent) {
    this.parent = parent;
    this.shown = [];
  }

  /** `done` says that nothing follows: the last block is then coloured too. */
  update(text, done) {
    const lines = text.replaceAll("\r", "").split("\n");
    const found = blocks(lines, 0);
    found.forEach((block, index) => {
      const live = !done && index === found.length - 1;
      const source = lines.slice(block.from, block.to).join("\n");
      const old = this.shown[index];
      if (old && old.source === source && old.live === live) return;
      const node = block.make(live);
      if (old) old.node.replaceWith(node);
      else this.parent.append(node);
      this.shown[index] = { source, live, node };
    });
    for (const old of this.shown.splice(found.length)) old.node.remove();
  }
}

/** Blocks of these lines: the range of lines of each, and how its node is made. */
function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = blockAt(lines, at, depth);
    found.push({ from: at, ...block });
    at = block.to;
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  if (HEADING.test(line)) return heading(line, at);
  if (RULE.test(line)) return { to: at + 1, make: () => h("hr") };
  if (tableColumns(lines, at)) return table(lines, at);
  if (depth < MAX_DEPTH) {
    if (QUOTE.test(line)) return quote(lines, at, depth);
    if (ITEM.test(line)) return list(lines, at, depth);
  }
  return paragraph(lines, at, depth);
}

/** Whether a line ends the paragraph above. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (!line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (tableColumns(lines, at)) return true;
  if (depth >= MAX_DEPTH) return false;
  const item = ITEM.exec(line);
  // A number starts a list at once if it is 1: "1986. A year" may be the rest of a sentence.
  return QUOTE.test(line) || Boolean(item?.[3] && /^(\D|1\D)/.test(item[2]));
}

function paragraph(lines, at, depth) {
  let to = at + 1;
  while (to < lines.length && !interrupts(lines, to, depth)) to += 1;
  const text = lines.slice(at, to).map((line) => line.trim()).join("\n");
  return { to, make: () => inline(text, h("p")) };
}

function heading(line, at) {
  const level = HEADING.exec(line)[1].length;
  const text = line.trim().slice(level).trim();
  return { to: at + 1, make: () => inline(text, h(`h${Math.min(level + 2, 6)}`)) };
}

function fence(lines, at) {
  const [, indent, mark] = FENCE.exec(lines[at]);
  const language = lines[at].trim().slice(mark.length).trim().split(/[\s{]/, 1)[0];
  let to = at + 1;
  while (to < lines.length && !closesFence(lines[to], mark)) to += 1;
  const margin = new RegExp(`^ {0,${indent.length}}`);
  const code = lines.slice(at + 1, to).map((line) => line.replace(margin, "")).join("\n");
  const closed = to < lines.length;
  return { to: closed ? to + 1 : to, make: (live) => codeBlock(code, language, live && !closed) };
}

function closesFence(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

function codeBlock(code, language, live) {
  // Colours wait for the block's end: for each token anew they would cost the square of its length.
  const text = h("code", {}, ...(live ? [code] : highlight(code, language)));
  const name = h("span", {}, language.slice(0, 40) || "text");
  const head = h("div", { class: "code-head" }, name, copyButton(() => code));
  return h("div", { class: "code" }, head, h("pre", { tabindex: "0" }, text));
}

function quote(lines, at, depth) {
  let to = at + 1;
  const goesOn = (line) => QUOTE.test(line) || !interrupts([line], 0, depth);
  while (to < lines.length && goesOn(lines[to])) to += 1;
  const inner = lines.slice(at, to).map((line) => line.replace(QUOTE, ""));
  return { to, make: (live) => withBlocks(h("blockquote"), inner, depth + 1, live) };
}

function withBlocks(node, lines, depth, live) {
  const found = blocks(lines, depth);
  node.append(...found.map((block, index) => block.make(live && index === found.length - 1)));
  return node;
}

function list(lines, at, depth) {
  const [, margin, mark] = ITEM.exec(lines[at]);
  const items = [];
  let to = at;
  while (to < lines.length) {
    const match = ITEM.exec(lines[to]);
    // Another mark is another list, and so is one further out or in.
    if (match?.[2].at(-1) !== mark.at(-1) || RULE.test(lines[to])) break;
    if (Math.abs(match[1].length - margin.length) > 1) break;
    const item = itemAt(lines, to, match, depth);
    items.push(item.lines);
    to = item.to;
  }
  const make = (live) => {
    const number = parseInt(mark, 10);
    const node = isNaN(number) ? h("ul") : h("ol", { start: number === 1 ? null : number });
    items.forEach((item, index) => {
      node.append(withBlocks(h("li"), item, depth + 1, live && index === items.length - 1));
    });
    return node;
  };
  return { to, make };
}

/** The lines of an item without its indentation. */
function itemAt(lines, at, match, depth) {
  const margin = match[1].length;
  const gap = match[3].length > 4 ? 1 : Math.max(match[3].length, 1);
  const offset = margin + match[2].length + gap;
  const inner = [lines[at].slice(offset)];
  let to = at + 1;
  let blanks = 0;
  for (; to < lines.length; to += 1) {
    const line = lines[to];
    if (!line.trim()) {
      blanks += 1;
      continue;
    }
    const indent = line.length - line.trimStart().length;
    // Models often indent what belongs to "1." by two columns, not three.
    const starts = ITEM.test(line) || FENCE.test(line.trimStart());
    const inside = indent >= offset || (indent >= margin + 2 && starts);
    const lazy = blanks === 0 && !ITEM.test(line) && !interrupts(lines, to, depth);
    if (!inside && !lazy) break;
    for (; blanks > 0; blanks -= 1) inner.push("");
    inner.push(line.slice(Math.min(offset, indent)));
  }
  return { lines: inner, to };
}

/** Alignments of the columns if a table's head stands at this line, otherwise null. */
function tableColumns(lines, at) {
  const below = lines[at + 1];
  if (!below || !lines[at].includes("|") || !/^[-:| \t]+$/.test(below)) return null;
  const marks = cells(below);
  if (marks.length > MAX_COLUMNS || marks.length !== cells(lines[at]).length) return null;
  const fits = marks.every((mark) => /^:?-+:?$/.test(mark));
  return fits ? marks.map((mark) => ALIGNED[mark.replace(/-+/, "-")]) : null;
}

function table(lines, at) {
  const columns = tableColumns(lines, at);
  let to = at + 2;
  while (to < lines.length && lines[to].trim() && lines[to].includes("|") && !FENCE.test(lines[to])) to += 1;
  const row = (line, tag) => {
    const texts = cells(line).slice(0, columns.length);
    return h("tr", {}, ...texts.map((text, index) => inline(text, h(tag, { class: columns[index] }))));
  };
  const make = () => {
    const head = h("thead", {}, row(lines[at], "th"));
    const body = h("tbody", {}, ...lines.slice(at + 2, to).map((line) => row(line, "td")));
    return h("div", { class: "table", tabindex: "0" }, h("table", {}, head, body));
  };
  return { to, make };
}

/** Cells of a row. A bar within code or after a backslash is no border. */
function cells(line) {
  const found = [];
  let cell = "";
  let code = false;
  for (let at = 0; at < line.length; at += 1) {
    const char = line[at];
    if (char === "\\" && line[at + 1] === "|") {
      cell += "|";
      at += 1;
    } else if (char === "|" && !code) {
      found.push(cell.trim());
      cell = "";
    } else {
      if (char === "`") code = !code && line.includes("`", at + 1);
      cell += char;
    }
  }
  found.push(cell.trim());
  if (found[0] === "" && line.trimStart().startsWith("|")) found.shift();
  if (found.at(-1) === "" && found.length > 1) found.pop();
  return found;
}
