//! What a name stands for while the conversation is not known.

use super::Result;
use super::cond::{Cond, Piece, Test};
use crate::chat::ChatTemplateError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(Vec<Piece>),
    Number(i64),
    Known(bool),
    When(Cond),
    None,
    Undefined,
    List(Vec<Value>),
    /// The messages without the first few.
    Messages(u16),
    /// The message of the loop.
    Message,
    FirstMessage,
    Loop,
    /// The place in the loop, counted from this number.
    Index(i64),
    /// The same modulo 2.
    Parity(i64),
}

impl Value {
    pub(super) fn literal(text: impl Into<String>) -> Self {
        Self::Text(vec![Piece::Literal(text.into())])
    }

    pub(super) fn as_literal(&self) -> Option<String> {
        let Self::Text(pieces) = self else {
            return None;
        };
        let literal = |piece: &Piece| match piece {
            Piece::Literal(text) => Some(text.clone()),
            _ => None,
        };
        pieces.iter().map(literal).collect()
    }

    pub(super) fn truth(self) -> Result<Cond> {
        if let Some(text) = self.as_literal() {
            return Ok(Cond::Known(!text.is_empty()));
        }
        match self {
            Self::Known(known) => Ok(Cond::Known(known)),
            Self::When(cond) => Ok(cond),
            Self::None | Self::Undefined => Ok(Cond::Known(false)),
            Self::Number(number) => Ok(Cond::Known(number != 0)),
            // There is at least one.
            Self::Messages(0) | Self::Message | Self::FirstMessage | Self::Loop => {
                Ok(Cond::Known(true))
            }
            Self::List(list) => Ok(Cond::Known(!list.is_empty())),
            Self::Parity(_) => Ok(self.equals(&Self::Number(1))?),
            _ => Err(ChatTemplateError::unsupported(
                "a condition on the text of a message",
            )),
        }
    }

    pub(super) fn from_cond(cond: Cond) -> Self {
        match cond {
            Cond::Known(known) => Self::Known(known),
            cond => Self::When(cond),
        }
    }

    pub(super) fn equals(&self, other: &Self) -> Result<Cond> {
        let refuse = || {
            Err(ChatTemplateError::unsupported(
                "a comparison with the text of a message",
            ))
        };
        if let (Some(a), Some(b)) = (self.as_literal(), other.as_literal()) {
            return Ok(Cond::Known(a == b));
        }
        match (self, other) {
            (Self::Text(pieces), text @ Self::Text(_))
            | (text @ Self::Text(_), Self::Text(pieces))
                if text.as_literal().is_some() =>
            {
                let text = text.as_literal().unwrap_or_default();
                match pieces[..] {
                    [Piece::Role] => Ok(Cond::Test(Test::RoleIs(text))),
                    [Piece::FirstRole] => Ok(Cond::Test(Test::FirstRoleIs(text))),
                    _ => refuse(),
                }
            }
            (Self::Text(_), Self::Text(_)) => refuse(),
            (Self::Number(a), Self::Number(b)) => Ok(Cond::Known(a == b)),
            (Self::Index(from), Self::Number(n)) | (Self::Number(n), Self::Index(from)) => {
                match n.cmp(from) {
                    std::cmp::Ordering::Less => Ok(Cond::Known(false)),
                    std::cmp::Ordering::Equal => Ok(Cond::Test(Test::First)),
                    std::cmp::Ordering::Greater => Err(ChatTemplateError::unsupported(
                        "a condition on a place in the conversation other than the first",
                    )),
                }
            }
            (Self::Parity(from), Self::Number(n)) | (Self::Number(n), Self::Parity(from)) => {
                let even = Cond::Test(Test::Even);
                Ok(match n {
                    0 | 1 if (from + n) % 2 == 0 => even,
                    0 | 1 => even.not(),
                    _ => Cond::Known(false),
                })
            }
            (Self::Known(_) | Self::When(_), Self::Known(_) | Self::When(_)) => {
                Ok(self.clone().truth()?.differs(other.clone().truth()?).not())
            }
            (
                Self::Text(_) | Self::Number(_) | Self::Known(_) | Self::None | Self::Undefined,
                _,
            )
            | (
                _,
                Self::Text(_) | Self::Number(_) | Self::Known(_) | Self::None | Self::Undefined,
            ) => Ok(Cond::Known(
                std::mem::discriminant(self) == std::mem::discriminant(other),
            )),
            _ => Err(ChatTemplateError::unsupported(
                "a comparison of such values",
            )),
        }
    }
}
