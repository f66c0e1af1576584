//! What a `.btn` file holds, for people and for scripts.

use std::fmt;

use bitnet_formats::{Archive, Attention, Dtype, ModelConfig, NormKind, Output, SectionKind};
use serde_json::{Value, json};

/// A listing of an opened file.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a, 'w>(pub &'a Archive<'w>);

impl Listing<'_, '_> {
    /// The listing for scripts.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let archive = self.0;
        let tokens = archive.special_tokens();
        json!({
            "version": bitnet_formats::header::VERSION,
            "file_bytes": archive.preamble().file_bytes,
            "parameters": archive.config().parameter_count(),
            "config": archive.config(),
            "sections": archive.sections().map(|s| json!({
                "kind": section_name(s.kind), "offset": s.offset, "bytes": s.bytes,
            })).collect::<Vec<_>>(),
            "bos_id": tokens.and_then(|t| t.bos),
            "stop_ids": tokens.map(|t| t.stop_ids().collect::<Vec<_>>()),
            "provenance": archive.text(SectionKind::Provenance),
            "self_tests": archive.self_tests().map(|test| json!({
                "kv": test.kv.name(),
                "ids": test.ids().collect::<Vec<_>>(),
                "logits_hash": format!("{:016x}", test.logits_hash),
            })).collect::<Vec<_>>(),
            "tensors": archive.tensors().map(|(spec, entry)| json!({
                "role": spec.role.name(), "layer": spec.layer, "dtype": dtype_name(entry.dtype),
                "rows": spec.rows, "cols": spec.cols, "offset": entry.offset,
                "bytes": entry.bytes, "scale": scale(entry.scale),
            })).collect::<Vec<_>>(),
        })
    }

    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (archive, config) = (self.0, self.0.config());
        writeln!(
            f,
            "format {}, {} bytes, {} parameters\n",
            bitnet_formats::header::VERSION,
            archive.preamble().file_bytes,
            config.parameter_count()
        )?;
        write_config(config, f)?;
        if let Some(provenance) = archive.text(SectionKind::Provenance) {
            writeln!(f, "\n{}", provenance.trim_end())?;
        }
        Ok(())
    }

    fn sections(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<16} {:>12} {:>13}", "section", "offset", "bytes")?;
        for entry in self.0.sections() {
            let name = section_name(entry.kind);
            writeln!(f, "{name:<16} {:>12} {:>13}", entry.offset, entry.bytes)?;
        }
        Ok(())
    }

    fn tokens(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tokens) = self.0.special_tokens() else {
            return Ok(());
        };
        let stop: Vec<_> = tokens.stop_ids().map(|id| id.to_string()).collect();
        let bos = tokens.bos.map_or("none".to_owned(), |id| id.to_string());
        writeln!(f, "\nbos {bos}, stop {}", stop.join(" "))
    }

    fn self_tests(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tests = self.0.self_tests().peekable();
        if tests.peek().is_some() {
            writeln!(f)?;
        }
        for test in tests {
            let (kv, n) = (test.kv.name(), test.ids().len());
            writeln!(
                f,
                "self-test {n:>3} tokens, {kv:<6} cache: {:016x}",
                test.logits_hash
            )?;
        }
        Ok(())
    }

    fn tensors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:>5} {:<16} {:<6} {:>15} {:>13} {:>13} scale",
            "layer", "tensor", "type", "shape", "offset", "bytes"
        )?;
        for (spec, entry) in self.0.tensors() {
            let layer = spec.layer.map_or("-".to_owned(), |layer| layer.to_string());
            let shape = format!("{}x{}", spec.rows, spec.cols);
            let (name, dtype) = (spec.role.name(), dtype_name(entry.dtype));
            let scale = scale(entry.scale).map_or("-".to_owned(), |scale| scale.to_string());
            writeln!(
                f,
                "{layer:>5} {name:<16} {dtype:<6} {shape:>15} {:>13} {:>13} {scale}",
                entry.offset, entry.bytes
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Listing<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header(f)?;
        self.tokens(f)?;
        self.sections(f)?;
        self.self_tests(f)?;
        self.tensors(f)
    }
}

fn write_config(config: &ModelConfig, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<18} {value}");
    line("hidden_size", &config.hidden_size)?;
    line("intermediate_size", &config.intermediate_size)?;
    line("n_layers", &config.n_layers)?;
    line("n_heads", &config.n_heads)?;
    for (name, value) in attention_lines(config.attention) {
        line(name, &value)?;
    }
    line("vocab_size", &config.vocab_size)?;
    line("max_seq_len", &config.max_seq_len)?;
    line(
        "rope",
        &format!("{:?}, theta {}", config.rope.pairing, config.rope.theta),
    )?;
    line("activation", &format!("{:?}", config.activation))?;
    line("norms", &norms(config))?;
    if let Some(dim) = config.qk_latent_dim {
        line("qk_latent_dim", &dim)?;
    }
    if config.output != Output::Logits {
        line("output", &format!("{:?}", config.output))?;
    }
    line("tie_embeddings", &config.tie_embeddings)?;
    line("weight_scale", &format!("{:?}", config.weight_scale))
}

fn attention_lines(attention: Attention) -> Vec<(&'static str, usize)> {
    match attention {
        Attention::Grouped {
            n_kv_heads,
            head_dim,
        } => vec![("n_kv_heads", n_kv_heads), ("head_dim", head_dim)],
        Attention::Latent {
            kv_lora_rank,
            qk_nope_head_dim,
            qk_rope_head_dim,
            v_head_dim,
        } => vec![
            ("kv_lora_rank", kv_lora_rank),
            ("qk_nope_head_dim", qk_nope_head_dim),
            ("qk_rope_head_dim", qk_rope_head_dim),
            ("v_head_dim", v_head_dim),
        ],
    }
}

fn norms(config: &ModelConfig) -> String {
    let norms = &config.norms;
    let optional = [
        (norms.kind == NormKind::Layer, ", LayerNorm"),
        (!norms.block, ", none before a block"),
        (norms.attn_sub_norm, ", attn_sub_norm"),
        (norms.ffn_sub_norm, ", ffn_sub_norm"),
        (norms.qk_norm, ", of query and key heads"),
    ];
    let present = optional.iter().filter(|(has, _)| *has);
    let names: String = present.map(|(_, name)| *name).collect();
    let in_linear = norms
        .in_linear
        .map_or(String::new(), |eps| format!(", in linears (eps {eps})"));
    format!("eps {}{names}{in_linear}", norms.eps)
}

fn section_name(code: u32) -> String {
    match SectionKind::from_code(code) {
        Some(kind) => kind.name().to_owned(),
        None => format!("unknown {code}"),
    }
}

fn dtype_name(code: u8) -> &'static str {
    Dtype::from_code(code).map_or("?", Dtype::name)
}

/// The scale of a ternary tensor; others have none.
fn scale(stored: f32) -> Option<f32> {
    (stored != 0.0).then_some(stored)
}
