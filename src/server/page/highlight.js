// Colours for code: comments, strings, numbers and keywords, by families of languages.

import { h } from "./dom.js";

const MAX_LENGTH = 60_000; // characters: more is shown plain
const STRINGS = String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`;
const SLASHES = String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)`;
// Each group's name is the end of a class in the style sheet.
const pattern = (comment, string) =>
  new RegExp(String.raw`(?<c>${comment})|(?<s>${string})|(?<n>\b\d[\w.]*)|(?<k>[A-Za-z_]\w*)`, "g");

const PATTERNS = [
  [
    "c h cpp c++ cs csharp java js javascript jsx ts typescript tsx json go kotlin swift php css scss dart",
    pattern(SLASHES, STRINGS + "|`(?:\\\\[^]|[^`\\\\])*`?"),
  ],
  // A lifetime has one quote.
  ["rust rs", pattern(SLASHES, String.raw`"(?:\\[^]|[^"\\])*"?|'(?:\\[^'\n]{1,9}|[^'\\\n])'`)],
  [
    "python py bash sh shell zsh console ruby rb perl r yaml yml toml ini dockerfile makefile cmake julia",
    pattern(String.raw`(?<!\S)#[^\n]*`, `"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${STRINGS}`),
  ],
  ["sql lua haskell", pattern(String.raw`--[^\n]*`, STRINGS)],
  [
    "html xml svg vue",
    /(?<c><!--[^]*?(?:-->|$))|(?<t><\/?[A-Za-z][\w:.-]*|\/?>)|(?<s>"[^"<\n]*"|'[^'<\n]*')/g,
  ],
  ["diff patch", /^(?:(?<s>\+.*)|(?<d>-.*)|(?<c>@@.*))$/gm],
];
const LANGUAGES = new Map(
  PATTERNS.flatMap(([names, rules]) => names.split(" ").map((name) => [name, rules])),
);

// One list for all: few of these are names elsewhere. Small letters serve SQL too.
const KEYWORDS = new Set(
  `and as async await bool boolean break by case catch char class const continue create def default del delete
  do done double echo elif else end enum except export extends false fi final finally float fn for from
  func function group if impl implements import in insert instanceof int interface into is join lambda let
  limit local long loop match mod mut namespace new nil none not null on or order override package pass
  private protected pub public raise return select self set static struct super switch table then this
  throw trait true try type typeof undefined unless unsafe unsigned until update use using values var void
  where while with yield`.split(/\s+/),
);

/** Nodes and texts of this code, coloured where the language is known. */
export function highlight(code, language) {
  const rules = LANGUAGES.get(language.toLowerCase());
  if (!rules || code.length > MAX_LENGTH) return [code];
  const parts = [];
  let at = 0;
  for (const { 0: text, index, groups } of code.matchAll(rules)) {
    const kind = Object.keys(groups).find((name) => groups[name] != null);
    if (kind === "k" && !KEYWORDS.has(text.toLowerCase())) continue;
    parts.push(code.slice(at, index), h("span", { class: `code-${kind}` }, text));
    at = index + text.length;
  }
  return [...parts, code.slice(at)];
}
