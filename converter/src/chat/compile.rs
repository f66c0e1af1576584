//! The program run on a conversation that is not known yet.
//!
//! Values that depend on the conversation stay symbols: a text is a row of pieces, a condition a
//! tree of tests. Where a branch depends on such a condition and gives names new values, what
//! follows is compiled once for each branch.

use std::collections::HashMap;

use bitnet_formats::chat::{ChatOp, ChatTest, Trim};

use super::parse::{Expr, Stmt};
use super::{ChatTemplateError, Names};

/// Most statements that are run, branches counted each.
const MOST_STEPS: usize = 4096;

type Result<T> = std::result::Result<T, ChatTemplateError>;

/// Operations and the texts they name.
pub(super) fn program(program: &[Stmt], names: Names<'_>) -> Result<(Vec<ChatOp>, Vec<String>)> {
    let mut env: Env = names
        .iter()
        .map(|(name, text)| ((*name).to_owned(), Value::literal(*text)))
        .collect();
    env.insert("messages".into(), Value::Messages(0));
    env.insert(
        "add_generation_prompt".into(),
        Value::When(Cond::Test(Test::Generate)),
    );
    // Given by the library that templates are written for, and nothing here.
    for absent in ["tools", "documents"] {
        env.insert(absent.into(), Value::None);
    }
    let scope = Scope {
        names: env,
        facts: Vec::new(),
    };
    let nodes = Runner::default().run(&program.iter().collect::<Vec<_>>(), scope)?;
    let mut writer = Writer::default();
    writer.nodes(&nodes)?;
    writer.finish()
}

type Env = HashMap<String, Value>;

/// What is known where statements run.
#[derive(Clone)]
struct Scope {
    names: Env,
    /// Answers of tests in the branch that is taken.
    facts: Vec<(Test, bool)>,
}

impl Scope {
    /// The truth of an expression, as far as it is known here.
    fn truth(&self, expr: &Expr) -> Result<Cond> {
        Ok(eval(expr, &self.names)?.truth()?.given(&self.facts))
    }

    /// The scope of the branch that is taken if the condition has this answer.
    fn when(&self, cond: &Cond, answer: bool) -> Self {
        let mut scope = self.clone();
        cond.teach(answer, &mut scope.facts);
        scope
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Literal(String),
    Role,
    RoleCapitalized,
    /// Role of the first message: only to be compared.
    FirstRole,
    Content(Trim),
    FirstContent(Trim),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
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
enum Cond {
    Known(bool),
    Test(Test),
    Not(Box<Cond>),
    And(Box<Cond>, Box<Cond>),
    Or(Box<Cond>, Box<Cond>),
}

impl Cond {
    fn not(self) -> Self {
        match self {
            Self::Known(known) => Self::Known(!known),
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(true), cond) | (cond, Self::Known(true)) => cond,
            (Self::Known(false), _) | (_, Self::Known(false)) => Self::Known(false),
            (a, b) => Self::And(Box::new(a), Box::new(b)),
        }
    }

    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(false), cond) | (cond, Self::Known(false)) => cond,
            (Self::Known(true), _) | (_, Self::Known(true)) => Self::Known(true),
            (a, b) => Self::Or(Box::new(a), Box::new(b)),
        }
    }

    /// The same condition where these answers are known.
    fn given(self, facts: &[(Test, bool)]) -> Self {
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
    fn teach(&self, answer: bool, facts: &mut Vec<(Test, bool)>) {
        match self {
            Self::Test(test) => facts.push((test.clone(), answer)),
            Self::Not(inner) => inner.teach(!answer, facts),
            Self::And(a, b) if answer => [a, b].into_iter().for_each(|c| c.teach(true, facts)),
            Self::Or(a, b) if !answer => [a, b].into_iter().for_each(|c| c.teach(false, facts)),
            Self::Known(_) | Self::And(..) | Self::Or(..) => (),
        }
    }

    fn differs(self, other: Self) -> Self {
        let left = self.clone().and(other.clone().not());
        left.or(self.not().and(other))
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
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
    fn literal(text: impl Into<String>) -> Self {
        Self::Text(vec![Piece::Literal(text.into())])
    }

    fn as_literal(&self) -> Option<String> {
        let Self::Text(pieces) = self else {
            return None;
        };
        let literal = |piece: &Piece| match piece {
            Piece::Literal(text) => Some(text.clone()),
            _ => None,
        };
        pieces.iter().map(literal).collect()
    }

    fn truth(self) -> Result<Cond> {
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

    fn from_cond(cond: Cond) -> Self {
        match cond {
            Cond::Known(known) => Self::Known(known),
            cond => Self::When(cond),
        }
    }

    fn equals(&self, other: &Self) -> Result<Cond> {
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

/// What is left to do when the conversation is known.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Piece(Piece),
    Branch(Cond, Vec<Node>, Vec<Node>),
    Loop(u16, Vec<Node>),
    Refuse(String),
}

#[derive(Default)]
struct Runner {
    steps: usize,
    in_loop: bool,
}

impl Runner {
    /// Runs statements to the end of their scope.
    fn run(&mut self, statements: &[&Stmt], mut scope: Scope) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        // The next statement is the last one here.
        let mut rest: Vec<&Stmt> = statements.iter().rev().copied().collect();
        while let Some(statement) = rest.pop() {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err(ChatTemplateError::TooLarge);
            }
            match statement {
                Stmt::Text(text) => nodes.push(Node::Piece(Piece::Literal(text.clone()))),
                Stmt::Output(expr) => self.output(expr, &scope, &mut nodes)?,
                Stmt::For(name, list, body) => nodes.push(self.for_each(name, list, body, &scope)?),
                Stmt::Set(name, Expr::Choice(cond, yes, no)) => {
                    let set = |value: &Expr| Stmt::Set(name.clone(), value.clone());
                    let no = no.as_deref().cloned().unwrap_or(Expr::Name(String::new()));
                    let (yes, no) = (set(yes), set(&no));
                    let tail: Vec<&Stmt> = rest.iter().rev().copied().collect();
                    let branch = |first| [&[first][..], &tail].concat();
                    let (yes, no) = (branch(&yes), branch(&no));
                    nodes.extend(self.either(scope.truth(cond)?, &yes, &no, &scope)?);
                    return Ok(nodes);
                }
                Stmt::Set(name, expr) => {
                    let value = eval(expr, &scope.names)?;
                    scope.names.insert(name.clone(), value);
                }
                Stmt::If(cond, yes, no) => {
                    let cond = scope.truth(cond)?;
                    let (yes, no): (Vec<_>, Vec<_>) = (yes.iter().collect(), no.iter().collect());
                    match cond {
                        Cond::Known(known) => {
                            rest.extend(if known { &yes } else { &no }.iter().rev())
                        }
                        // What follows may read other values in each branch.
                        cond if assign(&yes) || assign(&no) => {
                            rest.reverse();
                            let (yes, no) = ([yes, rest.clone()].concat(), [no, rest].concat());
                            nodes.extend(self.either(cond, &yes, &no, &scope)?);
                            return Ok(nodes);
                        }
                        cond => nodes.extend(self.either(cond, &yes, &no, &scope)?),
                    }
                }
            }
        }
        Ok(nodes)
    }

    /// One of two ways on; both, where it is not known which.
    fn either(
        &mut self,
        cond: Cond,
        yes: &[&Stmt],
        no: &[&Stmt],
        scope: &Scope,
    ) -> Result<Vec<Node>> {
        match cond {
            Cond::Known(known) => self.run(if known { yes } else { no }, scope.clone()),
            cond => {
                let yes = self.run(yes, scope.when(&cond, true))?;
                let no = self.run(no, scope.when(&cond, false))?;
                Ok(vec![Node::Branch(cond, yes, no)])
            }
        }
    }

    fn output(&mut self, expr: &Expr, scope: &Scope, nodes: &mut Vec<Node>) -> Result<()> {
        if let Expr::Call(callee, arguments) = expr
            && **callee == Expr::Name("raise_exception".into())
        {
            let why = arguments
                .first()
                .map(|why| eval(why, &scope.names))
                .transpose()?;
            let why = why.and_then(|why| why.as_literal()).unwrap_or_default();
            nodes.push(Node::Refuse(why));
            return Ok(());
        }
        if let Expr::Choice(cond, yes, no) = expr {
            let (yes, no) = (
                Stmt::Output((**yes).clone()),
                no.as_deref().cloned().map(Stmt::Output),
            );
            let no: Vec<&Stmt> = no.iter().collect();
            let cond = scope.truth(cond)?;
            nodes.extend(self.either(cond, &[&yes], &no, scope)?);
            return Ok(());
        }
        match eval(expr, &scope.names)? {
            Value::Undefined => Ok(()),
            Value::Text(pieces) if !pieces.contains(&Piece::FirstRole) => {
                nodes.extend(pieces.into_iter().map(Node::Piece));
                Ok(())
            }
            _ => Err(ChatTemplateError::unsupported(
                "to write a value that is no text",
            )),
        }
    }

    fn for_each(&mut self, name: &str, list: &Expr, body: &[Stmt], scope: &Scope) -> Result<Node> {
        let Value::Messages(skip) = eval(list, &scope.names)? else {
            return Err(ChatTemplateError::unsupported(
                "a loop over anything but messages",
            ));
        };
        if self.in_loop {
            return Err(ChatTemplateError::unsupported("a loop within a loop"));
        }
        let mut scope = scope.clone();
        scope.names.insert(name.to_owned(), Value::Message);
        scope.names.insert("loop".into(), Value::Loop);
        self.in_loop = true;
        let body = self.run(&body.iter().collect::<Vec<_>>(), scope)?;
        self.in_loop = false;
        Ok(Node::Loop(skip, body))
    }
}

/// True where statements give names values that what follows can see; a loop keeps its own.
fn assign(statements: &[&Stmt]) -> bool {
    statements.iter().any(|statement| match statement {
        Stmt::Set(..) => true,
        Stmt::If(_, yes, no) => {
            assign(&yes.iter().collect::<Vec<_>>()) || assign(&no.iter().collect::<Vec<_>>())
        }
        Stmt::Text(_) | Stmt::Output(_) | Stmt::For(..) => false,
    })
}

fn eval(expr: &Expr, env: &Env) -> Result<Value> {
    match expr {
        Expr::Text(text) => Ok(Value::literal(text)),
        Expr::Number(number) => Ok(Value::Number(*number)),
        Expr::Name(name) => Ok(named(name, env)),
        Expr::List(items) => {
            let items = items.iter().map(|item| eval(item, env));
            Ok(Value::List(items.collect::<Result<_>>()?))
        }
        Expr::Member(of, name) => member(eval(of, env)?, name),
        Expr::At(of, 0) => match eval(of, env)? {
            Value::Messages(0) => Ok(Value::FirstMessage),
            _ => Err(ChatTemplateError::unsupported(
                "[0] of anything but messages",
            )),
        },
        Expr::At(_, at) => Err(ChatTemplateError::unsupported(format!("message [{at}]"))),
        Expr::From(of, from) => match (eval(of, env)?, u16::try_from(*from)) {
            (Value::Messages(skip), Ok(from)) if skip.checked_add(from).is_some() => {
                Ok(Value::Messages(skip + from))
            }
            _ => Err(ChatTemplateError::unsupported(format!(
                "[{from}:] of anything but messages"
            ))),
        },
        Expr::Filter(of, name) => filter(eval(of, env)?, name),
        Expr::Call(callee, arguments) => call(callee, arguments, env),
        Expr::Not(of) => Ok(Value::from_cond(eval(of, env)?.truth()?.not())),
        Expr::Binary(operator, left, right) => binary(operator, left, right, env),
        Expr::Is(of, test) => is(&eval(of, env)?, test),
        Expr::Choice(cond, yes, no) => match (eval(cond, env)?.truth()?, no) {
            (Cond::Known(true), _) => eval(yes, env),
            (Cond::Known(false), Some(no)) => eval(no, env),
            (Cond::Known(false), None) => Ok(Value::Undefined),
            _ => Err(ChatTemplateError::unsupported(
                "a choice within an expression",
            )),
        },
    }
}

fn named(name: &str, env: &Env) -> Value {
    match name {
        "true" | "True" => Value::Known(true),
        "false" | "False" => Value::Known(false),
        "none" | "None" => Value::None,
        _ => env.get(name).cloned().unwrap_or(Value::Undefined),
    }
}

fn member(of: Value, name: &str) -> Result<Value> {
    let piece = |piece| Ok(Value::Text(vec![piece]));
    match (of, name) {
        (Value::Message, "role") => piece(Piece::Role),
        (Value::Message, "content") => piece(Piece::Content(Trim::None)),
        (Value::FirstMessage, "role") => piece(Piece::FirstRole),
        (Value::FirstMessage, "content") => piece(Piece::FirstContent(Trim::None)),
        // A message has a role and a content.
        (Value::Message | Value::FirstMessage, _) => Ok(Value::Undefined),
        (Value::Loop, "first") => Ok(Value::When(Cond::Test(Test::First))),
        (Value::Loop, "last") => Ok(Value::When(Cond::Test(Test::Last))),
        (Value::Loop, "index0") => Ok(Value::Index(0)),
        (Value::Loop, "index") => Ok(Value::Index(1)),
        (_, name) => Err(ChatTemplateError::unsupported(format!("the member {name}"))),
    }
}

fn filter(of: Value, name: &str) -> Result<Value> {
    match (of, name) {
        (Value::Text(pieces), "trim") => trimmed(&pieces, Trim::Both),
        (Value::Text(pieces), "capitalize") if pieces == [Piece::Role] => {
            Ok(Value::Text(vec![Piece::RoleCapitalized]))
        }
        (text @ Value::Text(_), "string" | "safe") => Ok(text),
        (_, name) => Err(ChatTemplateError::unsupported(format!("the filter {name}"))),
    }
}

fn call(callee: &Expr, arguments: &[Expr], env: &Env) -> Result<Value> {
    match (callee, arguments) {
        (Expr::Filter(of, name), [fallback]) if name == "default" => match eval(of, env)? {
            Value::Undefined => eval(fallback, env),
            value => Ok(value),
        },
        (Expr::Member(of, name), []) => {
            let how = match &name[..] {
                "strip" => Trim::Both,
                "lstrip" => Trim::Start,
                "rstrip" => Trim::End,
                _ => return Err(ChatTemplateError::unsupported(format!("the method {name}"))),
            };
            match eval(of, env)? {
                Value::Text(pieces) => trimmed(&pieces, how),
                _ => Err(ChatTemplateError::unsupported(format!(
                    "{name} of a value that is no text"
                ))),
            }
        }
        (Expr::Name(name), _) => Err(ChatTemplateError::unsupported(format!(
            "the function {name}"
        ))),
        (Expr::Member(_, name) | Expr::Filter(_, name), _) => Err(ChatTemplateError::unsupported(
            format!("{name} with such arguments"),
        )),
        _ => Err(ChatTemplateError::unsupported("such a call")),
    }
}

/// A text that is known, or that is one message, without white space around it.
fn trimmed(pieces: &[Piece], how: Trim) -> Result<Value> {
    let piece = match pieces {
        [Piece::Content(Trim::None)] => Piece::Content(how),
        [Piece::FirstContent(Trim::None)] => Piece::FirstContent(how),
        [Piece::Content(found) | Piece::FirstContent(found)] if *found == how => pieces[0].clone(),
        [Piece::Literal(text)] => Piece::Literal(
            match how {
                Trim::Both => text.trim(),
                Trim::Start => text.trim_start(),
                Trim::End => text.trim_end(),
                Trim::None => text,
            }
            .to_owned(),
        ),
        _ => {
            return Err(ChatTemplateError::unsupported(
                "to trim a text of several parts",
            ));
        }
    };
    Ok(Value::Text(vec![piece]))
}

fn binary(operator: &str, left: &Expr, right: &Expr, env: &Env) -> Result<Value> {
    let (left, right) = (eval(left, env)?, eval(right, env)?);
    let known = |cond| Ok(Value::from_cond(cond));
    match (operator, left, right) {
        ("or", a, b) => match a.clone().truth()? {
            Cond::Known(true) => Ok(a),
            Cond::Known(false) => Ok(b),
            cond => known(cond.or(b.truth()?)),
        },
        ("and", a, b) => match a.clone().truth()? {
            Cond::Known(true) => Ok(b),
            Cond::Known(false) => Ok(a),
            cond => known(cond.and(b.truth()?)),
        },
        ("==", a, b) => known(a.equals(&b)?),
        ("!=", a, b) => known(a.equals(&b)?.not()),
        ("in", a, Value::List(items)) => known(any_equal(&a, &items)?),
        ("not in", a, Value::List(items)) => known(any_equal(&a, &items)?.not()),
        ("+" | "~", Value::Text(a), Value::Text(b)) => Ok(Value::Text([a, b].concat())),
        ("%", Value::Index(from), Value::Number(2)) => Ok(Value::Parity(from)),
        // Places count from `from`: above it is not the first.
        (">", Value::Index(from), Value::Number(n)) if n == from => {
            known(Cond::Test(Test::First).not())
        }
        (operator, ..) => Err(ChatTemplateError::unsupported(format!(
            "{operator} of such values"
        ))),
    }
}

fn any_equal(value: &Value, items: &[Value]) -> Result<Cond> {
    items.iter().try_fold(Cond::Known(false), |any, item| {
        Ok(any.or(value.equals(item)?))
    })
}

fn is(value: &Value, test: &str) -> Result<Value> {
    let undefined = *value == Value::Undefined;
    let known = match test {
        "defined" => !undefined,
        "undefined" => undefined,
        "none" => *value == Value::None,
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Message | Value::FirstMessage),
        _ => return Err(ChatTemplateError::unsupported(format!("the test {test}"))),
    };
    Ok(Value::Known(known))
}

/// Nodes laid out in a row, with jumps for branches.
#[derive(Default)]
struct Writer {
    ops: Vec<ChatOp>,
    texts: Vec<String>,
    /// The text that is being put together of neighbouring pieces.
    literal: String,
}

impl Writer {
    fn finish(mut self) -> Result<(Vec<ChatOp>, Vec<String>)> {
        self.flush()?;
        Ok((self.ops, self.texts))
    }

    fn nodes(&mut self, nodes: &[Node]) -> Result<()> {
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
