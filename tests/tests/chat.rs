//! Compiled chat templates against a template engine, and against renderings by other programs.

use std::path::Path;

use bitnet_converter::chat::{Chat, ChatTemplateError};
use bitnet_formats::chat::ChatTables;
use bitnet_runtime::chat::{ChatError, ChatMessage, render};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value as Jinja;
use minijinja::{Environment, Error, ErrorKind, context};

/// Templates of public checkpoints, by family.
const TEMPLATES: [(&str, &str); 10] = [
    (
        "bitnet-2b-4t",
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
    ),
    (
        "llama-3",
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    (
        "chatml",
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "qwen-2",
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "qwen-2.5",
        "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {{- tools | tojson }}\n{%- else %}\n    {%- if messages[0]['role'] == 'system' %}\n        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\" and not message.tool_calls) %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- elif message.role == \"assistant\" %}\n        {{- '<|im_start|>' + message.role }}\n        {%- if message.content %}\n            {{- '\\n' + message.content }}\n        {%- endif %}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    ),
    (
        "falcon-3",
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n' + message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
    ),
    (
        "alternating",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    (
        "zephyr",
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    ),
    (
        "layout",
        "{# a comment #}\n  {% for m in messages -%}\n   {{ m.role }}:  {{- m.content | trim }}\n  {%+ if loop.first %} first{% endif %}\n {%- if loop.index > 1 and not loop.last or m.role in ['system', \"user\"] %} ~{% else %} -{% endif %}\n\t{% endfor %}\nend {{ 'x' if add_generation_prompt else 'y' }} {{ missing | default('z') }}{{ missing }}\n\n",
    ),
    (
        "choices",
        "{% for message in messages %}{% set name = 'U' if message.role == 'user' else 'A' %}{% if loop.index0 % 2 == 1 %}{% set name = name ~ '!' %}{% endif %}{{ name + message.content.lstrip() }}{{ eos_token if loop.last }}{% endfor %}",
    ),
];

const NAMES: [(&str, &str); 2] = [("bos_token", "<|begin_of_text|>"), ("eos_token", "</s>")];

fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
    engine.set_syntax(syntax.expect("the syntax of Jinja"));
    engine.add_function("raise_exception", |why: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, why))
    });
    engine.set_unknown_method_callback(|_, value, method, _| {
        let text = value.as_str().unwrap_or("");
        match method {
            "strip" => Ok(Jinja::from(text.trim())),
            "lstrip" => Ok(Jinja::from(text.trim_start())),
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    });
    engine
}

fn reference(
    template: &str,
    messages: &[ChatMessage<'_>],
    generate: bool,
) -> Result<String, String> {
    let messages: Vec<_> = messages
        .iter()
        .map(|m| context! { role => m.role, content => m.content })
        .collect();
    let context = context! {
        messages, add_generation_prompt => generate, bos_token => NAMES[0].1, eos_token => NAMES[1].1,
        tools => Option::<String>::None,
    };
    engine()
        .render_str(template, context)
        .map_err(|e| e.to_string())
}

fn ours(section: &[u8], messages: &[ChatMessage<'_>], generate: bool) -> Result<String, String> {
    let mut text = String::new();
    let chat = ChatTables::open(section).unwrap();
    match render(&chat, messages, generate, &mut |piece| text.push_str(piece)) {
        Ok(()) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
}

/// Every order of roles up to four messages, contents with white space around them.
fn conversations() -> Vec<Vec<ChatMessage<'static>>> {
    const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];
    const CONTENTS: [&str; 5] = [
        " Be brief.\n",
        "What is\u{a0}2+2?",
        "",
        "\n\t4 <|eot_id|> {{ x }} \r\n",
        "ü🦀 ",
    ];
    let mut all: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..4 {
        let longer = |c: &Vec<usize>| {
            (0..ROLES.len())
                .map(|r| [&c[..], &[r]].concat())
                .collect::<Vec<_>>()
        };
        let more: Vec<_> = all.iter().flat_map(longer).collect();
        all.extend(more);
    }
    all.sort();
    all.dedup();
    let message = |at: usize, role: usize| ChatMessage {
        role: ROLES[role],
        content: CONTENTS[(at * 3 + role) % CONTENTS.len()],
    };
    let conversation = |roles: &Vec<usize>| {
        roles
            .iter()
            .enumerate()
            .map(|(at, r)| message(at, *r))
            .collect()
    };
    all.iter()
        .filter(|roles| !roles.is_empty())
        .map(conversation)
        .collect()
}

#[test]
fn compiled_templates_write_what_the_engine_writes() {
    let conversations = conversations();
    assert_eq!(conversations.len(), 4 + 16 + 64 + 256);
    for (name, template) in TEMPLATES {
        let chat = Chat::compile(template, &NAMES).unwrap_or_else(|e| panic!("{name}: {e}"));
        let section = chat.encode().unwrap();
        let mut refused = 0;
        for messages in &conversations {
            for generate in [false, true] {
                let (expected, found) = (
                    reference(template, messages, generate),
                    ours(&section, messages, generate),
                );
                match (expected, found) {
                    (Ok(expected), Ok(found)) => assert_eq!(found, expected, "{name} {messages:?}"),
                    (Err(_), Err(_)) => refused += 1,
                    (expected, found) => panic!("{name} {messages:?}: {expected:?} {found:?}"),
                }
            }
        }
        assert_eq!(refused > 0, name == "alternating", "{name}: {refused}");
        println!(
            "{name:<14} {:>3} operations, {:>5} bytes",
            chat.ops.len(),
            section.len()
        );
        assert!(section.len() < 2500, "{name}");
    }
}

/// Renderings that other programs made.
#[test]
fn renderings_of_other_programs_are_met() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama3_tokenizer/vectors.json");
    let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut seen = 0;
    for (name, case) in vectors["chat"].as_object().unwrap() {
        let family = if name.starts_with("llama3.") {
            "llama-3"
        } else {
            "bitnet-2b-4t"
        };
        let template = TEMPLATES
            .iter()
            .find(|(name, _)| *name == family)
            .unwrap()
            .1;
        let section = Chat::compile(template, &NAMES).unwrap().encode().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let messages: Vec<(String, String)> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| (text(&m["role"]), text(&m["content"])))
            .collect();
        let messages: Vec<_> = messages
            .iter()
            .map(|(role, content)| ChatMessage { role, content })
            .collect();
        let generate = name.ends_with(".gen");
        assert_eq!(
            ours(&section, &messages, generate),
            Ok(text(&case["rendered"])),
            "{name}"
        );
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let cases = [
        (
            "{{ messages | tojson }}",
            "the filter tojson is not supported",
        ),
        (
            "{{ strftime_now('%d') }}",
            "the function strftime_now is not supported",
        ),
        (
            "{% macro x() %}{% endmacro %}",
            "line 1: the tag macro is not supported",
        ),
        (
            "{% set ns = namespace(a=1) %}",
            "line 1: = is not supported here",
        ),
        (
            "{% for m in messages %}{% if m.content %}x{% endif %}{% endfor %}",
            "a condition on the text of a message is not supported",
        ),
        (
            "{% for m in messages %}{% if m.content == 'x' %}x{% endif %}{% endfor %}",
            "a comparison with the text of a message is not supported",
        ),
        (
            "{% for m in messages %}{% for n in messages %}{% endfor %}{% endfor %}",
            "a loop within a loop is not supported",
        ),
        (
            "{% for m in [1, 2] %}{% endfor %}",
            "a loop over anything but messages is not supported",
        ),
        ("{{ messages[1].content }}", "message [1] is not supported"),
        (
            "{% for m in messages %}{{ loop.length }}{% endfor %}",
            "the member length is not supported",
        ),
        (
            "{% for m in messages %}{% if loop.index0 == 2 %}{% endif %}{% endfor %}",
            "a condition on a place in the conversation other than the first is not supported",
        ),
        (
            "{% for m in messages %}{{ (m.role + m.content) | trim }}{% endfor %}",
            "to trim a text of several parts is not supported",
        ),
        ("a\n{% if x", "line 2: a tag is not closed"),
        ("{% if x %}", "line 1: if is not closed"),
        ("{% endif %}", "line 1: endif closes nothing"),
        ("{{ 'a }}", "line 1: a text is not closed"),
        ("{{ a b }}", "line 1: b is not supported here"),
        ("{{ a + }}", "line 1: an expression ends too early"),
    ];
    for (template, expected) in cases {
        let error = Chat::compile(template, &NAMES).unwrap_err();
        assert_eq!(error.to_string(), expected, "{template}");
    }
}

/// Branches that double what follows them, and brackets without end.
#[test]
fn templates_that_would_grow_without_end_are_refused() {
    let doubling =
        "{% if (messages[0].role == 'a') != add_generation_prompt %}{% set x = 'y' %}{% endif %}"
            .repeat(40);
    let deep = format!("{{{{ {} }}}}", "(".repeat(50_000));
    let nested = "{% if x %}".repeat(5_000);
    let chained = format!("{{% if x %}}{}", "{% elif x %}".repeat(5_000));
    let negated = format!("{{{{ {} x }}}}", "not ".repeat(15_000));
    let long = "x".repeat(70_000);
    for template in [doubling, deep, nested, chained, negated, long] {
        assert_eq!(
            Chat::compile(&template, &NAMES),
            Err(ChatTemplateError::TooLarge)
        );
    }
}

#[test]
fn no_message_is_an_error() {
    let section = Chat::compile("{{ 'x' }}", &[]).unwrap().encode().unwrap();
    let chat = ChatTables::open(&section).unwrap();
    assert_eq!(render(&chat, &[], true, &mut |_| ()), Err(ChatError::Empty));
}
