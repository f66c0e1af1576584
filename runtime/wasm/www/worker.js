// Runs the model apart from the page. Messages in: {open}, {generate}, {stop}; out: {opened}, {text},
// {done}, {failed}.

import { Model, compile } from "./bitnet.js";

/** Work between two looks at the clock, in the module's units. */
const BUDGET = 256;
/** Milliseconds between two looks at messages. */
const SLICE = 25;

let compiled;
let model;
let stopped = false;

/** Lets messages in: a macrotask of its own, without the delay that timers have. */
const channel = new MessageChannel();
const breathe = () =>
  new Promise((resolve) => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });

async function open({ file, vectors }) {
  // Ends a text that is being written.
  model = undefined;
  compiled ??= await compile(undefined, vectors);
  const next = new Model(compiled, file);
  next.plan();
  const start = performance.now();
  const info = next.load();
  const loadMs = performance.now() - start;
  const selfTest = next.selfTest();
  model = next;
  postMessage({ opened: { info, loadMs, selfTest } });
}

async function generate({ prompt, maxTokens, sampler }) {
  const writer = model;
  if (!writer) throw new Error("no model is loaded");
  stopped = false;
  writer.reset();
  writer.sampler({ ...sampler, seed: BigInt(sampler.seed) });
  const promptTokens = writer.prompt(prompt);
  const clock = { start: performance.now(), first: undefined };
  let tokens = 0;
  let end;
  while (end === undefined) {
    let text = "";
    const until = performance.now() + SLICE;
    while (end === undefined && performance.now() < until) {
      const step = writer.step(BUDGET);
      end = step.ended;
      if (step.token !== undefined) {
        tokens += 1;
        text += step.text;
        clock.first ??= performance.now();
        if (tokens === maxTokens) end = "length";
      }
    }
    if (end !== undefined) text += writer.finish();
    if (text) postMessage({ text, tokens, rate: rate(tokens, clock) });
    await breathe();
    if (model !== writer) return;
    if (stopped) end ??= "stopped";
  }
  const { dropped } = writer;
  postMessage({ done: { end, tokens, promptTokens, dropped, rate: rate(tokens, clock) } });
}

/** Tokens a second since the first, which comes from reading the prompt. */
const rate = (tokens, { first }) =>
  tokens > 1 ? ((tokens - 1) * 1000) / (performance.now() - first) : undefined;

onmessage = async ({ data }) => {
  try {
    if (data.open) await open(data.open);
    if (data.generate) await generate(data.generate);
    if (data.stop) stopped = true;
  } catch (error) {
    postMessage({ failed: error.message });
  }
};
