// The server as its clients under Node see it: openai, and ai with its provider for OpenAI's dialect.
//
//     node clients.mjs URL KEY [--all]
//
// As clients.py: what the server does not have is skipped, or fails with --all.

import assert from "node:assert/strict";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, streamObject, streamText, tool } from "ai";
import OpenAI from "openai";

const [url, key, flag] = process.argv.slice(2);
const all = flag === "--all";
const question = "What is 2+2?";
const answer = "The sum of 2 and 2 is 4.";
const messages = [{ role: "user", content: question }];
const chat = "/v1/chat/completions";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 120_000 });
const provider = createOpenAICompatible({
  name: "wayinfer",
  baseURL: `${url}/v1`,
  apiKey: key,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("demo");

const number = { type: "integer", minimum: 0, maximum: 99 };
const add = {
  type: "object",
  properties: { a: number, b: number },
  required: ["a", "b"],
  additionalProperties: false,
};

function isSum(value) {
  assert.deepEqual(Object.keys(value).sort(), ["a", "b"]);
  assert(Object.values(value).every((n) => Number.isInteger(n) && n >= 0 && n <= 99));
}

const tests = {
  async openaiChat() {
    const whole = await client.chat.completions.create({ model: "demo", messages, temperature: 0 });
    assert.equal(whole.choices[0].message.content, answer);
    assert.equal(whole.usage.completion_tokens, 13);
  },
  async openaiStreamed() {
    const options = { model: "demo", messages, temperature: 0, stream: true, stream_options: { include_usage: true } };
    let text = "";
    let usage;
    for await (const chunk of await client.chat.completions.create(options)) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage ??= chunk.usage;
    }
    assert.equal(text, answer);
    assert.equal(usage.completion_tokens, 13);
    const helper = client.chat.completions.stream({ model: "demo", messages, temperature: 0 });
    assert.equal(await helper.finalContent(), answer);
    // One that is left midway.
    const left = await client.chat.completions.create({ ...options });
    for await (const chunk of left) if (chunk.choices[0]?.delta.content) break;
    await tests.openaiChat();
  },
  async openaiErrors() {
    const wrong = client.chat.completions.create({ model: "demo", messages, top_p: 2 });
    await assert.rejects(wrong, (error) => error instanceof OpenAI.BadRequestError && error.param === "top_p");
    const long = [{ role: "user", content: "What is 2+2? ".repeat(500) }];
    const overflow = client.chat.completions.create({ model: "demo", messages: long, stream: true });
    await assert.rejects(overflow, { code: "context_length_exceeded" });
    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(stranger.models.list().asResponse(), OpenAI.AuthenticationError);
  },
  async openaiSchema() {
    const response_format = { type: "json_schema", json_schema: { name: "sum", strict: true, schema: add } };
    const whole = await client.chat.completions.create({
      model: "demo", messages, response_format, temperature: 1.5, seed: 2, max_tokens: 100,
    });
    isSum(JSON.parse(whole.choices[0].message.content));
  },
  async openaiTools() {
    const runner = client.chat.completions.stream({
      model: "demo", messages, temperature: 0, max_tokens: 200,
      tools: [{ type: "function", function: { name: "add", description: "Adds.", parameters: add } }],
      tool_choice: { type: "function", function: { name: "add" } },
    });
    const message = await runner.finalMessage();
    assert.equal(message.tool_calls[0].function.name, "add");
    isSum(JSON.parse(message.tool_calls[0].function.arguments));
  },
  async aiText() {
    const { text, usage, finishReason } = await generateText({ model, prompt: question, temperature: 0 });
    assert.equal(text, answer);
    assert.equal(finishReason, "stop");
    assert.equal(usage.outputTokens, 13);
    const streamed = streamText({ model, system: "Be brief.", messages, temperature: 0, maxOutputTokens: 30 });
    let joined = "";
    for await (const piece of streamed.textStream) joined += piece;
    assert(joined.length > 0);
    assert.equal(await streamed.text, joined);
    assert((await streamed.usage).outputTokens > 0);
  },
  async aiErrors() {
    const long = generateText({ model, prompt: "What is 2+2? ".repeat(500), maxRetries: 0 });
    await assert.rejects(long, (error) => error.statusCode === 400 && /maximum context length/.test(error.message));
  },
  async aiSchema() {
    const options = { model, schema: jsonSchema(add), prompt: question, temperature: 1.5, seed: 3, maxOutputTokens: 100 };
    const { object } = await generateObject(options);
    isSum(object);
    const streamed = streamObject(options);
    for await (const part of streamed.partialObjectStream) assert.equal(typeof part, "object");
    assert.deepEqual(await streamed.object, object);
  },
  async aiTools() {
    const tools = { add: tool({ description: "Adds.", inputSchema: jsonSchema(add) }) };
    const toolChoice = { type: "tool", toolName: "add" };
    const options = { model, tools, toolChoice, prompt: question, temperature: 0, maxOutputTokens: 200 };
    const { toolCalls } = await generateText(options);
    assert.equal(toolCalls[0].toolName, "add");
    isSum(toolCalls[0].input);
    const streamed = await streamText(options).toolCalls;
    assert.deepEqual(streamed[0].input, toolCalls[0].input);
  },
};

// Fields that are refused where the server knows them, whatever they are.
const needs = {
  openaiSchema: "response_format", openaiTools: "tools", aiSchema: "response_format", aiTools: "tools",
};

async function has(field) {
  if (!field) return true;
  const body = JSON.stringify({ messages, max_tokens: 1, [field]: 5 });
  const reply = await fetch(url + chat, { method: "POST", body, headers: { Authorization: `Bearer ${key}` } });
  await reply.text();
  return reply.status !== 200;
}

let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  if (!(await has(needs[name]))) {
    failed += all;
    console.log(`${all ? "FAILED" : "skipped"}: ${name}: the server has no ${needs[name]} at ${chat}`);
    continue;
  }
  try {
    await test();
    console.log(`ok: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED: ${name}`, error);
  }
}
process.exitCode = failed > 0 ? 1 : 0;
