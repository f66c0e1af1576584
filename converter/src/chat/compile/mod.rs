//! The program run on a conversation that is not known yet.
//!
//! Values that depend on the conversation stay symbols: a text is a row of pieces, a condition a
//! tree of tests. Where a branch depends on such a condition and gives names new values, what
//! follows is compiled once for each branch.

mod cond;
mod eval;
mod value;
mod writer;

use std::collections::HashMap;

use bitnet_formats::chat::ChatOp;

use super::parse::{Expr, Stmt};
use super::{ChatTemplateError, Names};
use cond::{Cond, Piece, Test};
use eval::eval;
use value::Value;
use writer::Writer;

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
