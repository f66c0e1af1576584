//! Words to statements and expressions.

use super::ChatTemplateError;
use super::lexer::{Part, Token, parts};

/// Most brackets and branches within each other.
const MOST_DEPTH: usize = 64;
/// Most words of an expression.
const MOST_WORDS: usize = 512;

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stmt {
    Text(String),
    Output(Expr),
    /// A condition and two bodies; `elif` is an `if` in the second.
    If(Expr, Vec<Stmt>, Vec<Stmt>),
    For(String, Expr, Vec<Stmt>),
    Set(String, Expr),
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Text(String),
    Number(i64),
    Name(String),
    List(Vec<Expr>),
    /// `a.b` and `a['b']`
    Member(Box<Expr>, String),
    /// `a[0]`
    At(Box<Expr>, i64),
    /// `a[1:]`
    From(Box<Expr>, i64),
    Filter(Box<Expr>, String),
    Call(Box<Expr>, Vec<Expr>),
    Not(Box<Expr>),
    Binary(&'static str, Box<Expr>, Box<Expr>),
    /// `a is defined`
    Is(Box<Expr>, String),
    /// `a if b else c`
    Choice(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// The statements of a template.
pub(super) fn program(template: &str) -> Result<Vec<Stmt>, ChatTemplateError> {
    let parts = parts(template)?;
    let mut reader = Blocks {
        parts: &parts,
        depth: 0,
    };
    let (body, end) = reader.body()?;
    match end {
        None => Ok(body),
        Some((name, _, line)) => Err(syntax(line, format!("{name} closes nothing"))),
    }
}

fn syntax(line: usize, reason: impl Into<String>) -> ChatTemplateError {
    let reason = reason.into();
    ChatTemplateError::Syntax { line, reason }
}

/// A tag that ends a body: its name, the words after it, its line.
type End<'p> = (&'p str, &'p [Token], usize);

struct Blocks<'p> {
    parts: &'p [Part],
    depth: usize,
}

impl<'p> Blocks<'p> {
    /// Statements up to a tag that ends or divides the block they are in.
    fn body(&mut self) -> Result<(Vec<Stmt>, Option<End<'p>>), ChatTemplateError> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(ChatTemplateError::TooLarge);
        }
        let mut body = Vec::new();
        while let Some((part, rest)) = self.parts.split_first() {
            self.parts = rest;
            match part {
                Part::Text(text) => body.push(Stmt::Text(text.clone())),
                Part::Output(tokens, line) => body.push(Stmt::Output(expression(tokens, *line)?)),
                Part::Block(tokens, line) => match self.block(tokens, *line)? {
                    Ok(statement) => body.push(statement),
                    Err(end) => {
                        self.depth -= 1;
                        return Ok((body, Some(end)));
                    }
                },
            }
        }
        self.depth -= 1;
        Ok((body, None))
    }

    /// A statement, or the end of the body it stands in.
    fn block(
        &mut self,
        tokens: &'p [Token],
        line: usize,
    ) -> Result<Result<Stmt, End<'p>>, ChatTemplateError> {
        let Some((Token::Name(name), words)) = tokens.split_first() else {
            return Err(syntax(line, "a tag begins with a name"));
        };
        match &name[..] {
            "if" => self.branches(words, line).map(Ok),
            "for" => self.for_each(words, line).map(Ok),
            "set" => set(words, line).map(Ok),
            "elif" | "else" | "endif" | "endfor" => Ok(Err((name, words, line))),
            _ => Err(syntax(line, format!("the tag {name} is not supported"))),
        }
    }

    fn branches(&mut self, words: &'p [Token], line: usize) -> Result<Stmt, ChatTemplateError> {
        let condition = expression(words, line)?;
        let unclosed = || syntax(line, "if is not closed");
        let (body, end) = self.body()?;
        let otherwise = match end {
            Some(("endif", [], _)) => Vec::new(),
            Some(("elif", words, line)) => {
                self.depth += 1;
                let nested = self.branches(words, line)?;
                self.depth -= 1;
                vec![nested]
            }
            Some(("else", [], _)) => match self.body()? {
                (otherwise, Some(("endif", [], _))) => otherwise,
                _ => return Err(unclosed()),
            },
            _ => return Err(unclosed()),
        };
        Ok(Stmt::If(condition, body, otherwise))
    }

    fn for_each(&mut self, words: &'p [Token], line: usize) -> Result<Stmt, ChatTemplateError> {
        let [Token::Name(variable), Token::Name(word), list @ ..] = words else {
            return Err(syntax(line, "for needs one variable"));
        };
        if word != "in" {
            return Err(syntax(line, "for needs one variable"));
        }
        let list = expression(list, line)?;
        match self.body()? {
            (body, Some(("endfor", [], _))) => Ok(Stmt::For(variable.clone(), list, body)),
            _ => Err(syntax(line, "for is not closed")),
        }
    }
}

fn set(words: &[Token], line: usize) -> Result<Stmt, ChatTemplateError> {
    match words {
        [Token::Name(name), Token::Mark("="), value @ ..] => {
            Ok(Stmt::Set(name.clone(), expression(value, line)?))
        }
        _ => Err(syntax(line, "set gives one name a value")),
    }
}

fn expression(tokens: &[Token], line: usize) -> Result<Expr, ChatTemplateError> {
    if tokens.len() > MOST_WORDS {
        return Err(ChatTemplateError::TooLarge);
    }
    let mut reader = Words {
        tokens,
        line,
        depth: 0,
    };
    let expr = reader.choice()?;
    match reader.tokens.first() {
        None => Ok(expr),
        Some(token) => Err(reader.unexpected(Some(token))),
    }
}

/// Operators that bind looser first; those of a row bind alike.
const LEVELS: [&[&str]; 5] = [
    &["or"],
    &["and"],
    &["==", "!=", "<", ">", "<=", ">=", "in", "not in"],
    &["+", "-", "~"],
    &["%", "*", "//"],
];
/// Place of comparisons in [`LEVELS`]; `not` stands between `and` and them.
const COMPARISON: usize = 2;

struct Words<'p> {
    tokens: &'p [Token],
    line: usize,
    depth: usize,
}

impl<'p> Words<'p> {
    fn choice(&mut self) -> Result<Expr, ChatTemplateError> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(ChatTemplateError::TooLarge);
        }
        let value = self.binary(0)?;
        let expr = if self.takes_name("if") {
            let condition = self.binary(0)?;
            let otherwise = match self.takes_name("else") {
                true => Some(Box::new(self.choice()?)),
                false => None,
            };
            Expr::Choice(Box::new(condition), Box::new(value), otherwise)
        } else {
            value
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn binary(&mut self, level: usize) -> Result<Expr, ChatTemplateError> {
        if level == COMPARISON && self.takes_name("not") {
            return Ok(Expr::Not(Box::new(self.binary(level)?)));
        }
        let Some(operators) = LEVELS.get(level) else {
            return self.postfix();
        };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = self.takes_operator(operators) {
            let right = self.binary(level + 1)?;
            left = Expr::Binary(operator, Box::new(left), Box::new(right));
        }
        Ok(left)
    }

    fn takes_operator(&mut self, operators: &[&'static str]) -> Option<&'static str> {
        let find = |word: &str| operators.iter().copied().find(|op| *op == word);
        let (found, n) = match self.tokens {
            [Token::Name(a), Token::Name(b), ..] if a == "not" && b == "in" => (find("not in"), 2),
            [Token::Name(name), ..] => (find(name), 1),
            [Token::Mark(mark), ..] => (find(mark), 1),
            _ => (None, 0),
        };
        if found.is_some() {
            self.tokens = &self.tokens[n..];
        }
        found
    }

    fn postfix(&mut self) -> Result<Expr, ChatTemplateError> {
        let mut expr = self.primary()?;
        loop {
            expr = match self.tokens {
                [Token::Mark("."), Token::Name(name), rest @ ..] => {
                    self.tokens = rest;
                    Expr::Member(Box::new(expr), name.clone())
                }
                [Token::Mark("["), rest @ ..] => {
                    self.tokens = rest;
                    self.index(expr)?
                }
                [Token::Mark("("), rest @ ..] => {
                    self.tokens = rest;
                    Expr::Call(Box::new(expr), self.list(")")?)
                }
                [Token::Mark("|"), Token::Name(name), rest @ ..] => {
                    self.tokens = rest;
                    Expr::Filter(Box::new(expr), name.clone())
                }
                [Token::Name(is), rest @ ..] if is == "is" => {
                    self.tokens = rest;
                    let negated = self.takes_name("not");
                    let test = Expr::Is(Box::new(expr), self.name()?);
                    if negated {
                        Expr::Not(Box::new(test))
                    } else {
                        test
                    }
                }
                _ => return Ok(expr),
            };
        }
    }

    fn index(&mut self, of: Expr) -> Result<Expr, ChatTemplateError> {
        let of = Box::new(of);
        let (expr, rest) = match self.tokens {
            [Token::Text(key), Token::Mark("]"), rest @ ..] => {
                (Expr::Member(of, key.clone()), rest)
            }
            [Token::Number(at), Token::Mark("]"), rest @ ..] => (Expr::At(of, *at), rest),
            [
                Token::Number(at),
                Token::Mark(":"),
                Token::Mark("]"),
                rest @ ..,
            ] => (Expr::From(of, *at), rest),
            _ => return Err(self.unexpected(self.tokens.first())),
        };
        self.tokens = rest;
        Ok(expr)
    }

    fn primary(&mut self) -> Result<Expr, ChatTemplateError> {
        let Some((token, rest)) = self.tokens.split_first() else {
            return Err(self.unexpected(None));
        };
        self.tokens = rest;
        match token {
            Token::Text(text) => Ok(Expr::Text(text.clone())),
            Token::Number(number) => Ok(Expr::Number(*number)),
            Token::Name(name) => Ok(Expr::Name(name.clone())),
            Token::Mark("(") => {
                let inner = self.choice()?;
                self.takes(")")?;
                Ok(inner)
            }
            Token::Mark("[") => Ok(Expr::List(self.list("]")?)),
            Token::Mark(_) => Err(self.unexpected(Some(token))),
        }
    }

    /// Expressions with commas between, and the closing bracket.
    fn list(&mut self, close: &'static str) -> Result<Vec<Expr>, ChatTemplateError> {
        let mut items = Vec::new();
        while self.tokens.first() != Some(&Token::Mark(close)) {
            items.push(self.choice()?);
            if self.tokens.first() != Some(&Token::Mark(",")) {
                break;
            }
            self.tokens = &self.tokens[1..];
        }
        self.takes(close)?;
        Ok(items)
    }

    fn takes(&mut self, mark: &'static str) -> Result<(), ChatTemplateError> {
        match self.tokens.split_first() {
            Some((Token::Mark(found), rest)) if *found == mark => {
                self.tokens = rest;
                Ok(())
            }
            found => Err(self.unexpected(found.map(|(token, _)| token))),
        }
    }

    fn takes_name(&mut self, name: &str) -> bool {
        match self.tokens.split_first() {
            Some((Token::Name(found), rest)) if found == name => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn name(&mut self) -> Result<String, ChatTemplateError> {
        match self.tokens.split_first() {
            Some((Token::Name(name), rest)) => {
                self.tokens = rest;
                Ok(name.clone())
            }
            found => Err(self.unexpected(found.map(|(token, _)| token))),
        }
    }

    fn unexpected(&self, token: Option<&Token>) -> ChatTemplateError {
        let what = match token {
            Some(Token::Name(name)) => format!("{name} is not supported here"),
            Some(Token::Text(text)) => format!("the text {text:?} is not supported here"),
            Some(Token::Number(number)) => format!("{number} is not supported here"),
            Some(Token::Mark(mark)) => format!("{mark} is not supported here"),
            None => "an expression ends too early".to_owned(),
        };
        syntax(self.line, what)
    }
}
