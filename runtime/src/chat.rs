//! Writing a conversation as the model was trained to read it.

use bitnet_formats::chat::{ChatOp, ChatTables, ChatTest, Trim};

/// What somebody says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatMessage<'m> {
    /// Who: "system", "user" or "assistant".
    pub role: &'m str,
    /// What.
    pub content: &'m str,
}

/// A conversation that the template does not provide for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChatError<'w> {
    /// There is no message.
    Empty,
    /// The template says why not.
    Refused(&'w str),
}

impl core::fmt::Display for ChatError<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Empty => f.write_str("a conversation needs a message"),
            Self::Refused(why) => write!(f, "the chat template refuses this conversation: {why}"),
        }
    }
}

impl core::error::Error for ChatError<'_> {}

/// Calls `piece` with the text of a conversation, part by part. `generate` opens the assistant's
/// turn at the end. Takes at most as many steps as the template has operations, for each message.
///
/// # Errors
///
/// There is no message, or the template refuses what there is.
pub fn render<'w>(
    template: &ChatTables<'w>,
    messages: &[ChatMessage<'_>],
    generate: bool,
    piece: &mut dyn FnMut(&str),
) -> Result<(), ChatError<'w>> {
    render_parts(template, messages, generate, &mut |part| piece(part.text))
}

/// A part of the text of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChatPart<'p> {
    /// The text.
    pub text: &'p str,
    /// The message whose content this is; `None` for what the template writes around it.
    pub content_of: Option<usize>,
}

/// As [`render`], and says which parts are the contents of messages.
///
/// # Errors
///
/// As [`render`].
pub fn render_parts<'w>(
    template: &ChatTables<'w>,
    messages: &[ChatMessage<'_>],
    generate: bool,
    part: &mut dyn FnMut(ChatPart<'_>),
) -> Result<(), ChatError<'w>> {
    let mut write = |text: &str, content_of| part(ChatPart { text, content_of });
    let first = messages.first().ok_or(ChatError::Empty)?;
    let mut state = State {
        messages,
        generate,
        start: 0,
        at: 0,
        body: 0,
    };
    let mut place = 0;
    while let Some(op) = template.op(place) {
        place += 1;
        let message = messages.get(state.at).unwrap_or(first);
        match op {
            ChatOp::Text(text) => write(template.text(text), None),
            ChatOp::Role => write(message.role, None),
            ChatOp::RoleCapitalized => capitalize(message.role, &mut |text| write(text, None)),
            ChatOp::Content(how) => write(trim(message.content, how), Some(state.at)),
            ChatOp::FirstContent(how) => write(trim(first.content, how), Some(0)),
            ChatOp::Unless { test, expected, to } => {
                if state.holds(template, test) != expected {
                    place = to.into();
                }
            }
            ChatOp::Jump(to) => place = to.into(),
            ChatOp::Loop { skip, to } => {
                state.start = skip.into();
                state.at = state.start;
                state.body = place;
                if state.at >= messages.len() {
                    place = to.into();
                }
            }
            ChatOp::EndLoop => {
                state.at += 1;
                if state.at < messages.len() {
                    place = state.body;
                }
            }
            ChatOp::Refuse(why) => return Err(ChatError::Refused(template.text(why))),
        }
    }
    Ok(())
}

struct State<'m> {
    messages: &'m [ChatMessage<'m>],
    generate: bool,
    /// First message of the loop.
    start: usize,
    /// The message at hand.
    at: usize,
    /// Where the loop's operations begin.
    body: usize,
}

impl State<'_> {
    fn holds(&self, template: &ChatTables<'_>, test: ChatTest) -> bool {
        let role_is = |at: usize, text: u16| {
            let message = self.messages.get(at);
            message.is_some_and(|message| message.role == template.text(text))
        };
        match test {
            ChatTest::Generate => self.generate,
            ChatTest::First => self.at == self.start,
            ChatTest::Last => self.at + 1 == self.messages.len(),
            ChatTest::Even => (self.at - self.start).is_multiple_of(2),
            ChatTest::RoleIs(text) => role_is(self.at, text),
            ChatTest::FirstRoleIs(text) => role_is(0, text),
        }
    }
}

fn trim(text: &str, how: Trim) -> &str {
    match how {
        Trim::None => text,
        Trim::Both => text.trim_matches(is_trimmed),
        Trim::Start => text.trim_start_matches(is_trimmed),
        Trim::End => text.trim_end_matches(is_trimmed),
    }
}

/// What Python strips, for which templates are written: white space and four separators.
fn is_trimmed(c: char) -> bool {
    bitnet_formats::tokenizer::is_space(c) || matches!(c, '\u{1c}'..='\u{1f}')
}

fn capitalize(text: &str, piece: &mut dyn FnMut(&str)) {
    for (at, c) in text.chars().enumerate() {
        let mut buf = [0; 4];
        if at == 0 {
            c.to_uppercase()
                .for_each(|c| piece(c.encode_utf8(&mut buf)));
        } else {
            c.to_lowercase()
                .for_each(|c| piece(c.encode_utf8(&mut buf)));
        }
    }
}
