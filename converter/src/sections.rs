//! What a file holds beside the weights.

use bitnet_formats::metadata::encode_special_tokens;
use bitnet_formats::{Archive, SectionKind, TokenizerTables};

use crate::chat::{self, ChatSource, ChatTemplateError};
use crate::gguf::vocab::Vocab;
use crate::sidecar::Sidecars;
use crate::tokenizer::{self, TokenizerError};
use crate::write::TokenizerStore;

/// The small sections of a file, in file order.
#[derive(Debug, Default)]
pub(crate) struct Sections(Vec<(SectionKind, Vec<u8>)>);

impl Sections {
    pub(crate) fn of_sidecars(sidecars: &Sidecars) -> Self {
        let mut sections = Self::default();
        sections.template(sidecars.chat());
        sections.text(SectionKind::Licence, sidecars.licence.as_deref());
        sections.special_tokens(sidecars.config.bos_token_id, &sidecars.stop_ids);
        sections
    }

    pub(crate) fn of_vocab(vocab: &Vocab) -> Self {
        let mut sections = Self::default();
        sections.template(vocab.chat());
        sections.text(SectionKind::Licence, vocab.licence.as_deref());
        sections.special_tokens(vocab.bos, &vocab.stop_ids);
        sections
    }

    /// Those of a file that is packed again. Self-test vectors are made anew.
    pub(crate) fn of_archive(archive: &Archive<'_>) -> Self {
        let kinds = SectionKind::ALL.into_iter();
        let kept = kinds.filter(|kind| !kind.is_required() && *kind != SectionKind::SelfTest);
        let section = |kind| Some((kind, archive.section(kind)?.to_vec()));
        let mut sections = Self(kept.filter_map(section).collect());
        sections.0.sort_by_key(|(kind, _)| *kind as u32);
        sections
    }

    /// Adds the source of a chat template.
    fn template(&mut self, chat: Option<ChatSource<'_>>) {
        let text = chat.map(|chat| chat.with_names());
        self.text(SectionKind::ChatTemplate, text.as_deref());
    }

    /// Adds a tokenizer.json as the option says.
    pub(crate) fn tokenizer(
        &mut self,
        json: &str,
        store: TokenizerStore,
    ) -> Result<(), TokenizerError> {
        match store {
            TokenizerStore::Tables => self.add(SectionKind::Tokenizer, tokenizer::section(json)?),
            TokenizerStore::Json => self.text(SectionKind::TokenizerJson, Some(json)),
            TokenizerStore::None => (),
        }
        Ok(())
    }

    /// Adds the compiled chat template; says why if it cannot be compiled.
    pub(crate) fn chat(&mut self, source: &ChatSource<'_>) -> Option<ChatTemplateError> {
        let tables = self.get(SectionKind::Tokenizer).map(TokenizerTables::open);
        match chat::section(source, tables.and_then(Result::ok).as_ref()) {
            Ok(section) => {
                self.add(SectionKind::Chat, section);
                None
            }
            Err(problem) => Some(problem),
        }
    }

    fn text(&mut self, kind: SectionKind, text: Option<&str>) {
        if let Some(text) = text {
            self.add(kind, text.as_bytes().to_vec());
        }
    }

    fn special_tokens(&mut self, bos: Option<u32>, stop_ids: &[u32]) {
        if bos.is_some() || !stop_ids.is_empty() {
            let bytes = encode_special_tokens(bos, stop_ids);
            self.add(SectionKind::SpecialTokens, bytes);
        }
    }

    pub(crate) fn provenance(&mut self, source: &str) {
        const TOOL: &str = concat!("tool: bitnet-convert ", env!("CARGO_PKG_VERSION"), "\n");
        self.add(
            SectionKind::Provenance,
            format!("{TOOL}{source}").into_bytes(),
        );
    }

    pub(crate) fn add(&mut self, kind: SectionKind, bytes: Vec<u8>) {
        self.0.push((kind, bytes));
        self.0.sort_by_key(|(kind, _)| *kind as u32);
    }

    pub(crate) fn has(&self, kind: SectionKind) -> bool {
        self.get(kind).is_some()
    }

    fn get(&self, kind: SectionKind) -> Option<&[u8]> {
        let section = self.0.iter().find(|(k, _)| *k == kind);
        section.map(|(_, bytes)| &bytes[..])
    }

    pub(crate) fn list(&self) -> Vec<(SectionKind, &[u8])> {
        let sections = self.0.iter();
        sections.map(|(kind, bytes)| (*kind, &bytes[..])).collect()
    }
}
