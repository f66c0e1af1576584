//! Merges in the smallest form that says the same.

use std::collections::HashMap;
use std::vec::Vec;

use super::{MergeSource, PartsError, TokenPart, TokenizerParts};
use crate::tokenizer::LISTED_BYTES;
use crate::tokenizer::header::{MergeRule, Ties};

/// A pair that merges, by what it makes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    id: u32,
    left: u32,
    /// Bytes of the left part.
    split: u8,
}

/// Merges in the form the section holds them.
pub(super) struct Merges {
    pub(super) rule: MergeRule,
    pub(super) ties: Ties,
    pub(super) splits: Vec<u8>,
    pub(super) listed: Vec<[u8; LISTED_BYTES]>,
    /// Place of each token in the order of merging; empty where that is its id.
    pub(super) order: Vec<u32>,
}

impl Merges {
    pub(super) fn new(
        parts: &TokenizerParts,
        texts: &HashMap<&[u8], u32>,
    ) -> Result<Self, PartsError> {
        match &parts.merges {
            MergeSource::Ranked(pairs) => Self::ranked(parts, texts, pairs),
            MergeSource::Scores(scores) => Self::scored(parts, texts, scores),
        }
    }

    fn ranked(
        parts: &TokenizerParts,
        texts: &HashMap<&[u8], u32>,
        pairs: &[(u32, u32)],
    ) -> Result<Self, PartsError> {
        let ranked = resolve(&parts.tokens, texts, pairs)?;
        let any = Self::any(parts, texts, &ranked);
        let split = || Self::split(parts, &ranked);
        any.or_else(split).map_or_else(|| Self::listed(&ranked), Ok)
    }

    /// Where the pairs are all there are, and sorted by token, then by left id.
    fn any(parts: &TokenizerParts, texts: &HashMap<&[u8], u32>, ranked: &[Pair]) -> Option<Self> {
        let mut all = all_pairs(&parts.tokens, texts);
        if all.len() != ranked.len() {
            return None;
        }
        let order = order(parts.tokens.len(), ranked);
        all.sort_unstable_by_key(|pair| (order[pair.id as usize], pair.left));
        (all == ranked).then(|| Self {
            order: unless_ids(order, ranked),
            ..Self::empty(MergeRule::Any, Ties::LeftId)
        })
    }

    /// Where no token is made by two pairs.
    fn split(parts: &TokenizerParts, ranked: &[Pair]) -> Option<Self> {
        let mut splits = std::vec![0; parts.tokens.len()];
        for pair in ranked {
            let split = &mut splits[pair.id as usize];
            if *split != 0 {
                return None;
            }
            *split = pair.split;
        }
        Some(Self {
            splits,
            order: unless_ids(order(parts.tokens.len(), ranked), ranked),
            ..Self::empty(MergeRule::Split, Ties::Place)
        })
    }

    fn listed(ranked: &[Pair]) -> Result<Self, PartsError> {
        if ranked.len() > 1 << 24 {
            return Err(PartsError::TooMany { what: "merges" });
        }
        let mut sorted: Vec<_> = ranked.iter().zip(0_u32..).collect();
        sorted.sort_unstable_by_key(|(pair, _)| (pair.id, pair.split));
        let entry = |(pair, rank): &(&Pair, u32)| {
            let [a, b, c, d] = pair.id.to_le_bytes();
            let [e, f, g, _] = rank.to_le_bytes();
            [a, b, c, d, pair.split, e, f, g]
        };
        Ok(Self {
            listed: sorted.iter().map(entry).collect(),
            ..Self::empty(MergeRule::Listed, Ties::Place)
        })
    }

    /// Tokens by falling score; equal scores have equal ranks.
    fn scored(
        parts: &TokenizerParts,
        texts: &HashMap<&[u8], u32>,
        scores: &[f32],
    ) -> Result<Self, PartsError> {
        if scores.len() != parts.tokens.len() || scores.iter().any(|score| score.is_nan()) {
            return Err(PartsError::Scores);
        }
        let mut falling = scores.to_vec();
        falling.sort_unstable_by(|a, b| b.total_cmp(a));
        falling.dedup();
        let rank = |score: &f32| falling.partition_point(|other| other > score) as u32;
        let order: Vec<u32> = scores.iter().map(rank).collect();
        let mut made: Vec<_> = all_pairs(&parts.tokens, texts)
            .iter()
            .map(|p| p.id)
            .collect();
        made.sort_unstable();
        made.dedup();
        let by_id = made.is_sorted_by(|a, b| order[*a as usize] < order[*b as usize]);
        Ok(Self {
            order: if by_id { Vec::new() } else { order },
            ..Self::empty(MergeRule::Any, Ties::Place)
        })
    }

    fn empty(rule: MergeRule, ties: Ties) -> Self {
        Self {
            rule,
            ties,
            splits: Vec::new(),
            listed: Vec::new(),
            order: Vec::new(),
        }
    }
}

/// The pairs in order of merging. A pair that is listed twice has its last place.
fn resolve(
    tokens: &[TokenPart],
    texts: &HashMap<&[u8], u32>,
    pairs: &[(u32, u32)],
) -> Result<Vec<Pair>, PartsError> {
    let mut last = HashMap::new();
    for (rank, pair) in pairs.iter().enumerate() {
        last.insert(*pair, rank);
    }
    let mut resolved = Vec::new();
    for (rank, (left, right)) in pairs.iter().enumerate() {
        if last[&(*left, *right)] == rank {
            let pair = resolve_pair(tokens, texts, *left, *right);
            resolved.push(pair.ok_or(PartsError::Merge { rank })?);
        }
    }
    Ok(resolved)
}

fn resolve_pair(
    tokens: &[TokenPart],
    texts: &HashMap<&[u8], u32>,
    left: u32,
    right: u32,
) -> Option<Pair> {
    let token = |id: u32| tokens.get(id as usize).filter(|token| token.matchable);
    let (a, b) = (&token(left)?.bytes, &token(right)?.bytes);
    let id = *texts.get(&[&a[..], b].concat()[..])?;
    let split = u8::try_from(a.len()).ok()?;
    (!a.is_empty() && !b.is_empty()).then_some(Pair { id, left, split })
}

/// Every way in which a token is two tokens.
fn all_pairs(tokens: &[TokenPart], texts: &HashMap<&[u8], u32>) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (id, token) in (0..).zip(tokens).filter(|(_, token)| token.matchable) {
        for split in 1..token.bytes.len() {
            let (left, right) = token.bytes.split_at(split);
            if let (Some(left), true) = (texts.get(left), texts.contains_key(right)) {
                let (left, split) = (*left, split as u8);
                pairs.push(Pair { id, left, split });
            }
        }
    }
    pairs
}

/// The place at which each token is first made; those that never are come last.
fn order(n_tokens: usize, ranked: &[Pair]) -> Vec<u32> {
    let mut order = std::vec![u32::MAX; n_tokens];
    for (rank, pair) in (0..).zip(ranked) {
        let place = &mut order[pair.id as usize];
        *place = rank.min(*place);
    }
    order
}

/// Nothing where tokens are made in the order of their ids.
fn unless_ids(order: Vec<u32>, ranked: &[Pair]) -> Vec<u32> {
    if ranked.is_sorted_by_key(|pair| pair.id) {
        Vec::new()
    } else {
        order
    }
}
