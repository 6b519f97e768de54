// The page's state and what its controls do.

import * as client from "./client.js";
import { showList } from "./conversations.js";
import { button, byId, h } from "./dom.js";
import * as residency from "./residency.js";
import * as store from "./store.js";
import { Answer, fit, question, sends, speed } from "./view.js";

const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"];
const SAVE_EVERY = 1000; // ms, while an answer grows

const state = {
  conversations: new Map(),
  current: null, // among the conversations once it has a message
  run: null, // the answer in progress: { conversation, message, view, controller, … }
  models: [],
  settings: { system: "", sampling: {}, ...store.setting("settings") },
  refused: false, // the last answer failed for want of a key
};
const page = document.documentElement;
const list = byId("messages");
const input = byId("input");

// Conversations

function startNew() {
  select(store.create(state.settings.system));
  input.focus();
}

function select(conversation) {
  state.current = conversation;
  store.setSetting("current", conversation.id, "sessionStorage");
  render();
  setDrawer(false);
}

/** Shows the current conversation. That is not read aloud, only what comes later. */
function render() {
  list.setAttribute("aria-live", "off");
  const nodes = state.current.messages.map((message) => messageView(state.current, message));
  list.replaceChildren(...(nodes.length ? nodes : [h("p", { class: "empty" }, "Ask something.")]));
  list.scrollTop = list.scrollHeight;
  showConversations();
  showPanel();
  requestAnimationFrame(() => list.setAttribute("aria-live", "polite"));
}

function messageView(conversation, message) {
  if (message.role === "user") return question(message, (text) => edit(conversation, message, text));
  const running = state.run?.message === message;
  const view = new Answer(message, () => regenerate(conversation)).update(!running);
  if (running) state.run.view = view;
  return view.node;
}

function showConversations() {
  showList(state.conversations.values(), state.current, { pick: select, rename, remove });
}

function rename(conversation, title) {
  conversation.title = title;
  keep(conversation);
  showConversations();
}

function remove(conversation) {
  if (!confirm(`Delete “${conversation.title}”?`)) return;
  if (state.run?.conversation === conversation) stop();
  state.conversations.delete(conversation.id);
  store.remove(conversation.id).catch(notKept);
  if (state.current === conversation) startNew();
  else showConversations();
}

/** Unless it was deleted meanwhile. */
function keep(conversation) {
  if (state.conversations.get(conversation.id) === conversation) store.save(conversation).catch(notKept);
}

const notKept = (error) => notice(`Not kept: ${error.message}`);

/** Another tab may have changed conversations while this one was hidden. */
async function reload() {
  const kept = await store.all();
  if (!kept.length || document.hidden || state.run || document.querySelector(".editor, li form")) return;
  const old = state.current;
  state.conversations = new Map(kept.map((item) => [item.id, item]));
  const same = state.conversations.get(old.id);
  if (same && same.updated !== old.updated) return select(same);
  if (same) state.conversations.set(old.id, old);
  showConversations();
}

// Asking

function send(event) {
  event.preventDefault();
  const text = input.value;
  if (!text.trim() || state.run) return;
  input.value = "";
  fit(input);
  ask(state.current, text);
}

function ask(conversation, text) {
  conversation.title ||= text.trim().split("\n", 1)[0].slice(0, 80);
  conversation.messages.push({ role: "user", content: text });
  state.conversations.set(conversation.id, conversation);
  answer(conversation);
}

function edit(conversation, message, text) {
  if (state.run) return;
  conversation.messages.length = conversation.messages.indexOf(message);
  ask(conversation, text);
  input.focus();
}

function regenerate(conversation) {
  if (state.run) return;
  if (conversation.messages.at(-1)?.role === "assistant") conversation.messages.pop();
  answer(conversation);
  input.focus();
}

const stop = () => state.run?.controller.abort();

/** The messages to send. Questions side by side, as failures leave them, become one: templates refuse two. */
function history(conversation) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const { role, content } of conversation.messages) {
    const last = messages.at(-1);
    if (role === "assistant" && !content) continue;
    if (last?.role === role) last.content += `\n\n${content}`;
    else messages.push({ role, content });
  }
  return messages;
}

async function answer(conversation) {
  const { sampling } = state.settings;
  const model = byId("model").value;
  // A seed of its own for each answer, which is shown: any answer can be had again.
  const seed = sampling.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const stream = { stream: true, stream_options: { include_usage: true } };
  const body = { ...sampling, ...stream, model, messages: history(conversation), seed };
  const message = { role: "assistant", content: "", reasoning: "", error: "", model, seed, stats: {} };
  message.note = "Interrupted"; // if nothing ends it
  const controller = new AbortController();
  const run = { conversation, message, controller, asked: performance.now(), pieces: 0 };
  conversation.messages.push(message);
  conversation.updated = Date.now();
  state.run = run;
  state.refused = false;
  keep(conversation);
  showRunning("Answering");
  render();
  try {
    for await (const chunk of client.chat(body, controller.signal)) take(run, chunk);
  } catch (error) {
    failed(run, error);
  }
  clearTimeout(run.timer);
  state.run = null;
  conversation.updated = Date.now();
  keep(conversation);
  showRunning(message.error || message.note || "Answer complete");
  following(() => run.view.update(true));
  showConversations();
  showPanel();
}

function take(run, chunk) {
  const { message } = run;
  const choice = chunk.choices?.[0];
  const { content, reasoning_content: reasoning } = choice?.delta ?? {};
  if (typeof content === "string") message.content += content;
  if (typeof reasoning === "string") message.reasoning += reasoning;
  if (content || reasoning) {
    run.last = performance.now();
    run.first ??= run.last;
    run.pieces += 1;
    message.stats.first = (run.first - run.asked) / 1000;
  }
  const reason = choice?.finish_reason;
  if (reason) message.note = reason === "length" ? "Ended by the limit of tokens" : "";
  if (chunk.usage) count(run, chunk.usage);
  const { tokens_per_second: speed, expert_hits: experts, context_length: context } = chunk.wayinfer ?? {};
  assign(message.stats, { speed, experts, context });
  // The longer that takes, the more seldom.
  run.timer ??= setTimeout(show, run.pause ?? 0, run);
}

function count({ message, pieces, first, last }, usage) {
  const model = state.models.find(({ id }) => id === message.model);
  const { prompt_tokens: prompt, completion_tokens: completion } = usage;
  const cached = usage.prompt_tokens_details?.cached_tokens;
  assign(message.stats, { prompt, completion, cached, context: model?.context });
  if (pieces > 1 && completion > 1) message.stats.speed = rate(completion, first, last);
}

function assign(stats, values) {
  for (const [name, value] of Object.entries(values)) stats[name] = store.number(value) ?? stats[name];
}

/** Tokens a second. The first one ends the wait for the prompt. */
const rate = (tokens, first, last) => ((tokens - 1) / Math.max(1, last - first)) * 1000;

function failed({ message, controller }, error) {
  message.note = controller.signal.aborted ? "Stopped" : "";
  if (message.note) return;
  message.error = error.message;
  state.refused = error.status === 401;
  if (state.refused) askForKey();
}

// Showing

function show(run) {
  const start = performance.now();
  if (state.current === run.conversation) {
    following(() => run.view.update(false));
    showPanel();
  }
  if (start - (run.saved ?? run.asked) > SAVE_EVERY) {
    run.saved = start;
    keep(run.conversation);
  }
  run.pause = Math.max(30, 3 * (performance.now() - start));
  run.timer = null;
}

/** Keeps the end in sight, if it was. */
function following(change) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  change();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function showRunning(text) {
  const running = state.run !== null;
  document.body.classList.toggle("running", running);
  list.setAttribute("aria-busy", running);
  const lost = document.activeElement === byId(running ? "send" : "stop");
  byId("send").hidden = running;
  byId("stop").hidden = !running;
  if (lost) input.focus();
  byId("status").textContent = text;
}

function showPanel() {
  const run = state.run?.conversation === state.current ? state.run : null;
  const message = run?.message ?? state.current.messages.findLast((item) => item.stats?.prompt != null);
  const { prompt, completion = 0, cached, context, first, experts, speed: last } = message?.stats ?? {};
  const show = (id, value, text) => (byId(id).textContent = value == null ? "–" : text);
  const now = run?.pieces > 1 ? rate(run.pieces, run.first, run.last) : null;
  show("speed", last ?? now, last == null ? `≈ ${speed(now ?? 0)}` : speed(last));
  show("first", first, `${first?.toFixed(2)} s`);
  show("context", prompt, `${prompt + completion}${context ? ` of ${context}` : ""} tokens`);
  show("prompt", prompt, `${prompt} tokens${cached ? `, ${cached} from the cache` : ""}`);
  show("experts", experts, experts <= 1 ? `${(100 * experts).toFixed(1)} %` : `${experts}`);
  byId("experts-row").hidden = experts == null;
  byId("context-meter").hidden = prompt == null || !context;
  byId("context-meter").value = (prompt + completion) / context || 0;
}

function notice(text) {
  const dismiss = () => {
    byId("notice").replaceChildren();
    input.focus();
  };
  byId("notice").replaceChildren(h("span", {}, text), button("Dismiss", dismiss));
}

// Models and the key

async function loadModels() {
  try {
    state.models = await client.models();
  } catch (error) {
    if (error.status === 401) askForKey();
    else notice(error.message);
    return;
  }
  const chosen = store.setting("model");
  const options = state.models.map(({ id }) => h("option", { value: id, selected: id === chosen }, id));
  byId("model").replaceChildren(...options);
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

async function useKey(event) {
  event.preventDefault();
  client.useKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  input.focus();
  await loadModels();
  if (state.refused) regenerate(state.current);
}

// Files

function exportAll() {
  const text = store.exported([...state.conversations.values()]);
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const day = new Date().toISOString().slice(0, 10);
  h("a", { href, download: `wayinfer-conversations-${day}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

async function importFile({ target }) {
  try {
    const items = store.imported(await target.files[0].text());
    // Of two versions the later one stays.
    const fresh = items.filter(({ id, updated }) => !(state.conversations.get(id)?.updated >= updated));
    for (const item of fresh) {
      state.conversations.set(item.id, item);
      await store.save(item);
    }
    select(state.conversations.get(state.current.id) ?? state.current);
    notice(`Imported ${fresh.length} of ${items.length} conversations; the others are here.`);
  } catch (error) {
    notice(error.message);
  }
  target.value = "";
}

// Settings, theme, drawer

function openSettings() {
  byId("system").value = state.current.system;
  for (const name of SAMPLING) byId(name).value = state.settings.sampling[name] ?? "";
  byId("settings").showModal();
}

function saveSettings(event) {
  event.preventDefault();
  const given = SAMPLING.filter((name) => byId(name).value !== "");
  const sampling = Object.fromEntries(given.map((name) => [name, byId(name).valueAsNumber]));
  state.settings = { system: byId("system").value, sampling };
  store.setSetting("settings", state.settings);
  state.current.system = state.settings.system;
  keep(state.current);
  byId("settings").close();
}

/** Without a theme the system's is used. */
function showTheme() {
  byId("theme").title = `Theme: ${page.dataset.theme || "system"}`;
}

function nextTheme() {
  page.dataset.theme = { dark: "light", light: "" }[page.dataset.theme] ?? "dark";
  store.setSetting("theme", page.dataset.theme);
  showTheme();
}

const drawerIsOpen = () => document.body.classList.contains("drawer");

function setDrawer(open) {
  if (open === drawerIsOpen()) return;
  document.body.classList.toggle("drawer", open);
  byId("menu").setAttribute("aria-expanded", open);
  document.querySelector("main").inert = open;
  byId(open ? "new" : "menu").focus();
}

// Controls

function listen() {
  const on = (id, event, action) => byId(id).addEventListener(event, action);
  on("composer", "submit", send);
  on("input", "input", () => fit(input));
  on("input", "keydown", (event) => sends(event) && send(event));
  on("stop", "click", stop);
  on("new", "click", startNew);
  on("menu", "click", () => setDrawer(!drawerIsOpen()));
  on("backdrop", "click", () => setDrawer(false));
  on("theme", "click", nextTheme);
  on("model", "change", ({ target }) => store.setSetting("model", target.value));
  on("key-form", "submit", useKey);
  on("export", "click", exportAll);
  on("import", "click", () => byId("import-file").click());
  on("import-file", "change", importFile);
  on("open-settings", "click", openSettings);
  on("open-residency", "click", () => residency.open(() => byId("model").value, () => state.run !== null));
  on("residency-close", "click", () => byId("residency").close());
  on("settings-form", "submit", saveSettings);
  on("settings-cancel", "click", () => byId("settings").close());
  matchMedia("(max-width: 760px)").addEventListener("change", () => setDrawer(false));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
    if (drawerIsOpen()) setDrawer(false);
    else stop();
  });
  document.addEventListener("visibilitychange", reload);
  addEventListener("pagehide", leave);
}

function leave() {
  if (!state.run) return;
  keep(state.run.conversation);
  stop();
}

async function start() {
  showTheme();
  listen();
  const kept = await store.open();
  for (const item of await store.all()) state.conversations.set(item.id, item);
  const id = store.setting("current", "sessionStorage");
  select(state.conversations.get(id) ?? store.create(state.settings.system));
  if (!kept) notice("Conversations are lost when the page is closed: the browser keeps nothing here.");
  // On a phone the focus would raise the keyboard.
  if (!matchMedia("(pointer: coarse)").matches) input.focus();
  await loadModels();
}

start();
