//! From text to text through the three programs: what was trained is what runs.
//!
//! Every figure of the trainer has a counterpart in `bitnet-run`, computed by other code from the
//! packed file. With f32 embedding, head and cache the two may differ by the order of f32 sums
//! alone, and by what an activation on the other side of a rounding boundary then changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use bitnet_runtime::argmax;
use bitnet_tests::programs::Programs;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

/// A model to fit.
struct Case {
    name: &'static str,
    tokenizer: &'static str,
    shape: &'static [&'static str],
}

const LATENT: &[&str] = &[
    "model.attention=latent",
    "model.kv_lora_rank=48",
    "model.qk_nope_head_dim=24",
    "model.qk_rope_head_dim=8",
    "model.v_head_dim=16",
];
const GROUPED: &[&str] = &[
    "model.attention=grouped",
    "model.n_kv_heads=2",
    "model.head_dim=16",
];
const LLAMA: &[&str] = &[
    "model.attention=grouped",
    "model.n_kv_heads=2",
    "model.head_dim=16",
    "model.sub_norms=false",
    "model.activation=silu",
    "model.rope.theta=500000",
    "model.tie_embeddings=false",
];
const IN_LINEARS: &[&str] = &[
    "model.attention=grouped",
    "model.n_kv_heads=2",
    "model.head_dim=16",
    "model.norms.in_linear=1e-6",
];

#[test]
fn latent_attention() {
    whole_path(&Case {
        name: "latent, bpe:320",
        tokenizer: "bpe:320",
        shape: LATENT,
    });
}

#[test]
fn grouped_attention() {
    whole_path(&Case {
        name: "grouped, bpe:320",
        tokenizer: "bpe:320",
        shape: GROUPED,
    });
}

#[test]
fn llama() {
    whole_path(&Case {
        name: "grouped, no sub-norms, char",
        tokenizer: "char",
        shape: LLAMA,
    });
}

#[test]
fn norms_in_linears() {
    whole_path(&Case {
        name: "grouped, norms in linears, bpe:320",
        tokenizer: "bpe:320",
        shape: IN_LINEARS,
    });
}

#[test]
fn characters() {
    whole_path(&Case {
        name: "grouped, char",
        tokenizer: "char",
        shape: GROUPED,
    });
}

/// Most that the same loss may differ between trainer and runtime, in nats per token.
const LOSS_TOLERANCE: f64 = 1e-4;
/// A greedy choice closer than this may fall either way.
const CLOSE_CALL: f32 = 0.02;

fn whole_path(case: &Case) {
    let run = Fitted::new(case);
    let loss = run.evaluate();
    assert_eq!(loss["bytes"], fs::read(run.path("eval.txt")).unwrap().len());

    run.convert("f32", "f32.btn");
    run.convert("i8", "i8.btn");
    run.converts_to_equal_bytes();
    for file in ["f32.btn", "i8.btn"] {
        let found = run.json(&programs().run, &[file, "--selftest", "--json"]);
        assert_eq!(found["ok"], true, "{}: {found}", case.name);
    }

    let exact = run.perplexity("f32.btn", "f32");
    for field in ["tokens", "bytes", "context"] {
        assert_eq!(exact[field], loss[field], "{}: {field}", case.name);
    }
    let nats = |report: &Value| report["nats_per_token"].as_f64().unwrap();
    let apart = nats(&exact) - nats(&loss);
    let head = nats(&run.perplexity("i8.btn", "f32")) - nats(&exact);
    let cache = nats(&run.perplexity("f32.btn", "native")) - nats(&exact);
    println!(
        "{}: {:.6} nats per token; bitnet-run {apart:+.1e}, int8 embedding and head {head:+.1e}, \
         native cache {cache:+.1e}",
        case.name,
        nats(&loss),
    );
    assert!(apart.abs() <= LOSS_TOLERANCE, "{}: {apart:e}", case.name);
    // Storing less costs a little; far more would be a fault, not a cost.
    assert!(head.abs() < 0.02 && cache.abs() < 0.02, "{}", case.name);
    if case.shape == LATENT {
        assert_eq!(cache, 0.0, "the latent cache is lossless");
    }
    run.greedy_texts_agree();
}

/// A folder with a text, a short run of `fit` on it, and what is made of that.
struct Fitted<'c> {
    case: &'c Case,
    dir: TempDir,
}

fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(Programs::build)
}

impl<'c> Fitted<'c> {
    fn new(case: &'c Case) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/corpus/austen.txt");
        let corpus = fs::read_to_string(corpus).unwrap();
        let (text, _) = corpus.split_at(60_000);
        fs::write(dir.path().join("text.txt"), text).unwrap();
        // Nothing depends on the text being new to the model, and to a character tokenizer it
        // may not be.
        fs::write(dir.path().join("eval.txt"), &text[50_000..]).unwrap();
        let fitted = Self { case, dir };
        let shape = [
            "model.hidden_size=64",
            "model.intermediate_size=160",
            "model.n_layers=2",
            "model.n_heads=4",
            "model.max_seq_len=64",
        ];
        let settings = shape.iter().chain(case.shape);
        let set = settings.flat_map(|setting| ["--set", setting]);
        let args = [
            "fit",
            "--data",
            "text.txt",
            "--out",
            "run",
            "--preset",
            "nano",
            "--tokenizer",
            case.tokenizer,
            "--steps",
            "300",
            "--batch",
            "8",
            "--context",
            "32",
            "--lr",
            "4e-3",
            "--threads",
            "1",
        ];
        let args: Vec<_> = args.into_iter().chain(set).collect();
        fitted.run(&programs().trainer, &args);
        fitted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a program to its good end; gives its standard output.
    fn run(&self, program: &Path, args: &[&str]) -> String {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).args(args);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let name = self.case.name;
        assert!(
            output.status.success(),
            "{name}: {program:?} {args:?}: {stderr}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, program: &Path, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(program, args)).unwrap()
    }

    fn evaluate(&self) -> Value {
        let args = [
            "eval",
            "run",
            "--data",
            "eval.txt",
            "--context",
            "48",
            "--json",
        ];
        self.json(&programs().trainer, &args)
    }

    fn perplexity(&self, file: &str, kv: &str) -> Value {
        let args = [
            file,
            "--perplexity",
            "eval.txt",
            "--context",
            "48",
            "--kv",
            kv,
            "--json",
        ];
        self.json(&programs().run, &args)
    }

    fn convert(&self, embedding: &str, output: &str) {
        self.run(
            &programs().convert,
            &["run", output, "--embedding", embedding],
        );
    }

    fn converts_to_equal_bytes(&self) {
        self.convert("f32", "again.btn");
        let [first, again] = ["f32.btn", "again.btn"].map(|n| fs::read(self.path(n)).unwrap());
        assert!(first == again, "{}: two conversions differ", self.case.name);
    }

    /// Trainer and runtime continue prompts alike, as far as no choice is a close call.
    fn greedy_texts_agree(&self) {
        let compared: usize = ["She was ", "Mr. Darcy ", "It is a truth"]
            .map(|prompt| self.greedy_text_agrees(prompt))
            .iter()
            .sum();
        assert!(compared >= 10, "{}: too unsure to tell", self.case.name);
    }

    /// Gives the number of tokens that were compared.
    fn greedy_text_agrees(&self, prompt: &str) -> usize {
        let generate = |n: usize| {
            let n = n.to_string();
            let args = [
                "f32.btn",
                "--prompt",
                prompt,
                "--kv",
                "f32",
                "--json",
                "--max-tokens",
                &n,
            ];
            self.json(&programs().run, &args)
        };
        let clear = self.clear_choices(&generate(24));
        let n = clear.to_string();
        let args = [
            "sample",
            "run",
            "--prompt",
            prompt,
            "--temperature",
            "0",
            "--max-tokens",
            &n,
        ];
        let theirs = self.run(&programs().trainer, &args);
        let ours = generate(clear);
        let ours = format!("{prompt}{}\n", ours["text"].as_str().unwrap());
        println!(
            "{}: {clear} tokens without a close call: {ours:?}",
            self.case.name
        );
        assert_eq!(ours, theirs, "{}", self.case.name);
        clear
    }

    /// How many tokens were chosen by a margin before the first that was not.
    fn clear_choices(&self, generated: &Value) -> usize {
        let ids = |field: &str| {
            let ids = generated[field].as_array().unwrap().iter();
            ids.map(|id| id.as_u64().unwrap() as u32)
                .collect::<Vec<_>>()
        };
        let (prompt, answer) = (ids("prompt_ids"), ids("ids"));
        let all: Vec<_> = [&prompt[..], &answer]
            .concat()
            .iter()
            .map(u32::to_string)
            .collect();
        let args = [
            "f32.btn",
            "--ids",
            &all.join(","),
            "--kv",
            "f32",
            "--max-tokens",
            "0",
            "--logits",
            "logits.safetensors",
        ];
        self.run(&programs().run, &args);
        let logits = self.logits();
        let choices = logits[prompt.len() - 1..].iter().zip(&answer);
        let clear = choices.take_while(|(logits, id)| {
            assert_eq!(
                argmax(logits),
                **id,
                "{}: not the best token",
                self.case.name
            );
            margin(logits) > CLOSE_CALL
        });
        clear.count()
    }

    fn logits(&self) -> Vec<Vec<f32>> {
        let bytes = fs::read(self.path("logits.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor("logits").unwrap();
        let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
        let values: Vec<f32> = view.data().chunks(4).map(value).collect();
        values.chunks(view.shape()[1]).map(<[_]>::to_vec).collect()
    }
}

/// The best logit less the second best.
fn margin(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted[sorted.len() - 1] - sorted[sorted.len() - 2]
}
