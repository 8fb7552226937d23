//! What the grammar compiler says about a JSON schema, in words that a client can do something with.
//!
//! Its own words name switches that clients do not have.

/// The problem in our words where it is a known one, or else in the compiler's.
pub fn explain(problem: String) -> String {
    if problem.contains("coerce_one_of") {
        return "a oneOf is supported only where its options exclude one another; use anyOf, or give each option a type, or a \
                required property with a const, that the others do not have"
            .to_owned();
    }
    if problem.contains("'referencing' feature") {
        let target = between(&problem, "ref '", "'").unwrap_or("this one");
        return format!(
            "$ref \"{target}\" is not supported: it must point into the schema itself; put the definition under #/$defs and \
             refer to it as #/$defs/NAME"
        );
    }
    if let Some(keys) = between(&problem, "Unimplemented keys: [", "]") {
        let keys = keys.replace('"', "");
        return format!("these keywords are not supported: {keys}; leave them out");
    }
    if let Some((_, format)) = problem.split_once("Unknown format: ") {
        let format = format.lines().next().unwrap_or_default();
        return format!("the format \"{format}\" is not supported; leave it out, or use pattern");
    }
    problem
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

#[cfg(test)]
mod tests {
    use fairlead_engine::grammar::{GrammarCompiler, GrammarError, GrammarSource, VocabularyToken};
    use serde_json::{Value, json};

    use super::*;

    /// What the compiler says about a schema, explained.
    fn explained(schema: Value) -> String {
        let mut tokens: Vec<_> = (0..=255_u8).map(|byte| VocabularyToken::Text(vec![byte])).collect();
        tokens.push(VocabularyToken::Special("<|end|>".to_owned()));
        let compiler = GrammarCompiler::new(&tokens, &[256]).unwrap();
        match compiler.compile(&GrammarSource::JsonSchema(schema), "schema") {
            Err(GrammarError::Invalid { problem, .. }) => explain(problem),
            Err(error) => error.to_string(),
            Ok(_) => "it compiles".to_owned(),
        }
    }

    #[test]
    fn problems_have_a_remedy_and_no_word_of_the_compilers() {
        let number = json!({"type": "integer"});
        for (schema, words) in [
            (json!({"oneOf": [{"type": "number"}, number]}), "use anyOf"),
            (json!({"$ref": "https://example.com/s"}), "$ref \"https://example.com/s\""),
            (json!({"$ref": "https://example.com/s"}), "#/$defs"),
            (json!({"type": "object", "properties": {"a": {"$ref": "#anchor"}}}), "#/$defs"),
            (
                json!({"type": "array", "uniqueItems": true, "contains": number}),
                "contains, uniqueItems; leave",
            ),
            (json!({"not": number}), "not; leave them out"),
            (json!({"type": "string", "format": "isbn"}), "the format \"isbn\""),
        ] {
            let found = explained(schema.clone());
            assert!(found.contains(words), "{schema}: {found}");
            for leak in ["coerce", "feature", "Unimplemented", "Enable"] {
                assert!(!found.contains(leak), "{schema}: {found}");
            }
        }
        assert_eq!(explain("something else".to_owned()), "something else");
    }

    #[test]
    fn what_the_documentation_says_of_schemas_is_so() {
        let known = [
            "not",
            "if",
            "then",
            "else",
            "dependentRequired",
            "dependentSchemas",
            "contains",
            "minContains",
            "maxContains",
            "uniqueItems",
            "propertyNames",
            "unevaluatedItems",
            "unevaluatedProperties",
        ];
        for keyword in known {
            let found = explained(json!({"type": "object", "properties": {}, keyword: {}}));
            assert!(found.contains(&format!("not supported: {keyword};")), "{keyword}: {found}");
        }
        let formats =
            ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
        for format in formats {
            let schema = json!({"type": "string", "format": format});
            assert_eq!(explained(schema), "it compiles", "{format}");
        }
        for schema in [
            json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
            json!({"oneOf": [
                {"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]},
                {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"]},
            ]}),
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "null"}}}),
            json!({"type": "string", "pattern": "^a+$"}),
            json!({"type": "string", "format": "date-time"}),
            json!({"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "minItems": 1}),
            json!({"title": "t", "examples": [1], "default": 1, "x-own": 1, "type": "integer"}),
        ] {
            assert_eq!(explained(schema.clone()), "it compiles", "{schema}");
        }
    }
}
