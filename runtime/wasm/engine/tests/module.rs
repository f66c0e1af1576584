//! The module as it is shipped, with vectors and without, against the same runtime built for this
//! machine. `runtime/wasm/build.sh` makes the modules.

use std::path::Path;
use std::sync::Arc;

use bitnet_runtime::{
    AlignedBuffer, Archive, KvType, LoadOptions, Model, Sampler, SamplerConfig, Session,
    SessionConfig, Tokenizer, sampler::Candidate, weight_plan,
};
use bitnet_tests::packed::packed;
use bitnet_wasm_engine::{Host, Step};

const MODULES: [(&str, u32); 2] = [("bitnet", 1), ("bitnet-simd", 2)];
const PROMPT: [u32; 9] = [41, 84, 300, 7, 99, 12, 431, 5, 260];
const TEXT: &str = "It was a truth, said Mrs. Bennet,";
const WARM: SamplerConfig = SamplerConfig {
    temperature: 0.7,
    top_k: 40,
    top_p: 0.95,
    min_p: 0.01,
    seed: 0x1_0000_0003,
};

fn file(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; run runtime/wasm/build.sh first", path.display()))
}

fn shipped() -> Vec<u8> {
    file("../../models/austen-nano.btn")
}

fn host(name: &str) -> Host {
    Host::new(&file(&format!("www/{name}.wasm")), Arc::from(shipped())).unwrap()
}

/// The ids that follow a prompt, computed by this machine's fastest kernels.
fn native_ids(prompt: &[u32], n: usize, config: SamplerConfig) -> Vec<u32> {
    let bytes = shipped();
    let archive = Archive::open(&bytes).unwrap();
    let model = Model::load(&archive, &mut [], &LoadOptions::default()).unwrap();
    let options = SessionConfig {
        max_seq_len: 128,
        prefill_batch: prompt.len(),
        kv: KvType::Native,
        threads: 1,
    };
    let plan = model.plan(&options).unwrap();
    let mut kv = AlignedBuffer::zeroed(plan.kv_bytes);
    let mut scratch = AlignedBuffer::zeroed(plan.scratch_bytes);
    let mut session = Session::new(&model, &mut kv, &mut scratch, &options).unwrap();
    let mut sampler = Sampler::new(config);
    let mut work = vec![Candidate::default(); model.config().vocab_size];
    let mut ids = vec![sampler.sample(session.prefill(prompt).unwrap(), &mut work)];
    while ids.len() < n {
        let last = *ids.last().unwrap();
        ids.push(sampler.sample(session.decode(last).unwrap(), &mut work));
    }
    ids
}

/// Sets [`WARM`].
fn warm(host: &mut Host) {
    host.checked("sampler", (0.7f32, 40, 0.95f32, 0.01f32, 3, 1))
        .unwrap();
}

/// What this machine makes of [`TEXT`]: the number of its ids, and the text that `n` more are.
fn native_text(n: usize) -> (i32, String) {
    let bytes = shipped();
    let archive = Archive::open(&bytes).unwrap();
    let tokenizer = Tokenizer::new(archive.tokenizer().unwrap().unwrap());
    let mut scratch = vec![0; tokenizer.scratch_words(TEXT.len())];
    let mut prompt = vec![0; tokenizer.most_ids(TEXT.len())];
    let encoded = tokenizer.encode(TEXT, true, &mut scratch, &mut prompt);
    prompt.truncate(encoded.unwrap().len);
    let mut decoder = tokenizer.decoder_after(&prompt, true);
    let mut text = String::new();
    for id in native_ids(&prompt, n, WARM) {
        decoder.push(id, &mut |piece| text.push_str(piece));
    }
    decoder.finish(&mut |piece| text.push_str(piece));
    (prompt.len() as i32, text)
}

/// The text of `n` more tokens.
fn text_of(host: &mut Host, n: usize) -> String {
    let (mut text, mut tokens) = (String::new(), 0);
    while tokens < n {
        match host.step(50).unwrap() {
            Step::Token(_) => {
                tokens += 1;
                text.push_str(host.piece().unwrap());
            }
            Step::Pending => (),
            Step::Stop | Step::Full => break,
        }
    }
    host.checked("finish", ()).unwrap();
    text.push_str(host.piece().unwrap());
    text
}

/// Generates `n` ids; after every step the memory has the size that it had at first.
fn ids_of(host: &mut Host, n: usize, budget: u32) -> Vec<u32> {
    let memory_bytes = host.memory_bytes();
    host.prompt_ids(&PROMPT).unwrap();
    let mut ids = Vec::new();
    while ids.len() < n {
        match host.step(budget).unwrap() {
            Step::Token(id) => ids.push(id),
            Step::Pending => (),
            Step::Stop | Step::Full => break,
        }
        assert_eq!(host.memory_bytes(), memory_bytes, "memory grew");
    }
    ids
}

#[test]
fn self_tests_give_the_hashes_of_the_file() {
    for (name, isa) in MODULES {
        let mut host = host(name);
        host.load(0, 32).unwrap();
        assert_eq!(host.info("isa").unwrap(), isa, "{name}");
        let n = host.info("self_tests").unwrap();
        assert!(n >= 3, "{n} self-tests");
        for index in 0..n {
            assert_eq!(
                host.checked("self_test", index).unwrap(),
                1,
                "{name} {index}"
            );
        }
        assert!(host.checked("self_test", n).is_err());
    }
}

/// The bytes of the file change, and so do the logits: the test above can fail.
#[test]
fn self_tests_notice_another_scale() {
    let mut bytes = shipped();
    let archive = Archive::open(&bytes).unwrap();
    let embedding = archive.tensors().next().unwrap().1;
    let (first, last) = (embedding.offset as usize, embedding.bytes as usize);
    // An int8 code of the embedding; nothing but the whole checksum covers it.
    bytes[first + last - 1] ^= 1;
    let mut host = Host::new(&file("www/bitnet.wasm"), Arc::from(bytes)).unwrap();
    let size = host.info("memory_bytes").unwrap();
    assert_eq!(size, 0);
    let loaded = host.load(0, 32);
    assert!(loaded.unwrap_err().to_string().contains("checksum"));
}

#[test]
fn ids_are_those_of_this_machine() {
    for (name, _) in MODULES {
        for (context, batch, budget) in [(128, 1, 1), (128, 4, 7), (0, 32, u32::MAX)] {
            let mut host = host(name);
            host.load(context, batch).unwrap();
            let greedy = native_ids(&PROMPT, 24, SamplerConfig::default());
            assert_eq!(ids_of(&mut host, 24, budget), greedy, "{name} {budget}");
            host.checked("reset", ()).unwrap();
            warm(&mut host);
            assert_eq!(
                ids_of(&mut host, 24, budget),
                native_ids(&PROMPT, 24, WARM),
                "{name} {budget}"
            );
        }
    }
}

#[test]
fn text_is_that_of_this_machine() {
    let (prompt_tokens, text) = native_text(40);
    assert!(text.len() > 60, "{text}");
    for (name, _) in MODULES {
        let mut host = host(name);
        host.load(0, 8).unwrap();
        warm(&mut host);
        let tokens = host.prompt_text(TEXT.as_bytes()).unwrap();
        assert_eq!(tokens, prompt_tokens, "{name}");
        assert_eq!(text_of(&mut host, 40), text, "{name}");
        assert_eq!(host.call::<_, u32>("dropped", ()).unwrap(), 0);
    }
}

/// `plan` tells the size before anything is loaded, `load` makes the memory that large at once, and
/// what was planned is what [`bitnet_runtime::MemoryPlan`] says.
#[test]
fn memory_is_what_the_plan_says() {
    let bytes = shipped();
    let archive = Archive::open(&bytes).unwrap();
    for (name, _) in MODULES {
        let mut host = host(name);
        let before = host.memory_bytes();
        let len = bytes.len() as u32;
        host.checked("plan", (len, 64, 8)).unwrap();
        assert_eq!(host.memory_bytes(), before, "planning takes no memory");
        let planned = host.info("memory_bytes").unwrap() as usize;
        host.load(64, 8).unwrap();
        assert_eq!(host.memory_bytes(), planned);
        let options = SessionConfig {
            max_seq_len: 64,
            prefill_batch: 8,
            kv: KvType::Native,
            threads: 1,
        };
        let plan = bitnet_runtime::MemoryPlan::new(archive.config(), &options).unwrap();
        assert_eq!(host.info("file_bytes").unwrap() as usize, bytes.len());
        assert_eq!(host.info("kv_bytes").unwrap() as usize, plan.kv_bytes);
        assert_eq!(
            host.info("scratch_bytes").unwrap() as usize,
            plan.scratch_bytes
        );
        // Nothing but alignment and the last page lies between the sum and the size.
        let names = [
            "module_bytes",
            "file_bytes",
            "weight_bytes",
            "kv_bytes",
            "scratch_bytes",
            "other_bytes",
        ];
        let sum: u32 = names.iter().map(|name| host.info(name).unwrap()).sum();
        assert!(
            planned - (sum as usize) < 65_536 + 8 * 64,
            "{planned} for {sum}"
        );
    }
}

/// A packed file is decoded to memory of its own, which is planned, and computes the same.
#[test]
fn a_packed_file_runs_alike() {
    let bytes = packed(&shipped());
    let archive = Archive::open(&bytes).unwrap();
    let weight_bytes = weight_plan(&archive, &LoadOptions::smallest(&archive)).unwrap();
    for (name, _) in MODULES {
        let module = file(&format!("www/{name}.wasm"));
        let mut host = Host::new(&module, Arc::from(&bytes[..])).unwrap();
        host.checked("plan", (bytes.len() as u32, 128, 8)).unwrap();
        let planned = host.info("memory_bytes").unwrap() as usize;
        host.load(128, 8).unwrap();
        assert_eq!(host.memory_bytes(), planned);
        assert_eq!(host.info("weight_bytes").unwrap() as usize, weight_bytes);
        for index in 0..host.info("self_tests").unwrap() {
            assert_eq!(host.checked("self_test", index).unwrap(), 1, "{name}");
        }
        let greedy = native_ids(&PROMPT, 24, SamplerConfig::default());
        assert_eq!(ids_of(&mut host, 24, u32::MAX), greedy, "{name}");
    }
}

#[test]
fn misuse_is_an_error_with_a_message() {
    for (name, _) in MODULES {
        let mut host = host(name);
        let message = |result: anyhow::Result<i32>| result.unwrap_err().to_string();
        assert_eq!(message(host.checked("step", 1)), "no model is loaded");
        assert_eq!(host.call::<_, u32>("ids", ()).unwrap(), 0);
        let short = message(host.checked("plan", (10, 0, 1)));
        assert!(short.contains("bytes"), "{short}");
        let long = message(host.checked("plan", (shipped().len() as u32, 257, 1)));
        assert!(long.contains("257 positions"), "{long}");
        host.load(16, 4).unwrap();
        assert!(
            host.load(16, 4)
                .unwrap_err()
                .to_string()
                .contains("another instance")
        );
        assert!(message(host.checked("step", 1)).contains("give a prompt"));
        assert!(message(host.checked("prompt_ids", 17)).contains("context is full"));
        assert!(message(host.checked("prompt_ids", u32::MAX)).contains("context is full"));
        let capacity: u32 = host.call("text_capacity", ()).unwrap();
        assert_eq!(capacity, 16 * 8);
        assert!(
            message(host.checked("prompt_text", capacity + 1)).contains("longer than the room")
        );
        assert!(message(host.prompt_text(b"It was \xff")).contains("UTF-8"));
        let long = message(host.prompt_text(&[b'~'; 128]));
        assert!(long.contains("more than 16 tokens"), "{long}");
        host.prompt_text(b"It").unwrap();
        let busy = message(host.prompt_text(b"It"));
        assert!(busy.contains("step"), "{busy}");
        // A file that is no model, and one that cannot be delivered.
        let mut other =
            Host::new(&file(&format!("www/{name}.wasm")), Arc::from([7u8; 100])).unwrap();
        assert!(
            other
                .load(0, 1)
                .unwrap_err()
                .to_string()
                .contains("not a .btn file")
        );
        assert!(message(other.checked("plan", (1_000_000, 0, 1))).contains("not a .btn file"));
    }
}
