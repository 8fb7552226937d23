//! Random answers under grammars: whatever the masks allow is valid, and ends.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::OnceLock;

use fairlead_engine::grammar::{GrammarCompiler, GrammarError, GrammarSource, VocabularyToken};
use fairlead_engine::sampling::TokenMask;
use fairlead_engine::sequence::Constraint;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Numbers of the end-of-sequence tokens.
const ENDS: [u32; 2] = [256, 257];

/// All bytes, two ends, and some longer tokens, as a byte-level tokenizer has them.
fn tokens() -> Vec<VocabularyToken> {
    let mut tokens: Vec<VocabularyToken> = (0..=255).map(|byte| VocabularyToken::Text(vec![byte])).collect();
    tokens.push(VocabularyToken::Special("</s>".to_owned()));
    tokens.push(VocabularyToken::Text(b"<|eot|>".to_vec()));
    tokens.push(VocabularyToken::Special("<|tool|>".to_owned()));
    tokens.push(VocabularyToken::Unused);
    for text in
        ["{\"", "\":", "\",", "\"}", "name", "true", "false", "null", "  ", "12", "ab", "é", "{\"a\":", "]}"]
    {
        tokens.push(VocabularyToken::Text(text.as_bytes().to_vec()));
    }
    tokens
}

fn compiler() -> &'static GrammarCompiler {
    static COMPILER: OnceLock<GrammarCompiler> = OnceLock::new();
    COMPILER.get_or_init(|| GrammarCompiler::new(&tokens(), &ENDS).unwrap())
}

fn compile(source: &GrammarSource) -> Box<dyn Constraint> {
    compiler().compile(source, "f").unwrap_or_else(|error| panic!("{source:?}: {error}"))
}

fn allowed(mask: &TokenMask) -> Vec<u32> {
    (0..tokens().len() as u32 + 64).filter(|&token| mask.allows(token)).collect()
}

fn text(answer: &[u32]) -> String {
    let tokens = tokens();
    let bytes = answer.iter().flat_map(|&token| match &tokens[token as usize] {
        VocabularyToken::Text(bytes) => bytes.clone(),
        other => panic!("{other:?} is no text"),
    });
    String::from_utf8(bytes.collect()).unwrap()
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// One answer, by chance; after some tokens it ends where it may and prefers what ends strings, objects and lists.
fn walk(mut constraint: Box<dyn Constraint>, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let mut answer = Vec::new();
    loop {
        let mask = constraint.mask().unwrap();
        let choices = allowed(&mask);
        assert!(!choices.is_empty());
        assert!(choices.iter().all(|&token| (token as usize) < tokens().len() && token != 259));
        let is_end = ENDS.iter().all(|end| choices.contains(end));
        assert_eq!(is_end, ENDS.iter().any(|end| choices.contains(end)), "all ends or none");
        if is_end
            && (answer.len() > 30 || choices.len() == ENDS.len() || random(&mut state).is_multiple_of(4))
        {
            constraint.accept(ENDS[0]).unwrap();
            assert_eq!(allowed(&constraint.mask().unwrap()), ENDS);
            return answer;
        }
        let rest: Vec<u32> = choices.iter().copied().filter(|token| !ENDS.contains(token)).collect();
        let closing = rest.iter().copied().filter(|&token| token < 256 && b"\"}]0".contains(&(token as u8)));
        let closing: Vec<u32> = closing.collect();
        let pool = if answer.len() > 30 && !closing.is_empty() { &closing } else { &rest };
        let token = pool[random(&mut state) as usize % pool.len()];
        assert_eq!(constraint.valid_prefix(&[token]), 1);
        constraint.accept(token).unwrap();
        answer.push(token);
        assert!(answer.len() < 5000, "never ends: {:?}", text(&answer[..200]));
    }
}

/// Whether a value is what the part of JSON schema that these tests use says.
fn fits(value: &Value, schema: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return true };
    schema.iter().all(|(keyword, rule)| match keyword.as_str() {
        "type" => {
            let is = |name: &str| match name {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
                "number" => value.is_number(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                other => panic!("{other}"),
            };
            match rule {
                Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
                name => is(name.as_str().unwrap()),
            }
        }
        "enum" => rule.as_array().unwrap().contains(value),
        "const" => rule == value,
        "anyOf" => rule.as_array().unwrap().iter().any(|schema| fits(value, schema)),
        "properties" => value.as_object().is_none_or(|object| {
            object.iter().all(|(key, value)| rule.get(key).is_none_or(|schema| fits(value, schema)))
        }),
        "required" => value.as_object().is_none_or(|object| {
            rule.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap()))
        }),
        "additionalProperties" => {
            rule != &json!(false)
                || value
                    .as_object()
                    .is_none_or(|object| object.keys().all(|key| schema["properties"].get(key).is_some()))
        }
        "items" => value.as_array().is_none_or(|values| values.iter().all(|value| fits(value, rule))),
        "minItems" => value.as_array().is_none_or(|values| values.len() as u64 >= rule.as_u64().unwrap()),
        "maxItems" => value.as_array().is_none_or(|values| values.len() as u64 <= rule.as_u64().unwrap()),
        "minLength" => {
            value.as_str().is_none_or(|text| text.chars().count() as u64 >= rule.as_u64().unwrap())
        }
        "maxLength" => {
            value.as_str().is_none_or(|text| text.chars().count() as u64 <= rule.as_u64().unwrap())
        }
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
        "$defs" | "$ref" | "pattern" | "format" | "title" | "description" => true,
        other => panic!("{other}"),
    })
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
               "required": ["name", "age"], "additionalProperties": false}),
        json!({"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 120}, "minItems": 1, "maxItems": 4}),
        json!({"enum": ["a", "ab", 3, null, {"x": [1]}]}),
        json!({"anyOf": [{"type": "boolean"}, {"type": "string", "minLength": 2, "maxLength": 5}]}),
        json!({"type": ["number", "null"], "minimum": -10, "maximum": 10.5}),
        json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"const": "é\"\\\n"}},
               "required": ["b"], "additionalProperties": false}}, "required": ["a"], "additionalProperties": false}),
        json!({"$defs": {"node": {"type": "object", "properties": {"name": {"type": "string"}, "next": {"anyOf": [
               {"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["name", "next"], "additionalProperties": false}},
               "$ref": "#/$defs/node"}),
        json!({"type": "string", "pattern": "^[a-f]{2,3}$"}),
        json!({}),
        json!(true),
    ]
}

fn choices() -> Vec<String> {
    ["yes", "yes, \"sir\"", "no\\x41\n", "é"].map(str::to_owned).to_vec()
}

fn sources() -> Vec<GrammarSource> {
    let mut sources: Vec<GrammarSource> = schemas().into_iter().map(GrammarSource::JsonSchema).collect();
    sources.push(GrammarSource::JsonObject);
    sources.push(GrammarSource::Regex(r"^(ab|12)+/[0-9]{2}\$$".to_owned()));
    sources.push(GrammarSource::Choice(choices()));
    sources.push(GrammarSource::Lark(
        "start: term (\"+\" term)*\nterm: /[0-9]+/ | \"(\" start \")\"".to_owned(),
    ));
    sources
}

/// Whether a text is what its source asks for.
fn is_valid(source: &GrammarSource, text: &str) -> bool {
    // 77e1633 is JSON, but no number that serde_json knows.
    let json = |fits: &dyn Fn(&Value) -> bool| match serde_json::from_str(text) {
        Ok(value) => fits(&value),
        Err(error) => error.to_string().contains("number out of range"),
    };
    match source {
        GrammarSource::JsonSchema(schema) => json(&|value| fits(value, schema)),
        GrammarSource::JsonObject => json(&Value::is_object),
        GrammarSource::Regex(_) => {
            let (words, number) = text.split_once('/').unwrap();
            let is_word = |pair: &[u8]| pair == b"ab" || pair == b"12";
            !words.is_empty()
                && words.as_bytes().chunks(2).all(is_word)
                && number.len() == 3
                && number.ends_with('$')
                && number[..2].bytes().all(|byte| byte.is_ascii_digit())
        }
        GrammarSource::Choice(choices) => choices.iter().any(|choice| choice == text),
        GrammarSource::Lark(_) => {
            let mut depth = 0_i32;
            let closed = text.bytes().all(|byte| {
                depth += i32::from(byte == b'(') - i32::from(byte == b')');
                depth >= 0 && b"()+0123456789".contains(&byte)
            });
            closed && depth == 0 && !text.contains("++") && !text.contains("()")
        }
    }
}

#[test]
fn whatever_the_masks_allow_is_valid() {
    for source in sources() {
        for seed in 0..25 {
            let answer = text(&walk(compile(&source), seed));
            assert!(is_valid(&source, &answer), "{source:?} allowed {answer:?}");
        }
    }
}

#[test]
fn special_tokens_come_only_where_a_grammar_names_them() {
    let mut named = compile(&GrammarSource::Lark("start: <|tool|> \"a\"".to_owned()));
    assert_eq!(allowed(&named.mask().unwrap()), [258]);
    named.accept(258).unwrap();
    named.accept(u32::from(b'a')).unwrap();
    assert_eq!(allowed(&named.mask().unwrap()), ENDS);
    let mut any = compile(&GrammarSource::Regex("(?s:.*)".to_owned()));
    assert!(!any.mask().unwrap().allows(258) && any.mask().unwrap().allows(ENDS[1]));
    assert!(any.accept(258).is_err() || any.accept(259).is_err());
}

#[test]
fn after_an_end_only_ends_come() {
    let mut constraint = compile(&GrammarSource::Choice(vec!["ab".to_owned(), "abab".to_owned()]));
    let (a, b) = (u32::from(b'a'), u32::from(b'b'));
    assert_eq!(constraint.valid_prefix(&[a, b, ENDS[0], ENDS[1], a]), 4);
    assert_eq!(constraint.valid_prefix(&[a, ENDS[0]]), 1);
    assert_eq!(constraint.valid_prefix(&[a, 259, b]), 1);
    assert_eq!(constraint.valid_prefix(&[a, 9999]), 1);
    constraint.accept(a).unwrap();
    let mut ended = constraint.fork();
    for token in [b, ENDS[1], ENDS[0]] {
        ended.accept(token).unwrap();
    }
    assert!(ended.accept(a).is_err());
    assert_eq!(constraint.valid_prefix(&[b, a, b, ENDS[0]]), 4, "the fork's end is the fork's");
    for token in [b, a, b] {
        constraint.accept(token).unwrap();
    }
    assert_eq!(allowed(&constraint.mask().unwrap()), ENDS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Going on and going aside leave a constraint as if only the way it took had been taken.
    #[test]
    fn a_constraint_is_its_way(which in 0..14_usize, steps in prop::collection::vec((0..5_u8, any::<u64>()), 1..40)) {
        let source = &sources()[which];
        let mut constraint = compile(source);
        let mut way: Vec<u32> = Vec::new();
        for (what, number) in steps {
            match what {
                0 | 1 => {
                    let mut fork = constraint.fork();
                    prop_assert_eq!(fork.mask().unwrap(), constraint.mask().unwrap());
                    // As guesses do that nobody checks in the end.
                    for step in 0..=number % 4 {
                        let aside = allowed(&fork.mask().unwrap());
                        fork.accept(aside[(number >> step) as usize % aside.len()]).unwrap();
                    }
                    if number.is_multiple_of(2) {
                        drop(fork);
                    }
                }
                _ => {
                    let choices = allowed(&constraint.mask().unwrap());
                    let token = choices[number as usize % choices.len()];
                    constraint.accept(token).unwrap();
                    way.push(token);
                }
            }
            let mut fresh = compile(source);
            prop_assert_eq!(fresh.valid_prefix(&way), way.len());
            for &token in &way {
                fresh.accept(token).unwrap();
            }
            prop_assert_eq!(fresh.mask().unwrap(), constraint.mask().unwrap());
        }
    }
}

#[test]
fn the_same_source_is_compiled_once_and_answers_do_not_meet() {
    let source = GrammarSource::Regex("[0-9]{3}".to_owned());
    let (mut first, mut second) = (compile(&source), compile(&source));
    first.accept(u32::from(b'1')).unwrap();
    first.accept(u32::from(b'2')).unwrap();
    second.accept(u32::from(b'7')).unwrap();
    assert!(first.mask().unwrap().allows(u32::from(b'3')));
    assert_eq!(second.valid_prefix(&[u32::from(b'7'), u32::from(b'7'), ENDS[0]]), 3);
}

fn problem(source: GrammarSource) -> String {
    match compiler().compile(&source, "structured_outputs.x") {
        Err(GrammarError::Invalid { field, problem }) => {
            assert_eq!(field, "structured_outputs.x");
            assert!(problem.len() < 2000, "{problem}");
            assert!(!problem.contains("backtrace"), "{problem}");
            problem
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_made_sense_of_is_an_error_that_says_so() {
    for (source, part) in [
        (GrammarSource::Regex("(".to_owned()), "regex"),
        (GrammarSource::Regex("a{2,1}".to_owned()), "regex"),
        (GrammarSource::JsonSchema(json!({"type": "objekt"})), "objekt"),
        (GrammarSource::JsonSchema(json!({"$ref": "#/$defs/gone"})), "gone"),
        (GrammarSource::JsonSchema(json!({"$ref": "https://example.com/schema"})), ""),
        (GrammarSource::JsonSchema(json!({"type": "integer", "minimum": 5, "maximum": 3})), ""),
        (GrammarSource::JsonSchema(json!({"type": "string", "pattern": "("})), ""),
        (
            GrammarSource::JsonSchema(json!({"type": "object", "unevaluatedProperties": 3})),
            "unevaluatedProperties",
        ),
        (GrammarSource::JsonSchema(json!(false)), "object"),
        (GrammarSource::Lark("begin: \"a\"".to_owned()), "start"),
        (GrammarSource::Lark("start: gone".to_owned()), "gone"),
        (GrammarSource::Lark("start: <|nobody|>".to_owned()), "nobody"),
        (GrammarSource::Lark("start: start".to_owned()), ""),
        (GrammarSource::Lark(String::new()), ""),
    ] {
        let text = problem(source);
        assert!(text.to_lowercase().contains(&part.to_lowercase()) && !text.is_empty(), "{text}");
    }
}

/// Each of these would take exponential time or memory, or a deep stack, if it were simply done.
#[test]
fn hostile_sources_end_in_bounded_time_and_memory() {
    let nested = |open: &str, middle: &str, close: &str, times: usize| {
        format!("{}{middle}{}", open.repeat(times), close.repeat(times))
    };
    let mut references = serde_json::Map::new();
    for index in 0..2000 {
        references.insert(format!("n{index}"), json!({"$ref": format!("#/$defs/n{}", index + 1)}));
    }
    references.insert("n2000".to_owned(), json!({"type": "null"}));
    let doubling: serde_json::Map<String, Value> = (0..30)
        .map(|index| {
            let next = json!({"$ref": format!("#/$defs/n{}", index + 1)});
            (format!("n{index}"), json!({"allOf": [next.clone(), next]}))
        })
        .chain([("n30".to_owned(), json!({"type": "object", "properties": {"a": {"type": "string"}}}))])
        .collect();
    let mut deep = json!({"type": "null"});
    for _ in 0..45 {
        deep = json!({"type": "array", "items": deep});
    }
    let sources = [
        GrammarSource::Regex("(a{1000}){1000}".to_owned()),
        GrammarSource::Regex("((a{100}){100}){100}".to_owned()),
        GrammarSource::Regex("(.*a){60}.{60}".to_owned()),
        GrammarSource::Regex(format!("(a|b)*a{}", "(a|b)".repeat(40))),
        GrammarSource::Regex(nested("(", "a", ")", 20_000)),
        GrammarSource::Regex(nested("(a|", "b", ")*", 10_000)),
        GrammarSource::Regex(r"\p{L}{1000}".to_owned()),
        GrammarSource::JsonSchema(json!({"$defs": references, "$ref": "#/$defs/n0"})),
        GrammarSource::JsonSchema(json!({"$defs": doubling, "$ref": "#/$defs/n0"})),
        GrammarSource::JsonSchema(json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        GrammarSource::JsonSchema(json!({"enum": (0..20_000).map(|n| n.to_string()).collect::<Vec<_>>()})),
        GrammarSource::JsonSchema(
            json!({"type": "string", "minLength": 1_000_000, "maxLength": 1_000_000_000}),
        ),
        GrammarSource::JsonSchema(
            json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "null"}}),
        ),
        GrammarSource::JsonSchema(json!({"type": "number", "multipleOf": 0.000_000_000_1, "minimum": 1e300})),
        GrammarSource::JsonSchema(deep),
        GrammarSource::Lark(nested("start: ", "", "a ", 20_000)),
        GrammarSource::Lark("start: a{100000}\na: b{100000}\nb: \"x\"".to_owned()),
        GrammarSource::Lark("start: start start | start start start | \"x\"".to_owned()),
        GrammarSource::Lark(format!("start: {} \"x\"", "~".repeat(30_000))),
        GrammarSource::Lark(format!("start: %json {}", nested("{\"items\":", "{}", "}", 90))),
    ];
    for source in sources {
        let begun = std::time::Instant::now();
        let outcome = compiler().compile(&source, "f");
        let shown: String = format!("{source:?}").chars().take(60).collect();
        println!(
            "{:?} {shown}: {:?}",
            begun.elapsed(),
            outcome.as_ref().map(|_| ()).map_err(|e| e.to_string())
        );
        if let Ok(mut constraint) = outcome {
            // It may fail further on, but not end the process.
            for _ in 0..50 {
                let Ok(mask) = constraint.mask() else { break };
                let Some(&token) = allowed(&mask).first() else { break };
                if constraint.accept(token).is_err() {
                    break;
                }
            }
        }
    }
}
