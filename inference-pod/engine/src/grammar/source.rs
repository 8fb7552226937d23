//! What a client may ask for, and what is refused before it is even read.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

/// Most bytes of a JSON schema, written compactly.
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Most bytes of a regular expression, of a grammar, or of all choices together.
pub const MAX_TEXT_BYTES: usize = 64 << 10;
/// Most choices in a list.
pub const MAX_CHOICES: usize = 4096;
/// How deep values in a schema, and brackets in a grammar, may nest: llguidance reads both recursively.
pub const MAX_DEPTH: usize = 100;

/// White space between two tokens of JSON: enough to indent, too little for a model that has lost its way to fill its answer
/// with.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSource {
    /// JSON that a schema accepts. Keys of an object come in the schema's order.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// Text that a regular expression matches from its beginning to its end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text that a grammar accepts: llguidance's variant of Lark's language, which begins with the rule `start`.
    Lark(String),
}

impl GrammarSource {
    /// Says what is wrong with a source that is not to be read at all.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::JsonObject => Ok(()),
            Self::JsonSchema(schema) => check_schema(schema),
            Self::Regex(text) => check_length(text.len(), "the expression"),
            Self::Choice(choices) => {
                if choices.is_empty() || choices.len() > MAX_CHOICES {
                    return Err(format!("has {} choices; send 1 to {MAX_CHOICES}", choices.len()));
                }
                if choices.iter().any(String::is_empty) {
                    return Err("has an empty choice; leave it out".to_owned());
                }
                check_length(choices.iter().map(String::len).sum(), "all choices together")
            }
            Self::Lark(text) => {
                check_length(text.len(), "the grammar")?;
                if bracket_depth(text) > MAX_DEPTH {
                    return Err(format!(
                        "nests brackets more than {MAX_DEPTH} deep; give parts of it rules of their own"
                    ));
                }
                Ok(())
            }
        }
    }

    /// The same for the same source, and for no other.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        match self {
            Self::JsonSchema(schema) => {
                part(b"schema");
                part(schema.to_string().as_bytes());
            }
            Self::JsonObject => part(b"object"),
            Self::Regex(text) => {
                part(b"regex");
                part(text.as_bytes());
            }
            Self::Choice(choices) => {
                part(b"choice");
                choices.iter().for_each(|choice| part(choice.as_bytes()));
            }
            Self::Lark(text) => {
                part(b"lark");
                part(text.as_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// The source in llguidance's words.
    pub(super) fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::JsonSchema(schema) => json_grammar(schema.clone()),
            Self::JsonObject => json_grammar(json!({"type": "object"})),
            Self::Regex(text) => TopLevelGrammar::from_regex(without_anchors(text)),
            Self::Choice(choices) => {
                let quoted: Vec<String> =
                    choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
            }
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        }
    }
}

/// A schema's own wishes about the compiler (`x-guidance`) are replaced: some of them give up that the answer is valid.
fn json_grammar(mut schema: Value) -> TopLevelGrammar {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITESPACE}));
    }
    TopLevelGrammar::from_json_schema(schema)
}

fn check_length(bytes: usize, what: &str) -> Result<(), String> {
    if bytes > MAX_TEXT_BYTES {
        return Err(format!(
            "{what} must not be longer than {MAX_TEXT_BYTES} bytes, not {bytes}; shorten it"
        ));
    }
    Ok(())
}

fn check_schema(schema: &Value) -> Result<(), String> {
    if !schema.is_object() && schema != &Value::Bool(true) {
        return Err("must be a JSON schema: an object".to_owned());
    }
    // The depth first: writing a deep value is recursive too.
    if depth_exceeds(schema, MAX_DEPTH) {
        return Err(format!("nests more than {MAX_DEPTH} deep; move parts of it to $defs"));
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        return Err(format!("has {bytes} bytes, more than {MAX_SCHEMA_BYTES}; shorten it"));
    }
    Ok(())
}

fn depth_exceeds(value: &Value, left: usize) -> bool {
    let deeper = |value: &Value| left == 0 || depth_exceeds(value, left - 1);
    match value {
        Value::Array(values) => values.iter().any(deeper),
        Value::Object(values) => values.values().any(deeper),
        _ => false,
    }
}

/// How deep round, square and curly brackets nest, those in quoted strings left out.
fn bracket_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            // A string ends with its line, so that a stray quote does not hide what follows.
            b'\n' => quoted = false,
            _ if quoted => {}
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// An expression matches the whole answer anyway; anchors at its ends, which many write out of habit, say nothing more.
fn without_anchors(expression: &str) -> &str {
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    match expression.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0 => rest,
        _ => expression,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_that_are_too_much_are_refused_unread() {
        let mut deep = json!(1);
        for _ in 0..=MAX_DEPTH {
            deep = json!([deep]);
        }
        for (source, problem) in [
            (GrammarSource::JsonSchema(json!(3)), "an object"),
            (GrammarSource::JsonSchema(json!({"enum": deep})), "deep"),
            (GrammarSource::JsonSchema(json!({"const": "x".repeat(MAX_SCHEMA_BYTES)})), "bytes"),
            (GrammarSource::Regex("x".repeat(MAX_TEXT_BYTES + 1)), "longer"),
            (GrammarSource::Choice(Vec::new()), "0 choices"),
            (GrammarSource::Choice(vec!["a".to_owned(); MAX_CHOICES + 1]), "choices"),
            (GrammarSource::Choice(vec![String::new()]), "empty"),
            (GrammarSource::Lark(format!("start: {}", "(".repeat(MAX_DEPTH + 1))), "deep"),
        ] {
            assert!(source.check().unwrap_err().contains(problem), "{source:?}");
        }
        assert!(GrammarSource::Lark(format!("start: \"{}\"", "(".repeat(1000))).check().is_ok());
    }

    #[test]
    fn digests_tell_sources_apart() {
        let choice = |texts: &[&str]| {
            GrammarSource::Choice(texts.iter().map(|text| (*text).to_owned()).collect()).digest()
        };
        assert_ne!(choice(&["ab", "c"]), choice(&["a", "bc"]));
        assert_ne!(
            GrammarSource::Regex("a".to_owned()).digest(),
            GrammarSource::Lark("a".to_owned()).digest()
        );
        assert_eq!(GrammarSource::JsonObject.digest(), GrammarSource::JsonObject.digest());
    }

    #[test]
    fn anchors_at_the_ends_are_taken_off() {
        for (written, meant) in [("^a$", "a"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("a^b", "a^b"), ("", "")]
        {
            assert_eq!(without_anchors(written), meant);
        }
    }
}
