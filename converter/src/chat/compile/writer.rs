//! What is left to do, as operations in a row.

use bitnet_formats::chat::{ChatOp, ChatTest};

use super::cond::{Cond, Piece, Test};
use super::{Node, Result};
use crate::chat::ChatTemplateError;

/// Nodes laid out in a row, with jumps for branches.
#[derive(Default)]
pub(super) struct Writer {
    ops: Vec<ChatOp>,
    texts: Vec<String>,
    /// The text that is being put together of neighbouring pieces.
    literal: String,
}

impl Writer {
    pub(super) fn finish(mut self) -> Result<(Vec<ChatOp>, Vec<String>)> {
        self.flush()?;
        Ok((self.ops, self.texts))
    }

    pub(super) fn nodes(&mut self, nodes: &[Node]) -> Result<()> {
        nodes.iter().try_for_each(|node| self.node(node))
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        match node {
            Node::Piece(Piece::Literal(text)) => self.literal.push_str(text),
            Node::Piece(piece) => {
                let op = match piece {
                    Piece::Role => ChatOp::Role,
                    Piece::RoleCapitalized => ChatOp::RoleCapitalized,
                    Piece::Content(trim) => ChatOp::Content(*trim),
                    Piece::FirstContent(trim) => ChatOp::FirstContent(*trim),
                    Piece::Literal(_) | Piece::FirstRole => return Ok(()),
                };
                self.push(op)?;
            }
            Node::Refuse(why) => {
                let why = self.text(why)?;
                self.push(ChatOp::Refuse(why))?;
            }
            Node::Loop(skip, body) => {
                let start = self.push(ChatOp::Loop { skip: *skip, to: 0 })?;
                self.nodes(body)?;
                self.push(ChatOp::EndLoop)?;
                self.land(&[start])?;
            }
            Node::Branch(cond, yes, no) => {
                let otherwise = self.unless(cond, true)?;
                self.nodes(yes)?;
                if no.is_empty() {
                    return self.land(&otherwise);
                }
                let done = self.push(ChatOp::Jump(0))?;
                self.land(&otherwise)?;
                self.nodes(no)?;
                self.land(&[done])?;
            }
        }
        Ok(())
    }

    /// Goes on here if the condition gives this answer; what it returns jumps elsewhere.
    fn unless(&mut self, cond: &Cond, expected: bool) -> Result<Vec<usize>> {
        match cond {
            Cond::Known(known) if *known == expected => Ok(Vec::new()),
            Cond::Known(_) => Ok(vec![self.push(ChatOp::Jump(0))?]),
            Cond::Test(test) => {
                let test = self.test(test)?;
                let to = 0;
                Ok(vec![self.push(ChatOp::Unless { test, expected, to })?])
            }
            Cond::Not(inner) => self.unless(inner, !expected),
            Cond::And(a, b) if expected => self.all(a, b, true),
            Cond::Or(a, b) if !expected => self.all(a, b, false),
            Cond::And(a, b) => self.any(a, b, false),
            Cond::Or(a, b) => self.any(a, b, true),
        }
    }

    /// Goes on here if both give this answer.
    fn all(&mut self, a: &Cond, b: &Cond, expected: bool) -> Result<Vec<usize>> {
        let mut jumps = self.unless(a, expected)?;
        jumps.extend(self.unless(b, expected)?);
        Ok(jumps)
    }

    /// Goes on here if one of them does.
    fn any(&mut self, a: &Cond, b: &Cond, expected: bool) -> Result<Vec<usize>> {
        let first_fails = self.unless(a, expected)?;
        let done = self.push(ChatOp::Jump(0))?;
        self.land(&first_fails)?;
        let jumps = self.unless(b, expected)?;
        self.land(&[done])?;
        Ok(jumps)
    }

    fn test(&mut self, test: &Test) -> Result<ChatTest> {
        Ok(match test {
            Test::Generate => ChatTest::Generate,
            Test::First => ChatTest::First,
            Test::Last => ChatTest::Last,
            Test::Even => ChatTest::Even,
            Test::RoleIs(role) => ChatTest::RoleIs(self.text(role)?),
            Test::FirstRoleIs(role) => ChatTest::FirstRoleIs(self.text(role)?),
        })
    }

    /// Adds an operation; returns its place.
    fn push(&mut self, op: ChatOp) -> Result<usize> {
        self.flush()?;
        self.ops.push(op);
        Ok(self.ops.len() - 1)
    }

    /// Writes the text that is complete now.
    fn flush(&mut self) -> Result<()> {
        if !self.literal.is_empty() {
            let literal = std::mem::take(&mut self.literal);
            let text = self.text(&literal)?;
            self.ops.push(ChatOp::Text(text));
        }
        Ok(())
    }

    /// Lets jumps end here.
    fn land(&mut self, jumps: &[usize]) -> Result<()> {
        self.flush()?;
        let here = u16::try_from(self.ops.len()).map_err(|_| ChatTemplateError::TooLarge)?;
        for jump in jumps {
            match &mut self.ops[*jump] {
                ChatOp::Unless { to, .. } | ChatOp::Jump(to) | ChatOp::Loop { to, .. } => {
                    *to = here
                }
                _ => unreachable!("only jumps are kept to land"),
            }
        }
        Ok(())
    }

    /// The number of a text.
    fn text(&mut self, text: &str) -> Result<u16> {
        let found = self.texts.iter().position(|known| known == text);
        let at = found.unwrap_or_else(|| {
            self.texts.push(text.to_owned());
            self.texts.len() - 1
        });
        u16::try_from(at).map_err(|_| ChatTemplateError::TooLarge)
    }
}
