// bitnet in JavaScript: loads the module, gives it a .btn file, and takes text out.
//
//     import { Model, compile } from "./bitnet.js";
//     const model = new Model(await compile(), await (await fetch("model.btn")).bytes());
//     model.load({ context: 256 });
//     model.sampler({ temperature: 0.7, seed: 1n });
//     model.prompt("It was");
//     for (let i = 0; i < 100; ) {
//       const step = model.step(256);          // bounded work: breathe between steps
//       if (step.ended) break;
//       if (step.token !== undefined) { i += 1; show(step.text); }
//     }
//     show(model.finish());
//
// All calls are synchronous; a page makes them in a worker (worker.js). A file may be a Uint8Array, or, in
// a worker, a Blob, which is then read in pieces and never held twice.

/** A module that uses 128-bit vectors and nothing else: valid where they are there. */
const VECTORS = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
);

/** @returns {boolean} whether this engine has WebAssembly's 128-bit vectors */
export const hasVectors = () => WebAssembly.validate(VECTORS);

/**
 * Fetches and compiles the module that is right for this engine.
 * @param {URL} base where the two modules are; beside this file by default
 * @param {boolean} vectors whether to take the one with vectors
 * @returns {Promise<WebAssembly.Module>}
 */
export async function compile(base = new URL(".", import.meta.url), vectors = hasVectors()) {
  const url = new URL(vectors ? "bitnet-simd.wasm" : "bitnet.wasm", base);
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be loaded: ${response.status} ${response.statusText}`);
  return WebAssembly.compile(await response.arrayBuffer());
}

/** Names of the numbers at `info()`, in order; `abi.rs` says what they are. */
const INFO = [
  "abi", "isa", "hidden_size", "n_layers", "vocab_size", "max_seq_len", "context", "self_tests",
  "module_bytes", "file_bytes", "weight_bytes", "kv_bytes", "scratch_bytes", "other_bytes", "memory_bytes",
];
const ABI = 2;
const KERNELS = ["scalar", "portable", "simd128"];
const ENDS = { 2: "stop", 3: "full" };
/** Bytes of a Blob that are read at a time. */
const PIECE = 4 << 20;

/** One model in one instance, whose memory is of the planned size from `load` on. */
export class Model {
  #exports;
  #file;

  /**
   * @param {WebAssembly.Module} module from `compile`
   * @param {Uint8Array | Blob} file a .btn file
   */
  constructor(module, file) {
    this.#file = file;
    const read = (offset, to, bytes) => this.#read(offset >>> 0, to >>> 0, bytes >>> 0);
    this.#exports = new WebAssembly.Instance(module, { host: { read } }).exports;
    if (this.info().abi !== ABI) throw new Error("bitnet.js and the module are of different versions");
  }

  /** Bytes of the file at `offset` to memory at `to`; 0 when that is done. */
  #read(offset, to, bytes) {
    try {
      if (this.#file instanceof Uint8Array) {
        const part = this.#file.subarray(offset, offset + bytes);
        this.#bytes(to, bytes).set(part);
        return part.length === bytes ? 0 : 1;
      }
      const reader = new FileReaderSync();
      for (let at = 0; at < bytes; at += PIECE) {
        const n = Math.min(PIECE, bytes - at);
        const part = reader.readAsArrayBuffer(this.#file.slice(offset + at, offset + at + n));
        if (part.byteLength !== n) return 1;
        this.#bytes(to + at, n).set(new Uint8Array(part));
      }
      return 0;
    } catch {
      return 1;
    }
  }

  /** A view of the memory; stale once the memory has grown. */
  #bytes(at, length) {
    return new Uint8Array(this.#exports.memory.buffer, at >>> 0, length);
  }

  #text(at, length) {
    return new TextDecoder().decode(this.#bytes(at, length));
  }

  /** The status of a call, unless it is an error. */
  #checked(status) {
    if (status < 0) throw new Error(this.#text(this.#exports.error(), this.#exports.error_bytes()));
    return status;
  }

  get #fileBytes() {
    return this.#file instanceof Uint8Array ? this.#file.length : this.#file.size;
  }

  /**
   * What the module knows: shape of the model, bytes of each buffer, kernels.
   * @returns {Object<string, number | string>}
   */
  info() {
    const numbers = new Uint32Array(this.#exports.memory.buffer, this.#exports.info() >>> 0, INFO.length);
    const info = Object.fromEntries(INFO.map((name, i) => [name, numbers[i]]));
    return { ...info, kernels: KERNELS[info.isa] };
  }

  /**
   * What loading would take; reads the header of the file only.
   * @param {{context?: number, batch?: number}} options positions (0: all that the model has), and tokens
   *   of a prompt that are read together
   */
  plan({ context = 0, batch = 32 } = {}) {
    this.#checked(this.#exports.plan(this.#fileBytes, context, batch));
    return this.info();
  }

  /**
   * Makes the memory as large as planned and reads the file into it.
   * @param {{context?: number, batch?: number, verify?: boolean}} options as for `plan`; `verify` looks at
   *   every byte of the file
   */
  load({ context = 0, batch = 32, verify = true } = {}) {
    this.#checked(this.#exports.load(this.#fileBytes, context, batch, Number(verify)));
    this.#file = null;
    return this.info();
  }

  /**
   * How tokens are chosen; temperature 0 takes the best always. The same seed gives the same text, here
   * and everywhere.
   */
  sampler({ temperature = 0, topK = 0, topP = 1, minP = 0, seed = 0n } = {}) {
    const [low, high] = [Number(seed & 0xffff_ffffn), Number((seed >> 32n) & 0xffff_ffffn)];
    this.#checked(this.#exports.sampler(temperature, topK, topP, minP, low, high));
  }

  /**
   * Begins to read a text, after what was read and written before.
   * @returns {number} its number of tokens
   */
  prompt(text) {
    const room = this.#exports.text_capacity();
    const bytes = new TextEncoder().encode(text);
    if (bytes.length > room) throw new Error(`the prompt has ${bytes.length} bytes; at most ${room} fit`);
    this.#bytes(this.#exports.text(), bytes.length).set(bytes);
    return this.#checked(this.#exports.prompt_text(bytes.length));
  }

  /** Characters of the last prompt that have no token and were left out. */
  get dropped() {
    return this.#exports.dropped();
  }

  /** Begins to read token ids. */
  promptIds(ids) {
    const room = this.info().context;
    if (ids.length > room) throw new Error(`the prompt has ${ids.length} tokens; at most ${room} fit`);
    new Uint32Array(this.#exports.memory.buffer, this.#exports.ids() >>> 0, room).set(ids);
    this.#checked(this.#exports.prompt_ids(ids.length));
  }

  /**
   * Goes on, for at most `budget` units of work: row groups of 16 rows, heads, tokens.
   * @returns {{token?: number, text?: string, ended?: "stop" | "full"}} a token and the text that it
   *   completes, or why there will be none, or neither: step again
   */
  step(budget) {
    const status = this.#checked(this.#exports.step(budget));
    if (status === 0) return {};
    if (status !== 1) return { ended: ENDS[status] };
    return { token: this.#exports.token() >>> 0, text: this.#piece() };
  }

  /** What is left of the text when no more tokens are wanted: an incomplete character. */
  finish() {
    this.#checked(this.#exports.finish());
    return this.#piece();
  }

  #piece() {
    return this.#text(this.#exports.piece(), this.#exports.piece_bytes());
  }

  /** Positions in use. */
  get position() {
    return this.#exports.position();
  }

  /** Forgets everything that was read and written. */
  reset() {
    this.#checked(this.#exports.reset());
  }

  /**
   * Replays the self-tests of the file. What was read before is forgotten.
   * @returns {{passed: number, total: number}}
   */
  selfTest() {
    const total = this.info().self_tests;
    let passed = 0;
    for (let i = 0; i < total; i += 1) passed += this.#checked(this.#exports.self_test(i));
    return { passed, total };
  }
}
