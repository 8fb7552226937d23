//! A grammar that lets a model write nothing but calls, in its own syntax.

use std::fmt::Write;

use fairlead_openai::tools::{ToolChoice, ToolFields};
use serde_json::{Value, json};

use super::{HERMES_CLOSE, HERMES_OPEN, ToolSyntax};

/// The Lark grammar of the calls that `tool_choice` demands; `None` where it demands none. `open_is_token` says that
/// the tokenizer has the opening tag as a special token, which no text stands for.
pub fn demand(syntax: ToolSyntax, fields: &ToolFields, open_is_token: bool) -> Option<String> {
    let tools: Vec<_> = match &fields.choice {
        ToolChoice::None | ToolChoice::Auto => return None,
        ToolChoice::Required => fields.tools.iter().collect(),
        ToolChoice::Named(name) => fields.tools.iter().filter(|tool| tool.name == *name).collect(),
    };
    let quoted = |text: &str| Value::from(text).to_string();
    let (open, close, between) = match syntax {
        ToolSyntax::Hermes if open_is_token => {
            (format!("{HERMES_OPEN} \"\\n\""), format!("\"\\n\" {HERMES_CLOSE}"), "\"\\n\"")
        }
        ToolSyntax::Hermes => {
            (quoted(&format!("{HERMES_OPEN}\n")), quoted(&format!("\n{HERMES_CLOSE}")), "\"\\n\"")
        }
        ToolSyntax::Llama3 => (String::new(), String::new(), "\"; \""),
    };
    // A name that is called for is called once, as OpenAI does it.
    let several = fields.parallel && fields.choice == ToolChoice::Required;
    let more = if several { format!(" ({between} call)*") } else { String::new() };
    let any: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
    let mut grammar = format!("start: call{more}\ncall: {open} ({}) {close}\n", any.join(" | "));
    for (index, tool) in tools.into_iter().enumerate() {
        let head = format!("{{\"name\": {}, \"{}\": ", quoted(&tool.name), syntax.arguments_key());
        let mut schema = tool.parameters.clone().unwrap_or_else(|| json!({}));
        if let Some(schema) = schema.as_object_mut() {
            // Arguments are an object, whatever a schema leaves open. White space is what chat templates write.
            schema.entry("type").or_insert_with(|| Value::from("object"));
            schema.insert(
                "x-guidance".to_owned(),
                json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
            );
        }
        // Writing to a string does not fail.
        let _ = writeln!(
            grammar,
            "call_{index}: {} arguments_{index} \"}}\"\narguments_{index}: %json {schema}",
            quoted(&head)
        );
    }
    Some(grammar)
}

#[cfg(test)]
mod tests {
    use fairlead_openai::ChatCompletionRequest;

    use super::*;

    fn fields(choice: Value) -> ToolFields {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}],
            "tools": [tool("f"), tool("g")], "tool_choice": choice});
        ChatCompletionRequest::from_value(&body).unwrap().prompt.tools
    }

    #[test]
    fn only_what_is_demanded_is_in_the_grammar() {
        assert_eq!(demand(ToolSyntax::Hermes, &fields(json!("auto")), false), None);
        let any = demand(ToolSyntax::Hermes, &fields(json!("required")), false).unwrap();
        assert!(any.starts_with("start: call (\"\\n\" call)*\n"), "{any}");
        assert!(any.contains(r#"call_1: "{\"name\": \"g\", \"arguments\": " arguments_1 "}""#), "{any}");
        let named = json!({"type": "function", "function": {"name": "g"}});
        let one = demand(ToolSyntax::Llama3, &fields(named), false).unwrap();
        assert!(one.starts_with("start: call\n") && one.contains(r#"\"parameters\": "#), "{one}");
        assert!(!one.contains(r#"\"f\""#), "{one}");
    }
}
