// The only place that makes elements. Strings become text nodes: nothing is ever parsed as HTML.

/** An element with attributes (functions become listeners of that event) and children (nodes or text). */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

export const button = (label, click, attributes) =>
  h("button", { type: "button", click, ...attributes }, label);

/** A picture that the server drew, element by element. */
export function picture({ width, height, name, elements }) {
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  const frame = { class: "picture", ...size, role: "img", "aria-label": name };
  const drawn = elements.map(({ tag, attributes, text, title }) => {
    const node = drawing(tag, attributes);
    if (title) node.append(drawing("title", {}, title));
    node.append(text ?? "");
    return node;
  });
  return drawing("svg", frame, ...drawn);
}

function drawing(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.replaceChildren(...children);
  return node;
}

/** A button that copies `text()`. */
export function copyButton(text) {
  const node = button("Copy", async () => {
    node.textContent = (await copied(text())) ? "Copied" : "Not allowed";
    node.focus();
    setTimeout(() => (node.textContent = "Copy"), 1500);
  });
  return node;
}

/** Pages without TLS on other hosts than loopback have no clipboard interface: those select and copy. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "hidden" }, text);
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
