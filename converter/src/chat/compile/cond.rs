//! Conditions on a conversation that is not known yet.

use bitnet_formats::chat::Trim;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    Literal(String),
    Role,
    RoleCapitalized,
    /// Role of the first message: only to be compared.
    FirstRole,
    Content(Trim),
    FirstContent(Trim),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Test {
    Generate,
    First,
    Last,
    Even,
    RoleIs(String),
    FirstRoleIs(String),
}

impl Test {
    /// The answer that follows from another test's: a role is one text only.
    fn answer(&self, (known, answer): &(Test, bool)) -> Option<bool> {
        match (self, known) {
            _ if self == known => Some(*answer),
            (Self::RoleIs(_), Self::RoleIs(_)) | (Self::FirstRoleIs(_), Self::FirstRoleIs(_))
                if *answer =>
            {
                Some(false)
            }
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cond {
    Known(bool),
    Test(Test),
    Not(Box<Cond>),
    And(Box<Cond>, Box<Cond>),
    Or(Box<Cond>, Box<Cond>),
}

impl Cond {
    pub(super) fn not(self) -> Self {
        match self {
            Self::Known(known) => Self::Known(!known),
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(true), cond) | (cond, Self::Known(true)) => cond,
            (Self::Known(false), _) | (_, Self::Known(false)) => Self::Known(false),
            (a, b) => Self::And(Box::new(a), Box::new(b)),
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(false), cond) | (cond, Self::Known(false)) => cond,
            (Self::Known(true), _) | (_, Self::Known(true)) => Self::Known(true),
            (a, b) => Self::Or(Box::new(a), Box::new(b)),
        }
    }

    /// The same condition where these answers are known.
    pub(super) fn given(self, facts: &[(Test, bool)]) -> Self {
        match self {
            Self::Known(_) => self,
            Self::Test(test) => match facts.iter().find_map(|fact| test.answer(fact)) {
                Some(known) => Self::Known(known),
                None => Self::Test(test),
            },
            Self::Not(inner) => inner.given(facts).not(),
            Self::And(a, b) => a.given(facts).and(b.given(facts)),
            Self::Or(a, b) => a.given(facts).or(b.given(facts)),
        }
    }

    /// Adds the answers of tests that follow from that of the condition.
    pub(super) fn teach(&self, answer: bool, facts: &mut Vec<(Test, bool)>) {
        match self {
            Self::Test(test) => facts.push((test.clone(), answer)),
            Self::Not(inner) => inner.teach(!answer, facts),
            Self::And(a, b) if answer => [a, b].into_iter().for_each(|c| c.teach(true, facts)),
            Self::Or(a, b) if !answer => [a, b].into_iter().for_each(|c| c.teach(false, facts)),
            Self::Known(_) | Self::And(..) | Self::Or(..) => (),
        }
    }

    pub(super) fn differs(self, other: Self) -> Self {
        let left = self.clone().and(other.clone().not());
        left.or(self.not().and(other))
    }
}
