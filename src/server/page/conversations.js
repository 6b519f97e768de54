// The list of kept conversations. A form stands in place of a title while it is renamed.

import { button, byId, h } from "./dom.js";

/** Shows conversations, the latest first. `actions`: pick, rename(conversation, title), remove. */
export function showList(conversations, current, actions) {
  const list = byId("conversations");
  const focused = list.contains(document.activeElement);
  const sorted = [...conversations].sort((a, b) => b.updated - a.updated);
  list.replaceChildren(...sorted.map((item) => entry(item, item === current, actions)));
  if (focused) (list.querySelector("[aria-current]") ?? byId("new")).focus();
}

function entry(conversation, isCurrent, actions) {
  const { title } = conversation;
  const pick = { class: "pick", title, "aria-current": isCurrent ? "true" : null };
  const edit = () => node.replaceChildren(renamer(conversation, actions));
  const remove = () => actions.remove(conversation);
  const node = h(
    "li",
    {},
    button(title, () => actions.pick(conversation), pick),
    button("✎", edit, { class: "icon rename", "aria-label": `Rename ${title}` }),
    button("×", remove, { class: "icon remove", "aria-label": `Delete ${title}` }),
  );
  return node;
}

function renamer(conversation, actions) {
  const done = (title) => actions.rename(conversation, title || conversation.title);
  const submit = (event) => {
    event.preventDefault();
    done(field.value.trim());
  };
  const keydown = (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    done();
  };
  const field = h("input", { "aria-label": "Title", maxlength: 200, value: conversation.title, keydown });
  requestAnimationFrame(() => field.select());
  return h("form", { class: "row", submit }, field, h("button", {}, "Rename"));
}
