//! The table of added tokens.

use std::vec::Vec;

use super::{AddedPart, PartsError};
use crate::tokenizer::added::{LSTRIP, MatchStage, RSTRIP, SPECIAL};

/// Added tokens in the form the section holds them.
pub(super) struct Added {
    pub(super) n_raw: u32,
    pub(super) first_bytes: [[u8; 32]; 2],
    pub(super) entries: Vec<u8>,
    pub(super) by_id: Vec<u32>,
    pub(super) text: Vec<u8>,
}

impl Added {
    pub(super) fn new(added: &[AddedPart]) -> Result<Self, PartsError> {
        let normalized = |part: &AddedPart| part.stage == MatchStage::Normalized;
        let mut parts: Vec<&AddedPart> = added.iter().collect();
        parts.sort_by(|a, b| (normalized(a), &a.name).cmp(&(normalized(b), &b.name)));
        let same = |a: &AddedPart, b: &AddedPart| (a.stage, &a.name) == (b.stage, &b.name);
        if let Some(pair) = parts.windows(2).find(|pair| same(pair[0], pair[1])) {
            return Err(PartsError::AddedTwice { id: pair[1].id });
        }
        let mut table = Self {
            n_raw: parts.iter().filter(|part| !normalized(part)).count() as u32,
            first_bytes: [[0; 32]; 2],
            entries: Vec::new(),
            by_id: by_id(&parts)?,
            text: Vec::new(),
        };
        parts.into_iter().try_for_each(|part| table.push(part))?;
        Ok(table)
    }

    fn push(&mut self, part: &AddedPart) -> Result<(), PartsError> {
        let name = PartsError::AddedName { id: part.id };
        let len = |bytes: &[u8]| u8::try_from(bytes.len()).map_err(|_| name);
        let first = *part.name.first().ok_or(name)?;
        self.first_bytes[part.stage as usize][usize::from(first / 8)] |= 1 << (first % 8);
        let flags = [
            (part.special, SPECIAL),
            (part.lstrip, LSTRIP),
            (part.rstrip, RSTRIP),
        ];
        let flags = flags.into_iter().filter(|(on, _)| *on);
        let flags = flags.fold(0, |all, (_, flag)| all | flag);
        let name_offset = self.text.len() as u32;
        self.text.extend(&part.name);
        // What it decodes to is what it matches, mostly.
        let same = part.text == part.name;
        let text_offset = if same {
            name_offset
        } else {
            self.text.len() as u32
        };
        if !same {
            self.text.extend(&part.text);
        }
        let entry = [
            part.id.to_le_bytes(),
            [flags, len(&part.name)?, len(&part.text)?, 0],
            name_offset.to_le_bytes(),
            text_offset.to_le_bytes(),
        ];
        self.entries.extend(entry.as_flattened());
        Ok(())
    }
}

/// Places of the parts by rising id.
fn by_id(parts: &[&AddedPart]) -> Result<Vec<u32>, PartsError> {
    let mut places: Vec<u32> = (0..parts.len() as u32).collect();
    let id = |place: &u32| parts[*place as usize].id;
    places.sort_unstable_by_key(id);
    match places.windows(2).find(|pair| id(&pair[0]) == id(&pair[1])) {
        Some(pair) => Err(PartsError::AddedTwice { id: id(&pair[1]) }),
        None => Ok(places),
    }
}
