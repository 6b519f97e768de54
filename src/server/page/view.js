// How a message looks: a question, an answer that may still grow, and the form that edits a question.

import { button, copyButton, h } from "./dom.js";
import { Markdown } from "./markdown.js";

/** Enter sends, but not while an input method composes. */
export const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

/** Makes a field as high as its text, within the bounds of the style sheet. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

/** A question. `edited(text)` replaces it. */
export function question({ content }, edited) {
  const edit = button("Edit", () => node.replaceWith(editor(content, node, edited)), { class: "idle edit" });
  const actions = h("div", { class: "actions" }, copyButton(() => content), edit);
  const text = h("div", { class: "text" }, content);
  const node = h("article", { class: "message user", "aria-label": "You" }, text, actions);
  return node;
}

function editor(content, node, edited) {
  const cancel = () => {
    form.replaceWith(node);
    node.querySelector(".edit").focus();
  };
  const submit = (event) => {
    event.preventDefault();
    if (area.value.trim()) edited(area.value);
  };
  const keydown = (event) => {
    if (sends(event)) submit(event);
    if (event.key === "Escape") cancel();
  };
  const area = h("textarea", { "aria-label": "Edit the message", input: () => fit(area), keydown }, content);
  const note = h("span", { class: "small" }, "What follows is replaced.");
  const submitter = h("button", { class: "primary" }, "Send");
  const row = h("div", { class: "row" }, submitter, button("Cancel", cancel), note);
  const form = h("form", { class: "message user editor", submit }, area, row);
  requestAnimationFrame(() => {
    fit(area);
    area.focus();
  });
  return form;
}

/** An answer. `update` shows what its message holds by then. */
export class Answer {
  constructor(message, regenerate) {
    this.message = message;
    this.summary = h("summary");
    this.reasoning = h("div", { class: "text" });
    this.details = h("details", { class: "reasoning" }, this.summary, this.reasoning);
    this.body = h("div", { class: "markdown" });
    this.markdown = new Markdown(this.body);
    this.error = h("p", { class: "error" });
    this.meta = h("span", { class: "small meta" });
    const again = button("Regenerate", regenerate, { class: "idle regenerate" });
    this.actions = h("div", { class: "actions" }, copyButton(() => message.content), again, this.meta);
    const parts = [this.details, this.body, this.error, this.actions];
    this.node = h("article", { class: "message assistant", "aria-label": "Answer" }, ...parts);
  }

  update(done) {
    const { content, reasoning, error } = this.message;
    const thinking = !done && !content;
    this.details.hidden = !reasoning;
    this.reasoning.textContent = reasoning;
    this.summary.textContent = thinking ? "Reasoning…" : "Reasoning";
    this.markdown.update(content, done);
    this.node.classList.toggle("waiting", thinking);
    this.actions.hidden = !done;
    this.error.hidden = !error;
    this.error.textContent = error;
    this.meta.textContent = done ? about(this.message) : "";
    return this;
  }
}

function about({ note, model, stats, seed }) {
  const parts = [note, model];
  if (stats.completion != null) parts.push(`${stats.completion} tokens`);
  if (stats.speed != null) parts.push(speed(stats.speed));
  if (seed != null) parts.push(`seed ${seed}`);
  return parts.filter(Boolean).join(" · ");
}

export const speed = (value) => `${value.toFixed(value < 10 ? 2 : 1)} tokens/s`;
