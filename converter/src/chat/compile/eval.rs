//! Expressions, as far as they can be worked out.

use bitnet_formats::chat::Trim;

use super::cond::{Cond, Piece, Test};
use super::value::Value;
use super::{Env, Result};
use crate::chat::ChatTemplateError;
use crate::chat::parse::Expr;

pub(super) fn eval(expr: &Expr, env: &Env) -> Result<Value> {
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
