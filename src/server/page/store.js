// Conversations in IndexedDB and in files, and settings in the browser's small storages.

const FORMAT = "wayinfer-conversations";
let database = null;

/** Opens the database. False where the browser has none: conversations then last as long as the page. */
export async function open() {
  try {
    const opening = indexedDB.open("wayinfer", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    database = await finished(opening);
  } catch {
    // Blocked, as in some private windows.
  }
  return database !== null;
}

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function run(mode, method, ...values) {
  if (!database) return [];
  const transaction = database.transaction("conversations", mode);
  const request = transaction.objectStore("conversations")[method](...values);
  // By itself it commits later, and a reload meanwhile would undo it.
  transaction.commit();
  return finished(request);
}

export const all = async () => (await run("readonly", "getAll")).map(conversation).filter(Boolean);
export const save = (item) => run("readwrite", "put", item);
export const remove = (id) => run("readwrite", "delete", id);

/** A new conversation. Without TLS there is no randomUUID. */
export function create(system) {
  const id = crypto.getRandomValues(new Uint32Array(4)).join("-");
  return { id, title: "", system, updated: Date.now(), messages: [] };
}

/** The text of a file with these conversations. */
export const exported = (conversations) =>
  JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);

/** Conversations of a file's text. Throws an error that says what is wrong with it. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error("This file holds no exported conversations.");
  }
  const items = file.conversations.map(conversation);
  const bad = items.indexOf(null);
  if (bad >= 0) throw new Error(`Conversation ${bad + 1} of this file cannot be read.`);
  return items;
}

/** The known fields of a conversation, each of its type; null where it is none. */
function conversation(item) {
  if (!text(item?.id) || !Array.isArray(item.messages)) return null;
  const messages = item.messages.map(message);
  if (messages.includes(null)) return null;
  const { id, title, system, updated } = item;
  const known = { id, title: text(title) || "Untitled", system: text(system), updated: number(updated) ?? 0 };
  return { ...known, messages };
}

function message(item) {
  if (typeof item?.content !== "string") return null;
  const { role, content } = item;
  if (role === "user") return { role, content };
  if (role !== "assistant") return null;
  const kept = { role, content, seed: number(item.seed), stats: {} };
  for (const name of ["reasoning", "model", "error", "note"]) kept[name] = text(item[name]);
  for (const name of ["prompt", "cached", "completion", "speed", "first", "context", "experts"]) {
    kept.stats[name] = number(item.stats?.[name]);
  }
  return kept;
}

const text = (value) => (typeof value === "string" ? value : "");

/** The value if it is a finite number. */
export const number = (value) => (Number.isFinite(value) ? value : undefined);

/** A setting of this browser, or of this tab (`sessionStorage`). Undefined without one. */
export function setting(name, storage = "localStorage") {
  try {
    return JSON.parse(window[storage].getItem(`wayinfer.${name}`)) ?? undefined;
  } catch {
    return undefined;
  }
}

export function setSetting(name, value, storage = "localStorage") {
  try {
    window[storage].setItem(`wayinfer.${name}`, JSON.stringify(value));
  } catch {
    // Storage is blocked or full: settings then last as long as the page.
  }
}
