//! What is wrong with a route's rules, field by field. The schema refuses most of it at admission; the operator says the rest in
//! status, a gateway leaves such a rule out, and one that runs by hand refuses the file. Pure, and the same for all three.

use std::collections::BTreeSet;

use regex::bytes::{Regex, RegexBuilder};

use super::super::ModelRouteSpec;
use super::super::cost::Cost;
use super::super::stickiness::{Stickiness, StickyBy};
use super::{Choose, CostRange, HeaderMatch, Rule, RuleMatch, RuleShare, TokenRange};

/// Largest compiled regular expression.
const REGEX_BYTES: usize = 64 * 1024;

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The rule's place in `spec.rules`.
    pub rule: usize,
    /// The field, from `spec` on, and the remedy.
    pub text: String,
}

/// All that is wrong with the rules, in their order.
pub fn problems(spec: &ModelRouteSpec) -> Vec<Problem> {
    let mut names = BTreeSet::new();
    let mut problems = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let at = format!(
            "spec.rules[{}]",
            if rule.name.is_empty() { index.to_string() } else { rule.name.clone() }
        );
        let checked = if names.insert(rule.name.as_str()) {
            check(rule, spec)
        } else {
            Err(format!(".name: two rules are named {}; give each its own name", rule.name))
        };
        if let Err(text) = checked {
            problems.push(Problem { rule: index, text: format!("{at}{text}") });
        }
    }
    problems
}

/// What is wrong with `spec.stickiness`.
pub fn stickiness_problem(stickiness: &Stickiness) -> Option<String> {
    let Stickiness { by, header } = stickiness;
    match (by, header) {
        (StickyBy::Header, None) => Some("is missing; name the header that by: Header goes by".to_owned()),
        (StickyBy::Header, Some(name)) => header_name(name).err(),
        (_, Some(_)) => Some("is for by: Header alone; leave it out, or set by to Header".to_owned()),
        (_, None) => None,
    }
    .map(|text| format!("spec.stickiness.header {text}"))
}

/// Compiles the regular expression of a header's condition: it matches whole values, and its classes are those of ASCII.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn header_regex(pattern: &str) -> Result<Regex, String> {
    // By itself first: `a)(b` would become whole by what is put around it.
    build(pattern)?;
    build(&format!("^(?:{pattern})$"))
}

fn build(pattern: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(pattern);
    builder.unicode(false).size_limit(REGEX_BYTES).dfa_size_limit(REGEX_BYTES);
    builder.build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "is too large once compiled; write a shorter one".to_owned(),
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("is not a regular expression of ASCII: {last}; correct it")
        }
    })
}

fn check(rule: &Rule, spec: &ModelRouteSpec) -> Result<(), String> {
    let Rule { name, when, split, choose } = rule;
    if name.is_empty() {
        return Err(".name is missing; give the rule a name".to_owned());
    }
    check_match(when).map_err(|text| format!(".match{text}"))?;
    if !split.is_empty() && choose.is_some() {
        return Err(": has split and choose; leave one out".to_owned());
    }
    check_split(split, spec).map_err(|text| format!(".split{text}"))?;
    if let Some(choose) = choose {
        check_choose(choose, spec).map_err(|text| format!(".choose{text}"))?;
    }
    Ok(())
}

fn check_match(when: &RuleMatch) -> Result<(), String> {
    if *when == RuleMatch::default() {
        return Err(" is empty and would hold for every request; give a condition, or give the backends weights instead".to_owned());
    }
    let RuleMatch {
        tenants,
        tenant_tiers,
        users,
        headers,
        prompt_tokens,
        prompt_contains,
        max_cost_per_million_tokens,
    } = when;
    let texts = [
        ("tenants", tenants),
        ("tenantTiers", tenant_tiers),
        ("users", users),
        ("promptContains", prompt_contains),
    ];
    for (field, texts) in texts {
        if texts.iter().any(String::is_empty) {
            return Err(format!(".{field} has an empty entry; remove it or write it out"));
        }
    }
    for (index, header) in headers.iter().enumerate() {
        check_header(header).map_err(|text| format!(".headers[{index}]{text}"))?;
    }
    if let Some(TokenRange { min, max }) = prompt_tokens {
        if min.is_none() && max.is_none() {
            return Err(".promptTokens is empty; give min, max, or both".to_owned());
        }
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            return Err(format!(
                ".promptTokens: min {min} is above max {max}, so nothing is between; swap them"
            ));
        }
    }
    if let Some(CostRange { min, max }) = max_cost_per_million_tokens {
        let at = ".maxCostPerMillionTokens";
        let min = min.as_deref().map(|it| cost(&format!("{at}.min"), it)).transpose()?;
        let max = max.as_deref().map(|it| cost(&format!("{at}.max"), it)).transpose()?;
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            return Err(format!("{at}: min {min} is above max {max}, so nothing is between; swap them"));
        }
    }
    Ok(())
}

fn check_header(header: &HeaderMatch) -> Result<(), String> {
    let HeaderMatch { name, exact, prefix, regex, present } = header;
    header_name(name).map_err(|text| format!(".name {text}"))?;
    let given = [exact.is_some(), prefix.is_some(), regex.is_some(), present.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        return Err(": set exactly one of exact, prefix, regex and present".to_owned());
    }
    match regex {
        Some(pattern) => {
            header_regex(pattern).map(|_| ()).map_err(|text| format!(".regex {pattern:?} {text}"))
        }
        None => Ok(()),
    }
}

fn header_name(name: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(format!("{name:?} is not the name of a header; write one such as x-priority"));
    }
    Ok(())
}

fn check_split(split: &[RuleShare], spec: &ModelRouteSpec) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for RuleShare { backend, weight: _ } in split {
        known(backend, spec)?;
        if !seen.insert(backend) {
            return Err(format!(": {backend} is named twice; add its weights up"));
        }
    }
    if !split.is_empty() && split.iter().all(|share| share.weight == Some(0)) {
        return Err(": the weights sum to zero; give at least one backend a weight above 0".to_owned());
    }
    Ok(())
}

fn check_choose(choose: &Choose, spec: &ModelRouteSpec) -> Result<(), String> {
    let Choose { prefer: _, among, max_cost_per_million_tokens } = choose;
    for name in among {
        let backend = known(name, spec).map_err(|text| format!(".among{text}"))?;
        if backend.cost_per_million_tokens.is_none() {
            return Err(format!(
                ".among: backend {name} has no costPerMillionTokens to choose it by; give it one"
            ));
        }
    }
    if among.is_empty() && spec.backends.iter().all(|backend| backend.cost_per_million_tokens.is_none()) {
        return Err(": no backend has a cost to choose by; give them costPerMillionTokens".to_owned());
    }
    if let Some(cap) = max_cost_per_million_tokens {
        cost(".maxCostPerMillionTokens", cap)?;
    }
    Ok(())
}

fn known<'a>(name: &str, spec: &'a ModelRouteSpec) -> Result<&'a super::super::Backend, String> {
    spec.backends.iter().find(|backend| backend.name == name).ok_or_else(|| {
        format!(": there is no backend {name:?} in spec.backends; add it, or correct the name")
    })
}

fn cost(at: &str, text: &str) -> Result<Cost, String> {
    text.parse().map_err(|problem| format!("{at}: {problem}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(rules: &Value) -> ModelRouteSpec {
        serde_json::from_value(json!({
            "backends": [
                {"name": "v1", "modelDeployment": "m1", "weight": 1, "costPerMillionTokens": "0.5"},
                {"name": "v2", "modelDeployment": "m2"},
            ],
            "rules": rules,
        }))
        .unwrap()
    }

    #[test]
    fn good_rules_have_no_problems() {
        let rules = json!([
            {"name": "a", "match": {"tenants": ["acme"], "tenantTiers": ["gold"], "users": ["ada"]},
             "split": [{"backend": "v1"}, {"backend": "v2", "weight": 0}]},
            {"name": "b", "match": {"headers": [{"name": "x-a", "exact": ""}, {"name": "x-b", "regex": "(?i)urgent|\\w{3}"},
                                                {"name": "x-c", "present": false}]}},
            {"name": "c", "match": {"maxCostPerMillionTokens": {}}, "choose": {"prefer": "Cheapest"}},
            {"name": "d", "match": {"promptTokens": {"min": 5, "max": 5}, "promptContains": ["in detail"]},
             "choose": {"prefer": "MostExpensive", "among": ["v1"], "maxCostPerMillionTokens": "1"}},
        ]);
        assert_eq!(problems(&spec(&rules)), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_remedy() {
        let any = json!({"users": ["ada"]});
        let with = |when: Value| json!({"name": "r", "match": when, "split": [{"backend": "v1"}]});
        let header = |header: Value| with(json!({"headers": [header]}));
        for (rule, part) in [
            (json!({"name": "", "match": any}), "spec.rules[0].name is missing"),
            (with(json!({})), "spec.rules[r].match is empty"),
            (with(json!({"users": [""]})), "spec.rules[r].match.users has an empty entry"),
            (with(json!({"promptTokens": {}})), ".match.promptTokens is empty"),
            (with(json!({"promptTokens": {"min": 2, "max": 1}})), "min 2 is above max 1"),
            (with(json!({"maxCostPerMillionTokens": {"min": "2", "max": "1"}})), "min 2 is above max 1"),
            (
                with(json!({"maxCostPerMillionTokens": {"max": "cheap"}})),
                ".maxCostPerMillionTokens.max: \"cheap\"",
            ),
            (header(json!({"name": "x a", "present": true})), ".match.headers[0].name \"x a\""),
            (header(json!({"name": "x-a"})), ".match.headers[0]: set exactly one"),
            (header(json!({"name": "x-a", "exact": "1", "prefix": "2"})), "set exactly one"),
            (
                header(json!({"name": "x-a", "regex": "("})),
                ".headers[0].regex \"(\" is not a regular expression of ASCII: unclosed",
            ),
            (header(json!({"name": "x-a", "regex": "(?:a{500}){500}"})), "too large"),
            (header(json!({"name": "x-a", "regex": "\\pL"})), "is not a regular expression"),
            (header(json!({"name": "x-a", "regex": "a)(b"})), "is not a regular expression"),
            (
                json!({"name": "r", "match": any, "split": [{"backend": "v9"}]}),
                ".split: there is no backend \"v9\"",
            ),
            (
                json!({"name": "r", "match": any, "split": [{"backend": "v1"}, {"backend": "v1"}]}),
                "v1 is named twice",
            ),
            (json!({"name": "r", "match": any, "split": [{"backend": "v1", "weight": 0}]}), "sum to zero"),
            (
                json!({"name": "r", "match": any, "split": [{"backend": "v1"}], "choose": {"prefer": "Cheapest"}}),
                "has split and choose",
            ),
            (
                json!({"name": "r", "match": any, "choose": {"prefer": "Cheapest", "among": ["v2"]}}),
                ".choose.among: backend v2 has no costPerMillionTokens",
            ),
            (
                json!({"name": "r", "match": any, "choose": {"prefer": "Cheapest", "among": ["v9"]}}),
                ".choose.among: there is no",
            ),
            (
                json!({"name": "r", "match": any, "choose": {"prefer": "Cheapest", "maxCostPerMillionTokens": "x"}}),
                ".choose.maxCostPerMillionTokens: \"x\"",
            ),
        ] {
            let found = problems(&spec(&json!([rule])));
            assert!(found.len() == 1 && found[0].text.contains(part), "{rule}: {found:?}");
        }
        let twice = problems(&spec(&json!([with(any.clone()), with(any.clone())])));
        assert_eq!((twice.len(), twice[0].rule), (1, 1), "{twice:?}");
        let mut priceless = spec(&json!([{"name": "r", "match": any, "choose": {"prefer": "Cheapest"}}]));
        priceless.backends[0].cost_per_million_tokens = None;
        assert!(problems(&priceless)[0].text.contains("no backend has a cost"));
    }

    #[test]
    fn a_regex_matches_whole_values() {
        let regex = header_regex("a|b").unwrap();
        assert!(regex.is_match(b"a") && regex.is_match(b"b") && !regex.is_match(b"ab"));
    }
}
