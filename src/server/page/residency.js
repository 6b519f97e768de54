// The panel of residency: where the model's weights are, what that costs by token, which experts are used.

import { residency } from "./client.js";
import { byId, h, picture } from "./dom.js";

const EVERY = 1000; // ms between two looks while an answer runs

let pending = null; // the next look
let sections = new Map(); // a picture's title to where it stands

/** Opens the panel. `model()` names the model to tell of, `running()` says whether an answer runs. */
export function open(model, running) {
  sections = new Map();
  byId("residency-pictures").replaceChildren();
  byId("residency-figures").replaceChildren();
  byId("residency-weights").textContent = "Asking the server…";
  byId("residency").showModal();
  look(model, running, true);
}

/** Shows how it is, and looks again as long as an answer runs, and once after it. */
async function look(model, running, wanted) {
  clearTimeout(pending);
  if (!byId("residency").open) return;
  const now = running();
  if (wanted || now) {
    try {
      show(await residency(model()));
    } catch (error) {
      byId("residency-weights").textContent = error.message;
    }
  }
  pending = setTimeout(look, EVERY, model, running, now);
}

function show(found) {
  byId("residency-weights").textContent = about(found);
  const rows = figures(found).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  byId("residency-figures").replaceChildren(...rows);
  for (const { title, picture: drawn } of found.pictures ?? []) {
    if (!sections.has(title)) {
      const wide = h("div", { class: "wide", tabindex: "0" });
      sections.set(title, wide);
      byId("residency-pictures").append(h("h3", {}, title), wide);
    }
    // The place that it was scrolled to stays.
    sections.get(title).replaceChildren(picture(drawn));
  }
}

function about({ loaded, streamed, weights }) {
  if (!loaded) return "The model is not loaded: a question loads it.";
  if (streamed) return weights;
  const mapped = "nothing is streamed, so that there are no hits, reads or waits to show.";
  const unseen = "What the system reads for a mapped file is not seen here.";
  return `${weights || "All weights are in memory"}: ${mapped} ${unseen}`;
}

/** Names and values. */
function figures({ streamed, hits, misses, hit_rate: rate, bytes_read: read, wait_seconds: wait, ...found }) {
  if (!streamed) return [];
  const count = (value) => value.toLocaleString("en");
  const all = [];
  if (rate != null) {
    const share = `${(100 * rate).toFixed(1)} % of their bytes`;
    all.push(["Experts found in memory", `${count(hits)} of ${count(hits + misses)}, ${share}`]);
  }
  if (found.guesses) {
    all.push(["Read on a guess", `${count(found.guesses)}, ${count(found.right_guesses)} of them right`]);
  }
  all.push(["Read from disk", size(read)], ["Waited for weights", `${wait.toFixed(2)} s`]);
  return all;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const unit = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${(bytes / 1000 ** unit).toFixed(unit ? 2 : 0)} ${units[unit]}`;
}
