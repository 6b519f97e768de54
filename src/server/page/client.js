// Requests to the server: the list of models and streamed answers (server-sent events).

import { setSetting, setting } from "./store.js";

let key = setting("key", "sessionStorage");

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function useKey(value) {
  key = value;
  setSetting("key", value, "sessionStorage");
}

/** Models as the server lists them, `{ id, context }`. */
export async function models() {
  const list = await (await request("v1/models")).json().catch(() => null);
  if (!Array.isArray(list?.data)) throw new ServerError("The list of models cannot be read.");
  return list.data
    .filter((model) => typeof model?.id === "string")
    .map(({ id, context_length: length, meta }) => ({ id, context: length ?? meta?.n_ctx }));
}

/** Where a model's weights are and what that costs, as the server tells it. */
export async function residency(model) {
  const path = model.split("/").map(encodeURIComponent).join("/");
  const found = await (await request(`residency/${path}`)).json().catch(() => null);
  if (typeof found?.loaded !== "boolean") throw new ServerError("Its residency cannot be read.");
  return found;
}

/** The chunks of a streamed chat completion. Throws where the stream ends before `[DONE]`. */
export async function* chat(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await request("v1/chat/completions", options);
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (!chunk) throw new ServerError("The server sent something that cannot be read.");
    if (chunk.error) throw new ServerError(errorText(chunk) ?? "The server reports an error.");
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.");
}

/** Paths are relative: the page works below a proxy's prefix too. */
async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new ServerError("The server does not answer. Is it running?");
  }
  if (!response.ok) throw await refused(response);
  return response;
}

/** What is wrong, in the server's own words where it gave some. */
async function refused(response) {
  const { status, statusText } = response;
  let message = errorText(parsed(await response.text().catch(() => "")));
  message ??= `The server answered ${status} ${statusText}`;
  const wait = parseInt(response.headers.get("Retry-After"), 10);
  if (wait) message += ` (try again in ${wait} s)`;
  return new ServerError(message, status);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function errorText(body) {
  const text = body?.error?.message ?? body?.error;
  return text && typeof text === "string" ? text : undefined;
}

/** The data of each event of a stream. */
async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      // A \r at the end may be half of a line's end.
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch {
    throw new ServerError("The connection broke before the answer's end.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
