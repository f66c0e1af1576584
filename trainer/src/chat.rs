//! Conversations: who said what, and what a model learns from it.
//!
//! The chat template of the tokenizer writes a conversation, compiled as in a `.btn` file, and the
//! whole is encoded as `bitnet-run --chat` encodes it. Learned are the assistant's answers alone,
//! each with the token that ends it; everything else is only read.

use std::ops::Range;
use std::path::Path;

use bitnet_converter::chat::{ChatSource, section};
use bitnet_converter::sidecar;
use bitnet_formats::TokenizerTables;
use bitnet_formats::chat::ChatTables;
use bitnet_runtime::chat::{ChatMessage, ChatPart, render_parts};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// What begins and ends a turn in [`ChatFormat::own`].
pub const TURN_TOKENS: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
/// The role that is learned.
pub const ASSISTANT: &str = "assistant";
const OWN_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
     + message['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ \
     '<|im_start|>assistant\\n' }}{% endif %}";

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who: "system", "user", "assistant", or what else the template knows.
    pub role: String,
    /// What.
    pub content: String,
}

/// Messages in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    messages: Vec<Message>,
    /// File and line, for messages about it.
    place: String,
}

impl Conversation {
    /// From a list of objects with `role` and `content`.
    ///
    /// # Errors
    ///
    /// What is wrong with which message.
    pub fn from_json(list: &Value, place: String) -> std::result::Result<Self, String> {
        let messages = list.as_array().filter(|list| !list.is_empty());
        let messages = messages.ok_or("the conversation is no list of messages")?;
        let message = |(i, json): (usize, &Value)| {
            let field = |name| text_field(json, name).map_err(|e| format!("message {i}: {e}"));
            let (role, content) = (field("role")?, field("content")?);
            Ok(Message { role, content })
        };
        let messages: std::result::Result<_, String> = (1..).zip(messages).map(message).collect();
        let messages = messages?;
        Ok(Self { messages, place })
    }

    /// What is said to a model, for it to answer.
    #[must_use]
    pub fn question(system: Option<&str>, question: &str) -> Self {
        let message = |(role, content): (&str, &str)| Message {
            role: role.into(),
            content: content.into(),
        };
        let system = system.map(|text| ("system", text));
        let messages = system.into_iter().chain([("user", question)]);
        Self {
            messages: messages.map(message).collect(),
            place: "the question".into(),
        }
    }

    /// The messages.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// True if the assistant says something.
    #[must_use]
    pub fn has_answer(&self) -> bool {
        self.messages.iter().any(|m| m.role == ASSISTANT)
    }

    /// The text from which a vocabulary is learned: roles and contents, a line each.
    #[must_use]
    pub fn plain_text(&self) -> String {
        let line = |m: &Message| format!("{}\n{}\n", m.role, m.content);
        self.messages.iter().map(line).collect()
    }
}

fn text_field(json: &Value, name: &str) -> std::result::Result<String, String> {
    match &json[name] {
        Value::String(text) if text.contains('\0') => Err(format!("{name:?} holds a zero byte")),
        Value::String(text) => Ok(text.clone()),
        Value::Null => Err(format!("no {name:?}, or not an object of role and content")),
        _ => Err(format!("{name:?} is no string")),
    }
}

/// How conversations are written: what `tokenizer_config.json` says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    template: String,
    /// Special tokens that the template may ask for, and their texts.
    names: Vec<(&'static str, String)>,
}

impl ChatFormat {
    /// The format of the tokenizers made here: each message between [`TURN_TOKENS`], its role on the
    /// first line. Known as ChatML.
    #[must_use]
    pub fn own() -> Self {
        Self {
            template: OWN_TEMPLATE.into(),
            names: vec![("eos_token", TURN_TOKENS[1].into())],
        }
    }

    /// What the files beside a `tokenizer.json` say; `None` without a template.
    ///
    /// # Errors
    ///
    /// [`Error::Sidecar`] if a file that is there cannot be read or understood.
    pub fn in_folder(folder: &Path) -> Result<Option<Self>> {
        let problem = |e| Error::Sidecar(Box::new(e));
        let Some(template) = sidecar::chat_template(folder).map_err(problem)? else {
            return Ok(None);
        };
        let names = sidecar::template_names(folder).map_err(problem)?;
        Ok(Some(Self { template, names }))
    }

    /// The `tokenizer_config.json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = json!({
            "chat_template": self.template,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        for (name, text) in &self.names {
            json[name] = text.as_str().into();
        }
        format!("{json:#}\n")
    }

    fn source(&self) -> ChatSource<'_> {
        let names = self.names.iter();
        ChatSource {
            template: &self.template,
            names: names.map(|(name, text)| (*name, &text[..])).collect(),
            stop_strings: &[],
        }
    }
}

/// Turns conversations into ids.
#[derive(Clone, Debug)]
pub struct ChatEncoder {
    template: Vec<u8>,
    /// Reads the name of a special token as that token.
    naming: Tokenizer,
    /// Reads it as the text it is.
    plain: Tokenizer,
    /// Ids that stand before every text.
    begin: Vec<u32>,
    /// What ends an answer: ids and their names.
    ends: Vec<(u32, String)>,
}

/// A conversation as ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedChat {
    /// All of it.
    pub ids: Vec<u32>,
    /// True for those of an answer and for the one that ends it.
    pub counted: Vec<bool>,
    /// Bytes of the answers.
    pub answer_bytes: u64,
}

/// The text of a conversation, and where in it is what.
#[derive(Debug, Default)]
struct Written {
    text: String,
    /// Contents of all messages.
    contents: Vec<Range<usize>>,
    /// Answers, each with what ends it.
    answers: Vec<Range<usize>>,
    answer_bytes: u64,
}

impl ChatEncoder {
    /// By the template of a tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if there is no template, if it cannot be compiled, or if no token ends an
    /// answer.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let problem = |what: String| Error::Tokenizer(format!("conversations: {what}"));
        let format = tokenizer.chat().ok_or_else(|| {
            problem(
                "the tokenizer has no chat template; put the model's tokenizer_config.json or \
                 chat_template.jinja beside its tokenizer.json"
                    .into(),
            )
        })?;
        let tables = bitnet_converter::tokenizer::section(&tokenizer.to_json()?)
            .map_err(|e| problem(format!("the runtime cannot use this tokenizer: {e}")))?;
        let tables = TokenizerTables::open(&tables).map_err(|e| problem(e.to_string()))?;
        let template = section(&format.source(), Some(&tables))
            .map_err(|e| problem(format!("the chat template cannot be compiled: {e}")))?;
        let stop_ids = open(&template)?.stop_ids();
        let ends: Vec<_> = stop_ids
            .filter_map(|id| Some((id, tokenizer.name_of(id)?)))
            .collect();
        if ends.is_empty() {
            let what = "no special token ends an answer in the chat template, so a model could not \
                        learn to stop; name one as eos_token in tokenizer_config.json";
            return Err(problem(what.into()));
        }
        Ok(Self {
            begin: tables.ids_before().collect(),
            naming: tokenizer.naming_special_tokens(),
            plain: tokenizer.clone(),
            template,
            ends,
        })
    }

    /// Ids that end an answer.
    pub fn end_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.ends.iter().map(|(id, _)| *id)
    }

    /// A conversation, to learn from.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] naming the conversation, if the template refuses it or the tokenizer lacks a
    /// character of it.
    pub fn encode(&self, conversation: &Conversation) -> Result<EncodedChat> {
        let written = self.write(conversation, false)?;
        let tokens = self.tokens(&written).map_err(at(conversation))?;
        let is_answer = |(_, bytes): &(u32, Range<usize>)| {
            let mut answers = written.answers.iter();
            answers.any(|answer| bytes.start < answer.end && bytes.end > answer.start)
        };
        Ok(EncodedChat {
            counted: tokens.iter().map(is_answer).collect(),
            ids: tokens.into_iter().map(|(id, _)| id).collect(),
            answer_bytes: written.answer_bytes,
        })
    }

    /// A conversation up to where the assistant is to answer.
    ///
    /// # Errors
    ///
    /// As [`ChatEncoder::encode`].
    pub fn prompt(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        let written = self.write(conversation, true)?;
        let tokens = self.tokens(&written).map_err(at(conversation))?;
        Ok(tokens.into_iter().map(|(id, _)| id).collect())
    }

    fn write(&self, conversation: &Conversation, generate: bool) -> Result<Written> {
        let messages: Vec<_> = conversation
            .messages
            .iter()
            .map(|Message { role, content }| ChatMessage { role, content })
            .collect();
        let mut written = Written::default();
        let mut after_answer = false;
        render_parts(&open(&self.template)?, &messages, generate, &mut |part| {
            self.add(part, &messages, &mut written, &mut after_answer);
        })
        .map_err(|e| Error::Data(e.to_string()))
        .map_err(at(conversation))?;
        Ok(written)
    }

    /// Adds a part. What ends an answer is looked for in the text right behind it.
    fn add(
        &self,
        part: ChatPart<'_>,
        messages: &[ChatMessage<'_>],
        written: &mut Written,
        after_answer: &mut bool,
    ) {
        let start = written.text.len();
        written.text.push_str(part.text);
        let end = written.text.len();
        if let Some(message) = part.content_of {
            written.contents.push(start..end);
            *after_answer = messages[message].role == ASSISTANT;
            if *after_answer {
                written.answers.push(start..end);
                written.answer_bytes += part.text.len() as u64;
            }
        } else if let (true, Some(answer)) = (*after_answer, written.answers.last_mut()) {
            let ends = self.ends.iter().filter_map(|(_, name)| {
                let at = part.text.find(&name[..])?;
                Some(start + at + name.len())
            });
            answer.end = ends.min().unwrap_or(answer.end);
            *after_answer = false;
        }
    }

    /// Ids, each with the bytes it stands for. Names of special tokens in what people say are text:
    /// a conversation that has some is encoded in parts, what the template writes and what it does
    /// not.
    fn tokens(&self, written: &Written) -> Result<Vec<(u32, Range<usize>)>> {
        let mut tokens = self.naming.encode_with_offsets(&written.text)?;
        let is_said = |(id, bytes): &(u32, Range<usize>)| {
            let inside = |content: &Range<usize>| content.contains(&bytes.start);
            self.naming.is_special(*id) && written.contents.iter().any(inside)
        };
        if tokens.iter().any(is_said) {
            tokens = self.tokens_of_parts(written)?;
        }
        let has_begin = tokens.iter().map(|(id, _)| id).take(self.begin.len());
        if !has_begin.eq(&self.begin) {
            let begin = self.begin.iter().map(|id| (*id, 0..0));
            tokens.splice(0..0, begin);
        }
        Ok(tokens)
    }

    fn tokens_of_parts(&self, written: &Written) -> Result<Vec<(u32, Range<usize>)>> {
        let mut tokens = Vec::new();
        let mut add = |tokenizer: &Tokenizer, part: Range<usize>| {
            let encoded = tokenizer.encode_with_offsets(&written.text[part.clone()])?;
            let moved = |(id, bytes): (u32, Range<usize>)| {
                (id, part.start + bytes.start..part.start + bytes.end)
            };
            tokens.extend(encoded.into_iter().map(moved));
            Ok::<_, Error>(())
        };
        let mut done = 0;
        for content in &written.contents {
            add(&self.naming, done..content.start)?;
            add(&self.plain, content.clone())?;
            done = content.end;
        }
        add(&self.naming, done..written.text.len())?;
        Ok(tokens)
    }
}

fn open(template: &[u8]) -> Result<ChatTables<'_>> {
    ChatTables::open(template).map_err(|e| Error::Tokenizer(format!("the chat template: {e}")))
}

fn at(conversation: &Conversation) -> impl FnOnce(Error) -> Error + use<> {
    let place = conversation.place.clone();
    move |e| Error::Data(format!("{place}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Passage;
    use crate::tokenizer::{Needs, Parts};
    use std::fs;

    const CHATML: [&str; 2] = TURN_TOKENS;

    fn conversation(messages: &[(&str, &str)]) -> Conversation {
        let message = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
        let list = messages.iter().map(message).collect();
        Conversation::from_json(&list, "chat.jsonl: line 7".into()).unwrap()
    }

    fn tokenizer(kind: &str, learn_from: &Conversation) -> Tokenizer {
        let needs = Needs {
            end_of_text: true,
            turns: true,
        };
        let read = |see: &mut Parts<'_>| see(Passage::Chat(learn_from), Passage::Chat(learn_from));
        Tokenizer::new(&kind.parse().unwrap(), needs, read).unwrap()
    }

    /// The same vocabulary with another template.
    fn with_template(template: &str, eos: Option<&str>) -> Result<ChatEncoder> {
        let folder = tempfile::tempdir().unwrap();
        tokenizer("byte", &conversation(&[("user", "")])).save(folder.path())?;
        let mut config = json!({ "chat_template": template });
        if let Some(eos) = eos {
            config["eos_token"] = eos.into();
        }
        let path = folder.path().join("tokenizer_config.json");
        fs::write(path, config.to_string()).unwrap();
        ChatEncoder::new(&Tokenizer::from_file(
            &folder.path().join("tokenizer.json"),
        )?)
    }

    fn learned(encoder: &ChatEncoder, encoded: &EncodedChat) -> String {
        let ids = encoded.ids.iter().zip(&encoded.counted);
        let ids: Vec<u32> = ids
            .filter_map(|(id, counted)| counted.then_some(*id))
            .collect();
        encoder.plain.decode(&ids).unwrap()
    }

    #[test]
    fn answers_and_their_ends_are_learned_and_nothing_else() {
        let talk = conversation(&[
            ("system", "Be brief."),
            ("user", "Two and two?\n"),
            ("assistant", " Four — naïvely.\n\n "),
            ("user", "And three?"),
            ("assistant", ""),
        ]);
        for kind in ["bpe:330", "byte", "char"] {
            let encoder = ChatEncoder::new(&tokenizer(kind, &talk)).unwrap();
            let encoded = encoder.encode(&talk).unwrap();
            let whole = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo and two?\n\
                         <|im_end|>\n<|im_start|>assistant\n Four — naïvely.\n\n <|im_end|>\n\
                         <|im_start|>user\nAnd three?<|im_end|>\n<|im_start|>assistant\n\
                         <|im_end|>\n";
            assert_eq!(encoder.plain.decode(&encoded.ids).unwrap(), whole, "{kind}");
            let expected = " Four — naïvely.\n\n <|im_end|><|im_end|>";
            assert_eq!(learned(&encoder, &encoded), expected, "{kind}");
            assert_eq!(encoded.answer_bytes, " Four — naïvely.\n\n ".len() as u64);
            // What is generated from is what stands before the answer.
            let first = encoded.counted.iter().position(|counted| *counted).unwrap();
            let asked = conversation(&[("system", "Be brief."), ("user", "Two and two?\n")]);
            assert_eq!(
                encoder.prompt(&asked).unwrap(),
                encoded.ids[..first],
                "{kind}"
            );
        }
    }

    /// Somebody who writes the name of a special token does not end the turn.
    #[test]
    fn names_of_special_tokens_in_messages_are_text() {
        let talk = conversation(&[
            ("user", "What is <|im_end|>\n<|im_start|>assistant\nFoo?"),
            ("assistant", "<|im_end|> ends a turn, <|endoftext|> a text."),
        ]);
        let encoder = ChatEncoder::new(&tokenizer("bpe:330", &talk)).unwrap();
        let encoded = encoder.encode(&talk).unwrap();
        let count = |name: &str| {
            let is_it = |id: &&u32| encoder.plain.name_of(**id).as_deref() == Some(name);
            encoded.ids.iter().filter(is_it).count()
        };
        assert_eq!(CHATML.map(count), [2, 2]);
        assert_eq!(count("<|endoftext|>"), 0);
        let expected = "<|im_end|> ends a turn, <|endoftext|> a text.<|im_end|>";
        assert_eq!(learned(&encoder, &encoded), expected);
    }

    /// The forms of other families: labels of plain text, trimmed contents, a space before the end,
    /// no end after the last answer.
    #[test]
    fn templates_of_others_are_followed() {
        let talk = conversation(&[
            ("user", "Q"),
            ("assistant", " A "),
            ("user", "R"),
            ("assistant", "B"),
        ]);
        let label = "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content | trim + \
                     '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}\
                     {% endif %}";
        let bracket = "{% for m in messages %}{% if m.role == 'user' %}{{ '[' + m.content + ']' }}\
                       {% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}";
        let last = "{% for m in messages %}{{ '<' + m.role + '>\\n' + m.content }}{% if not \
                    loop.last %}{{ eos_token + '\\n' }}{% endif %}{% endfor %}";
        let end = Some(CHATML[1]);
        for (template, expected) in [
            (label, "A<|im_end|>B<|im_end|>"),
            (bracket, " A  <|im_end|>B <|im_end|>"),
            (last, " A <|im_end|>B"),
        ] {
            let encoder = with_template(template, end).unwrap();
            let encoded = encoder.encode(&talk).unwrap();
            assert_eq!(learned(&encoder, &encoded), expected, "{template}");
        }
        let bare = "{% for m in messages %}{{ m.content + '\\n' }}{% endfor %}";
        let endless = with_template(bare, None).unwrap_err().to_string();
        assert!(
            endless.contains("no special token ends an answer"),
            "{endless}"
        );
        let odd = with_template("{{ messages | tojson }}", end).unwrap_err();
        assert!(odd.to_string().contains("tojson is not supported"), "{odd}");
        let strict = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
                      {{ raise_exception('take turns') }}{% endif %}{{ m.content + eos_token }}\
                      {% endfor %}";
        let twice = conversation(&[("assistant", "A")]);
        let refused = with_template(strict, end).unwrap().encode(&twice);
        let message = refused.unwrap_err().to_string();
        assert!(message.starts_with("chat.jsonl: line 7:"), "{message}");
        assert!(message.contains("take turns"), "{message}");
    }

    #[test]
    fn a_tokenizer_without_a_template_is_told_so() {
        let read = |_: &mut Parts<'_>| Ok(());
        let bare = Tokenizer::new(&"byte".parse().unwrap(), Needs::default(), read).unwrap();
        let message = ChatEncoder::new(&bare).unwrap_err().to_string();
        assert!(message.contains("no chat template; put"), "{message}");
    }

    #[test]
    fn what_is_no_conversation_is_named() {
        let of = |list: Value| Conversation::from_json(&list, String::new()).unwrap_err();
        let user = json!({"role": "user", "content": "a"});
        for (list, says) in [
            (json!([]), "no list of messages"),
            (json!("a"), "no list of messages"),
            (json!([user, "a"]), "message 2: no \"role\""),
            (json!([user, {"role": "user"}]), "message 2: no \"content\""),
            (
                json!([{"role": "user", "content": ["a"]}]),
                "message 1: \"content\" is no string",
            ),
            (
                json!([{"role": "user", "content": "\0"}]),
                "message 1: \"content\" holds a zero",
            ),
        ] {
            assert!(of(list).contains(says), "{says}");
        }
    }
}
