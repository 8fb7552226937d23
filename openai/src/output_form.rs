//! What form an answer must have: `response_format` (OpenAI) and `structured_outputs` (vLLM).

use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::GenerationOptions;
use crate::json::{Json, json_of};

/// Longest regular expression or grammar, in bytes.
pub const MAX_PATTERN_BYTES: usize = 64 << 10;
/// Most entries of `structured_outputs.choice`.
pub const MAX_CHOICES_OF_TEXT: usize = 1024;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputForm {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema allows.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of this Lark grammar.
    Grammar(String),
}

/// A form and the request's field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedForm {
    /// The form.
    pub form: OutputForm,
    /// Path of the field, for errors.
    pub param: &'static str,
}

/// Reads both fields; at most one of them may ask for something.
pub(crate) fn parse(
    fields: &Fields<'_>,
    options: &mut GenerationOptions,
) -> Result<Option<RequestedForm>, ApiError> {
    for key in ["guided_json", "guided_regex", "guided_choice", "guided_grammar"] {
        if fields.get(key).is_some() {
            options.refuse(key, &format!("use structured_outputs.{}", &key["guided_".len()..]));
        }
    }
    let format = response_format(fields)?;
    let structured = structured_outputs(fields, options)?;
    if format.is_some() && structured.is_some() {
        return Err(ApiError::invalid(
            "structured_outputs",
            "structured_outputs and response_format both say what form the answer has; send one of them",
        ));
    }
    Ok(format.or(structured))
}

fn response_format(fields: &Fields<'_>) -> Result<Option<RequestedForm>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    let kinds = "\"text\", \"json_object\" or \"json_schema\"";
    match format.string("type")? {
        Some("text") => Ok(None),
        Some("json_object") => {
            Ok(Some(RequestedForm { form: OutputForm::JsonObject, param: "response_format" }))
        }
        Some("json_schema") => {
            let required = |key: &str| {
                let path = format!("response_format.{key}");
                ApiError::invalid(
                    path.clone(),
                    format!("{path} is required where response_format.type is \"json_schema\""),
                )
            };
            let Some(wrapper) = format.object("json_schema")? else { return Err(required("json_schema")) };
            if wrapper.string("name")?.is_none_or(str::is_empty) {
                return Err(required("json_schema.name"));
            }
            wrapper.boolean("strict")?;
            wrapper.string("description")?;
            let schema = match wrapper.get("schema") {
                Some(schema @ Json::Object(_)) => Value::from(schema),
                Some(other) => {
                    return Err(wrong("response_format.json_schema.schema", "a JSON schema object", other));
                }
                None => return Err(required("json_schema.schema")),
            };
            let param = "response_format.json_schema.schema";
            Ok(Some(RequestedForm { form: OutputForm::JsonSchema(schema), param }))
        }
        Some(other) => Err(wrong("response_format.type", kinds, &Json::from(other))),
        None => Err(ApiError::invalid(
            "response_format.type",
            format!("response_format.type is required: set it to {kinds}, or leave response_format out"),
        )),
    }
}

fn structured_outputs(
    fields: &Fields<'_>,
    options: &mut GenerationOptions,
) -> Result<Option<RequestedForm>, ApiError> {
    let Some(object) = fields.object("structured_outputs")? else { return Ok(None) };
    for key in ["whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"] {
        if object.get(key).is_some_and(|value| *value != Json::Bool(false)) {
            options.refuse(
                object.name(key),
                "leave it out, or write it into the schema or structured_outputs.grammar",
            );
        }
    }
    let kinds = ["json", "regex", "choice", "grammar", "json_object", "structural_tag"];
    let given: Vec<&str> = kinds
        .into_iter()
        .filter(|kind| object.get(kind).is_some_and(|value| *value != Json::Bool(false)))
        .collect();
    let kind = match given[..] {
        [kind] => kind,
        [] => {
            let message = "structured_outputs must have one of json, regex, choice and grammar; add one, or leave \
                           structured_outputs out";
            return Err(ApiError::invalid("structured_outputs", message));
        }
        [first, second, ..] => {
            let message = format!(
                "structured_outputs has {first} and {second}, but one form is all an answer can have; send one"
            );
            return Err(ApiError::invalid("structured_outputs", message));
        }
    };
    let (form, param) = match kind {
        "json" => (OutputForm::JsonSchema(schema(&object)?), "structured_outputs.json"),
        "regex" => (OutputForm::Regex(pattern(&object, "regex")?), "structured_outputs.regex"),
        "grammar" => (OutputForm::Grammar(pattern(&object, "grammar")?), "structured_outputs.grammar"),
        "choice" => (OutputForm::Choice(choice(&object)?), "structured_outputs.choice"),
        "json_object" => {
            object.boolean("json_object")?;
            (OutputForm::JsonObject, "structured_outputs.json_object")
        }
        _ => {
            options.refuse("structured_outputs.structural_tag", "use structured_outputs.grammar");
            return Ok(None);
        }
    };
    Ok(Some(RequestedForm { form, param }))
}

/// A schema, or its text, as vLLM takes it.
fn schema(object: &Fields<'_>) -> Result<Value, ApiError> {
    let path = "structured_outputs.json";
    let expected = "a JSON schema, as an object or as its text";
    match object.get("json") {
        Some(schema @ Json::Object(_)) => Ok(Value::from(schema)),
        Some(Json::Str(text)) => match serde_json::from_str(text) {
            Ok(schema @ Value::Object(_)) => Ok(schema),
            Ok(other) => Err(wrong(path, expected, &json_of(&other))),
            Err(error) => {
                Err(ApiError::invalid(path, format!("{path} is not JSON ({error}); correct it there")))
            }
        },
        other => Err(wrong(path, expected, other.unwrap_or(&Json::Null))),
    }
}

fn pattern(object: &Fields<'_>, key: &str) -> Result<String, ApiError> {
    let path = object.name(key);
    match object.string(key)? {
        Some(text) if !text.is_empty() && text.len() <= MAX_PATTERN_BYTES => Ok(text.to_owned()),
        Some("") | None => {
            Err(ApiError::invalid(path.clone(), format!("{path} is empty; write one, or leave it out")))
        }
        Some(text) => {
            let message = format!(
                "{path} has {} bytes, but at most {MAX_PATTERN_BYTES} are allowed; shorten it",
                text.len()
            );
            Err(ApiError::invalid(path, message))
        }
    }
}

fn choice(object: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let path = object.name("choice");
    let items = object.array("choice")?.unwrap_or_default();
    if items.is_empty() || items.len() > MAX_CHOICES_OF_TEXT {
        let message = format!(
            "{path} must have 1 to {MAX_CHOICES_OF_TEXT} strings, but has {}; change their number",
            items.len()
        );
        return Err(ApiError::invalid(path, message));
    }
    items
        .iter()
        .enumerate()
        .map(|(index, item)| match item {
            Json::Str(text) if !text.is_empty() => Ok(text.to_string()),
            other => Err(wrong(format!("{path}[{index}]"), "a non-empty string", other)),
        })
        .collect()
}
