//! Tools: what a client offers, which of them the model must call, and the calls in messages and answers.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, wrong};
use crate::generation::GenerationOptions;
use crate::json::Json;

/// Most tools in one request.
pub const MAX_TOOLS: usize = 128;
/// Longest name of a function.
const MAX_NAME: usize = 128;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// The function's name.
    pub name: String,
    /// JSON schema of its arguments; absent where the client sent none.
    pub parameters: Option<Value>,
    /// The tool as the client wrote it: what chat templates are given.
    pub raw: Value,
}

/// Whether tools are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Never.
    #[default]
    None,
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a chat request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolFields {
    /// In the client's order; names are distinct.
    pub tools: Vec<Tool>,
    /// Whether they are called.
    pub choice: ToolChoice,
    /// Whether one answer may hold several calls.
    pub parallel: bool,
}

impl ToolFields {
    pub(crate) fn parse(fields: &Fields<'_>, options: &mut GenerationOptions) -> Result<Self, ApiError> {
        for key in ["functions", "function_call"] {
            if fields.get(key).is_some_and(|value| *value != Json::Array(Vec::new())) {
                options.refuse(key, "use tools and tool_choice");
            }
        }
        let items = fields.array("tools")?.unwrap_or_default();
        if items.len() > MAX_TOOLS {
            let message =
                format!("tools has {} entries, but at most {MAX_TOOLS} are allowed; send fewer", items.len());
            return Err(ApiError::invalid("tools", message));
        }
        let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let tool = parse_tool(&Fields::item("tools", index, item)?, item)?;
            if tools.iter().any(|other| other.name == tool.name) {
                let path = format!("tools[{index}].function.name");
                let message =
                    format!("{path} is \"{}\", which another tool has already; rename one", tool.name);
                return Err(ApiError::invalid(path, message));
            }
            tools.push(tool);
        }
        let choice = parse_choice(fields, &tools, options)?;
        Ok(Self { tools, choice, parallel: fields.boolean("parallel_tool_calls")?.unwrap_or(true) })
    }

    /// Whether an answer must be a call.
    pub fn demands_call(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// Whether an answer may hold calls.
    pub fn may_call(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::None
    }
}

fn parse_tool(fields: &Fields<'_>, raw: &Json<'_>) -> Result<Tool, ApiError> {
    match fields.string("type")? {
        Some("function") => {}
        other => {
            let path = fields.name("type");
            let found = other.map_or(Json::Null, Json::from);
            return Err(wrong(path, "\"function\"", &found));
        }
    }
    let Some(function) = fields.object("function")? else {
        let path = fields.name("function");
        return Err(ApiError::invalid(
            path.clone(),
            format!("{path} is required: it describes the function"),
        ));
    };
    let name = function_name(&function)?;
    function.string("description")?;
    function.boolean("strict")?;
    let parameters = match function.get("parameters") {
        None => None,
        Some(schema @ Json::Object(_)) => Some(Value::from(schema)),
        Some(other) => return Err(wrong(function.name("parameters"), "a JSON schema object", other)),
    };
    Ok(Tool { name, parameters, raw: Value::from(raw) })
}

fn function_name(function: &Fields<'_>) -> Result<String, ApiError> {
    let path = function.name("name");
    let expected = "a name of 1 to 128 letters, digits and _ - .";
    let Some(name) = function.string("name")? else {
        return Err(ApiError::invalid(path.clone(), format!("{path} is required: send {expected}")));
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) {
        return Err(wrong(path, expected, &Json::from(name)));
    }
    Ok(name.to_owned())
}

fn parse_choice(
    fields: &Fields<'_>,
    tools: &[Tool],
    options: &mut GenerationOptions,
) -> Result<ToolChoice, ApiError> {
    let expected =
        "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}";
    let choice = match fields.get("tool_choice") {
        None if tools.is_empty() => ToolChoice::None,
        None => ToolChoice::Auto,
        Some(value @ Json::Str(word)) => match &**word {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return Err(wrong("tool_choice", expected, value)),
        },
        Some(value @ Json::Object(_)) => {
            let object = Fields::at(value, "tool_choice".to_owned())?;
            match (object.string("type")?, object.object("function")?) {
                (Some("function"), Some(function)) => ToolChoice::Named(function_name(&function)?),
                (Some("allowed_tools"), _) => {
                    options.refuse("tool_choice", "send only the tools that are allowed");
                    ToolChoice::Auto
                }
                _ => return Err(wrong("tool_choice", expected, value)),
            }
        }
        Some(other) => return Err(wrong("tool_choice", expected, other)),
    };
    match &choice {
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            let message =
                format!("tool_choice.function.name is \"{name}\", which is not among tools; add it there");
            Err(ApiError::invalid("tool_choice.function.name", message))
        }
        ToolChoice::Required if tools.is_empty() => Err(ApiError::invalid(
            "tool_choice",
            "tool_choice is \"required\", but there are no tools; send some, or leave it out",
        )),
        _ => Ok(choice),
    }
}

/// A call of a tool, in an assistant's message or in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call, `call_…`; the tool's answer refers to it.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

/// What a chunk adds to a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Number of the call within the answer.
    pub index: u32,
    /// In the call's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In the call's first chunk: `function`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is new.
    pub function: FunctionCallDelta,
}

/// What a chunk adds to a call's function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCallDelta {
    /// In the call's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Text to append to the arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

/// Reads `tool_calls` of an assistant's message; absent is empty. Arguments must be the text of a JSON object, because
/// that is what chat templates write.
pub(crate) fn parse_calls(fields: &Fields<'_>) -> Result<Vec<ToolCall>, ApiError> {
    let Some(items) = fields.array("tool_calls")? else { return Ok(Vec::new()) };
    let path = fields.name("tool_calls");
    if items.len() > MAX_TOOLS {
        let message =
            format!("{path} has {} calls, but at most {MAX_TOOLS} are allowed; send fewer", items.len());
        return Err(ApiError::invalid(path, message));
    }
    let read = |(index, item): (usize, &Json<'_>)| {
        let call = Fields::at(item, format!("{path}[{index}]"))?;
        if let Some(kind) = call.string("type")?.filter(|kind| *kind != "function") {
            return Err(wrong(call.name("type"), "\"function\"", &Json::from(kind)));
        }
        let Some(function) = call.object("function")? else {
            let path = call.name("function");
            return Err(ApiError::invalid(
                path.clone(),
                format!("{path} is required: it says what is called"),
            ));
        };
        let name = function_name(&function)?;
        let arguments = arguments(&function)?;
        let id = call.string("id")?.unwrap_or_default().to_owned();
        Ok(ToolCall { id, kind: "function".to_owned(), function: FunctionCall { name, arguments } })
    };
    items.iter().enumerate().map(read).collect()
}

fn arguments(function: &Fields<'_>) -> Result<String, ApiError> {
    let path = function.name("arguments");
    let expected = "the text of a JSON object";
    match function.get("arguments") {
        None => Ok("{}".to_owned()),
        Some(Json::Str(text)) if text.trim().is_empty() => Ok("{}".to_owned()),
        Some(Json::Str(text)) => match serde_json::from_str::<Json<'_>>(text) {
            Ok(Json::Object(_)) => Ok(text.to_string()),
            Ok(other) => Err(wrong(path, expected, &other)),
            Err(error) => Err(ApiError::invalid(
                path.clone(),
                format!("{path} must be {expected}, but is not JSON ({error}); correct it there"),
            )),
        },
        Some(object @ Json::Object(_)) => Ok(Value::from(object).to_string()),
        Some(other) => Err(wrong(path, expected, other)),
    }
}
