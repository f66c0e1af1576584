// The page: shows what the worker does, and tells it what to do.
//
// `?model=URL` opens another model, `?vectors=0` takes the module without vectors.

const query = new URLSearchParams(location.search);
const vectors = query.has("vectors") ? query.get("vectors") !== "0" : undefined;
const shipped = query.get("model") ?? "austen-nano.btn";

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });

const PARTS = [
  ["file", "file_bytes", "model file"],
  ["weights", "weight_bytes", "unpacked weights"],
  ["cache", "kv_bytes", "cache"],
  ["scratch", "scratch_bytes", "scratch"],
  ["other", "other_bytes", "sampler and prompt"],
  ["module", "module_bytes", "module"],
];
const ENDS = {
  stop: "The model ended its text.",
  full: "The context is full.",
  length: "Done.",
  stopped: "Stopped.",
};

const count = (n) => n.toLocaleString("en");
const element = (name, properties, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

let name = shipped;
let running = false;
/** Counts what was asked for, so that an address that answers late does not replace a later choice. */
let opening = 0;

function show(message, failed = false) {
  $("model").textContent = message;
  $("model").classList.toggle("failed", failed);
}

/** `ready`: a model is loaded. */
function enable(ready, busy) {
  running = busy;
  $("generate").disabled = !ready || busy;
  $("stop").disabled = !busy;
}

function open(file, title) {
  opening += 1;
  name = title;
  enable(false, false);
  $("memory").hidden = true;
  show(`Loading ${title} …`);
  worker.postMessage({ open: { file, vectors } });
}

async function openUrl(url) {
  const title = url.split("/").pop();
  const request = ++opening;
  show(`Fetching ${title} …`);
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
    const file = await response.blob();
    if (request === opening) open(file, title);
  } catch (error) {
    if (request === opening) show(`${url} cannot be fetched: ${error.message}`, true);
  }
}

function opened({ info, loadMs, selfTest }) {
  const ok = selfTest.passed === selfTest.total;
  const verdict = ok ? "computes the converter's bits" : "DOES NOT COMPUTE THE CONVERTER'S BITS";
  show(
    `${name}: ${info.n_layers} blocks of width ${info.hidden_size}, ${count(info.vocab_size)} tokens, context ` +
      `${count(info.context)}. Loaded in ${loadMs.toFixed(0)} ms; kernels ${info.kernels}. Self-test: ` +
      `${selfTest.passed} of ${selfTest.total}, ${verdict}.`,
    !ok,
  );
  memory(info);
  enable(true, false);
}

function memory(info) {
  const used = PARTS.reduce((sum, [, key]) => sum + info[key], 0);
  const parts = PARTS.map(([id, key, label]) => [id, info[key], label]).filter(([, bytes]) => bytes > 0);
  $("bar").replaceChildren(
    ...parts.map(([id, bytes]) => element("i", { style: `flex: ${bytes}; background: var(--${id})` })),
  );
  $("legend").replaceChildren(
    ...parts.map(([id, bytes, label]) =>
      element("li", {}, element("i", { style: `background: var(--${id})` }), `${label} `, element("b", {}, count(bytes))),
    ),
    element("li", {}, "memory ", element("b", {}, count(info.memory_bytes)), ` bytes, fixed (${count(info.memory_bytes - used)} to whole pages)`),
  );
  $("memory").hidden = false;
}

function generate() {
  const prompt = $("prompt").value;
  $("given").textContent = prompt;
  $("written").textContent = "";
  $("state").classList.remove("failed");
  $("state").textContent = "Writing …";
  $("rate").textContent = "";
  enable(true, true);
  worker.postMessage({
    generate: {
      prompt,
      maxTokens: $("max-tokens").valueAsNumber,
      sampler: {
        temperature: $("temperature").valueAsNumber,
        topK: $("top-k").valueAsNumber,
        seed: $("seed").value,
      },
    },
  });
}

const rate = (tokens, perSecond) =>
  perSecond ? `${count(tokens)} tokens, ${count(Math.round(perSecond))} a second` : `${count(tokens)} tokens`;

worker.onmessage = ({ data }) => {
  if (data.opened) opened(data.opened);
  if (data.text) {
    $("written").append(data.text);
    $("rate").textContent = rate(data.tokens, data.rate);
  }
  if (data.done) {
    enable(true, false);
    const dropped = data.done.dropped ? ` ${data.done.dropped} characters of the prompt have no token.` : "";
    $("state").textContent = ENDS[data.done.end] + dropped;
    $("rate").textContent = rate(data.done.tokens, data.done.rate);
  }
  if (data.failed) failed(data.failed);
};
worker.onerror = (event) => failed(event.message ?? "the worker could not start");

function failed(message) {
  if (running) {
    enable(true, false);
    $("state").textContent = message;
    $("state").classList.add("failed");
  } else {
    show(`${name}: ${message}`, true);
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("generate").disabled) generate();
});
$("stop").addEventListener("click", () => worker.postMessage({ stop: true }));
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) open(target.files[0], target.files[0].name);
});
for (const type of ["dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragover");
    const file = event.dataTransfer?.files[0];
    if (type === "drop" && file) open(file, file.name);
  });
}

$("fetch").addEventListener("submit", (event) => {
  event.preventDefault();
  openUrl($("url").value);
});

$("url").value = shipped;
openUrl(shipped);
