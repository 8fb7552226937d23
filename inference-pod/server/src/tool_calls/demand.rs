//! A grammar that holds a model to calls in its own syntax, or to calls or an answer of a given form.

use std::fmt::Write;

use fairlead_openai::OutputForm;
use fairlead_openai::tools::{Tool, ToolChoice, ToolFields};
use serde_json::{Value, json};

use super::{HERMES_CLOSE, HERMES_OPEN, ToolSyntax};

/// White space between two tokens of an answer's JSON: enough to indent, too little for a model that has lost its way to fill
/// its answer with.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// The Lark grammar of the calls that `tool_choice` demands; `None` where it demands none. `open_is_token` says that
/// the tokenizer has the opening tag as a special token, which no text stands for.
pub fn demand(syntax: ToolSyntax, fields: &ToolFields, open_is_token: bool) -> Option<String> {
    // A name that is called for is called once, as OpenAI does it.
    let (tools, several): (Vec<_>, bool) = match &fields.choice {
        ToolChoice::None | ToolChoice::Auto => return None,
        ToolChoice::Required => (fields.tools.iter().collect(), fields.parallel),
        ToolChoice::Named(name) => (fields.tools.iter().filter(|tool| tool.name == *name).collect(), false),
    };
    Some(format!("start: calls\n{}", calls(syntax, &tools, several, open_is_token)))
}

/// The Lark grammar of an answer that has a form or is calls, as the model likes; `None` for forms that cannot stand beside
/// calls.
pub fn form_or_calls(
    syntax: ToolSyntax,
    fields: &ToolFields,
    open_is_token: bool,
    form: &OutputForm,
) -> Option<String> {
    let form = match form {
        OutputForm::JsonObject => format!("%json {}", answer_schema(&json!({"type": "object"}))),
        OutputForm::JsonSchema(schema) => format!("%json {}", answer_schema(schema)),
        OutputForm::Choice(choices) => {
            choices.iter().map(|choice| quoted(choice)).collect::<Vec<_>>().join(" | ")
        }
        OutputForm::Regex(_) | OutputForm::Grammar(_) => return None,
    };
    let tools: Vec<_> = fields.tools.iter().collect();
    Some(format!(
        "start: form | calls\nform: {form}\n{}",
        calls(syntax, &tools, fields.parallel, open_is_token)
    ))
}

/// A schema with what keeps its white space within bounds.
fn answer_schema(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITESPACE}));
    }
    schema
}

/// The rule `calls`, one call or several, and what it is made of.
fn calls(syntax: ToolSyntax, tools: &[&Tool], several: bool, open_is_token: bool) -> String {
    let (open, close, between) = match syntax {
        ToolSyntax::Hermes if open_is_token => {
            (format!("{HERMES_OPEN} \"\\n\""), format!("\"\\n\" {HERMES_CLOSE}"), "\"\\n\"")
        }
        ToolSyntax::Hermes => {
            (quoted(&format!("{HERMES_OPEN}\n")), quoted(&format!("\n{HERMES_CLOSE}")), "\"\\n\"")
        }
        ToolSyntax::Llama3 => (String::new(), String::new(), "\"; \""),
    };
    let more = if several { format!(" ({between} call)*") } else { String::new() };
    let any: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
    let mut grammar = format!("calls: call{more}\ncall: {open} ({}) {close}\n", any.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
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
    grammar
}

/// A string of Lark, which is written as JSON's are.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use fairlead_engine::grammar::{GrammarCompiler, GrammarSource, VocabularyToken};
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
        assert!(any.starts_with("start: calls\ncalls: call (\"\\n\" call)*\n"), "{any}");
        assert!(any.contains(r#"call_1: "{\"name\": \"g\", \"arguments\": " arguments_1 "}""#), "{any}");
        let named = json!({"type": "function", "function": {"name": "g"}});
        let one = demand(ToolSyntax::Llama3, &fields(named), false).unwrap();
        assert!(
            one.starts_with("start: calls\ncalls: call\n") && one.contains(r#"\"parameters\": "#),
            "{one}"
        );
        assert!(!one.contains(r#"\"f\""#), "{one}");
    }
    #[test]
    fn a_form_stands_beside_calls_where_it_can() {
        let fields = fields(json!("auto"));
        let grammar = |form: OutputForm| form_or_calls(ToolSyntax::Hermes, &fields, false, &form);
        let choice = grammar(OutputForm::Choice(vec!["a\"b".to_owned(), "c".to_owned()])).unwrap();
        assert!(choice.starts_with("start: form | calls\nform: \"a\\\"b\" | \"c\"\ncalls: call"), "{choice}");
        assert!(grammar(OutputForm::JsonObject).unwrap().contains("form: %json {\"type\":\"object\""));
        assert_eq!(grammar(OutputForm::Regex("a".to_owned())), None);
        assert_eq!(grammar(OutputForm::Grammar("start: \"a\"".to_owned())), None);
    }
    #[test]
    fn either_grammar_compiles_in_every_syntax() {
        let mut tokens: Vec<_> = (0..=255_u8).map(|byte| VocabularyToken::Text(vec![byte])).collect();
        tokens.extend(
            ["<|end|>", HERMES_OPEN, HERMES_CLOSE].map(|tag| VocabularyToken::Special(tag.to_owned())),
        );
        let compiler = GrammarCompiler::new(&tokens, &[256]).unwrap();
        let schema = json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object"}}});
        let forms = [
            OutputForm::JsonObject,
            OutputForm::JsonSchema(schema),
            OutputForm::Choice(vec!["a".to_owned()]),
        ];
        for (syntax, is_token) in
            [(ToolSyntax::Hermes, false), (ToolSyntax::Hermes, true), (ToolSyntax::Llama3, false)]
        {
            let free = fields(json!("auto"));
            let mut grammars: Vec<_> =
                forms.iter().map(|form| form_or_calls(syntax, &free, is_token, form).unwrap()).collect();
            grammars.extend(demand(syntax, &fields(json!("required")), is_token));
            for grammar in grammars {
                let compiled = compiler.compile(&GrammarSource::Lark(grammar.clone()), "tools");
                assert!(compiled.is_ok(), "{:?}: {grammar}", compiled.err());
            }
        }
    }
}
