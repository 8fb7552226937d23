//! What a gateway says of a request, read leniently, and as text. Pure.

use serde::Deserialize;
use serde_json::Value;

use crate::render::{Paint, Table, wrap};

/// The answer of `/debug/explain`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Explanation {
    model: String,
    route: String,
    identity: Identity,
    prompt_tokens: u64,
    max_cost_per_million_tokens: Option<String>,
    rules: Vec<RuleLook>,
    rule: Option<String>,
    rule_problems: Vec<String>,
    split: Split,
    subject: Option<Subject>,
    backend: Option<Place>,
    unavailable: Option<String>,
    candidates: Vec<Candidate>,
    fallbacks: Vec<Value>,
    rollout: Option<Rollout>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Identity {
    tenant: Option<String>,
    tier: Option<String>,
    user: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RuleLook {
    name: String,
    holds: bool,
    why: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Split {
    of: String,
    line: String,
    ranks: Vec<Vec<Share>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Share {
    backend: String,
    percent: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    by: String,
    hash: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Place {
    name: String,
    chosen_by: String,
    diverted_from: Option<String>,
    endpoint: String,
    endpoint_because: String,
    revision: Option<String>,
    cost_per_million_tokens: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Candidate {
    backend: String,
    endpoint: String,
    revision: Option<String>,
    in_flight: u64,
    ejected: bool,
    too_loaded: bool,
    prompt_bytes_cached: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Rollout {
    phase: String,
    canary: String,
    weight: u32,
    step: Option<String>,
}

/// The answer as text. `gateway`: who says so; endpoints' loads are its own view.
pub fn text(explanation: &Explanation, gateway: &str, width: usize, paint: Paint) -> String {
    let Explanation { model, route, rule_problems, fallbacks, rollout, prompt_tokens, .. } = explanation;
    let mut lines = vec![format!("{}   by {route}", paint.strong(model))];
    for row in wrap(&decision(explanation), width) {
        lines.push(if explanation.backend.is_some() { row } else { paint.bad(&row) });
    }
    lines.push(String::new());
    lines.push(format!("Request   about {prompt_tokens} prompt tokens{}", who(explanation)));
    lines.push(format!("Split     {}{}", split(explanation), sticking(explanation)));
    if let Some(Rollout { phase, canary, weight, step }) = rollout {
        let step = step.as_ref().map(|step| format!(", step {step}")).unwrap_or_default();
        lines.push(format!("Rollout   {}{step}: {canary} has {weight} %", paint.phase(phase)));
    }
    if !fallbacks.is_empty() {
        let names: Vec<String> = fallbacks.iter().map(name_of).collect();
        lines.push(format!("Fallbacks {}", names.join(", ")));
    }
    for problem in rule_problems {
        let words = format!("A rule is left out: {problem}");
        lines.extend(wrap(&words, width).iter().map(|row| paint.wary(row)));
    }
    for table in
        [rules(explanation, paint), candidates(explanation, paint)].iter().filter(|table| !table.is_empty())
    {
        lines.push(String::new());
        lines.extend(table.render(width).lines().map(str::to_owned));
    }
    lines.push(String::new());
    lines.push(paint.faint(&format!("as {gateway} would decide now; nothing was sent")));
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Where it would go, in a sentence.
fn decision(explanation: &Explanation) -> String {
    let Some(place) = &explanation.backend else {
        let why = explanation.unavailable.as_deref().unwrap_or("the gateway does not say why");
        return format!("It would not be answered: {why}");
    };
    let Place {
        name,
        chosen_by,
        diverted_from,
        endpoint,
        endpoint_because,
        revision,
        cost_per_million_tokens,
    } = place;
    let revision = revision.as_ref().map(|revision| format!(" (revision {revision})")).unwrap_or_default();
    let diverted = diverted_from
        .as_ref()
        .map(|from| format!(", as {from} has no endpoint that can take it"))
        .unwrap_or_default();
    let cost = cost_per_million_tokens
        .as_ref()
        .map(|cost| format!(", at {cost} a million tokens"))
        .unwrap_or_default();
    let chance = if chosen_by == "Chance" {
        "; chance chose the backend, another request may go elsewhere"
    } else {
        ""
    };
    let because = if endpoint_because.is_empty() { String::new() } else { format!(" [{endpoint_because}]") };
    format!("It would go to {name}, to {endpoint}{revision}{because}{cost}{diverted}{chance}")
}

fn who(explanation: &Explanation) -> String {
    let Identity { tenant, tier, user } = &explanation.identity;
    let cost = &explanation.max_cost_per_million_tokens;
    let parts = [("tenant", tenant), ("tier", tier), ("user", user), ("for at most", cost)];
    parts.into_iter().filter_map(|(name, value)| Some(format!(", {name} {}", value.as_ref()?))).collect()
}

fn split(explanation: &Explanation) -> String {
    let Split { of, line, ranks } = &explanation.split;
    let rank = |rank: &Vec<Share>| {
        rank.iter()
            .map(|Share { backend, percent }| format!("{backend}={percent}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let shares = if ranks.is_empty() {
        line.clone()
    } else {
        ranks.iter().map(rank).collect::<Vec<_>>().join(", then ")
    };
    match (&explanation.rule, of.as_str()) {
        (Some(rule), "Rule") => format!("{shares}, by the rule {rule}"),
        _ => format!("{shares}, by the route's weights"),
    }
}

fn sticking(explanation: &Explanation) -> String {
    let subject = explanation.subject.as_ref();
    subject.map(|Subject { by, hash }| format!("; sticks by {by} ({hash})")).unwrap_or_default()
}

fn rules(explanation: &Explanation, paint: Paint) -> Table {
    let mut table = Table::new(&["RULE", "HOLDS", "WHY NOT"]);
    for RuleLook { name, holds, why } in &explanation.rules {
        let holds = if *holds { paint.good("yes") } else { "no".to_owned() };
        table.row([name.clone(), holds, why.clone().unwrap_or_default()]);
    }
    table
}

fn candidates(explanation: &Explanation, paint: Paint) -> Table {
    let mut table = Table::new(&["BACKEND", "ENDPOINT", "REVISION", "IN FLIGHT", "CACHED", "STATE", ""])
        .right(3)
        .right(4);
    let chosen = explanation.backend.as_ref();
    for Candidate { backend, endpoint, revision, in_flight, ejected, too_loaded, prompt_bytes_cached } in
        &explanation.candidates
    {
        let is_chosen = chosen.is_some_and(|place| place.name == *backend && place.endpoint == *endpoint);
        table.row([
            backend.clone(),
            endpoint.clone(),
            revision.clone().unwrap_or_default(),
            in_flight.to_string(),
            if *prompt_bytes_cached > 0 { format!("{prompt_bytes_cached} bytes") } else { String::new() },
            match (ejected, too_loaded) {
                (true, _) => paint.bad("ejected"),
                (false, true) => paint.wary("too loaded"),
                (false, false) => String::new(),
            },
            if is_chosen { paint.good("chosen") } else { String::new() },
        ]);
    }
    table
}

fn name_of(value: &Value) -> String {
    let name = value.as_str().or_else(|| value["backend"].as_str()).or_else(|| value["name"].as_str());
    name.map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Value {
        json!({
            "model": "support", "route": "shop/support-chat", "identity": {"tenant": null, "tier": "gold", "user": "ada"},
            "promptTokens": 42,
            "rules": [{"name": "urgent", "holds": false, "why": "the header x-priority is missing"},
                {"name": "premium", "holds": true}],
            "rule": "premium", "split": {"of": "Rule", "line": "v1=80 v2=20", "ranks": [[
                {"backend": "v1", "percent": "80"}, {"backend": "v2", "percent": "20"}]]},
            "subject": {"by": "User", "hash": "00ff00ff00ff00ff"},
            "backend": {"name": "v2", "chosenBy": "Subject", "endpoint": "10.1.0.7:8000", "revision": "5f4d"},
            "candidates": [
                {"backend": "v1", "endpoint": "10.1.0.6:8000", "revision": "11aa", "inFlight": 3, "ejected": true},
                {"backend": "v2", "endpoint": "10.1.0.7:8000", "revision": "5f4d", "inFlight": 0, "ejected": false}],
            "rollout": {"phase": "Progressing", "canary": "v2", "weight": 25, "step": "2/3"},
        })
    }

    fn shown(answer: &Value) -> String {
        text(&serde_json::from_value(answer.clone()).unwrap(), "fairlead-gateway-x", 100, Paint::PLAIN)
    }

    #[test]
    fn a_request_that_a_rule_decides() {
        insta::assert_snapshot!(shown(&answer()));
    }

    #[test]
    fn the_page_shows_what_is_printed() {
        let mut answer = answer();
        let fields = answer.as_object_mut().unwrap();
        fields.insert("model".to_owned(), json!("support-chat"));
        fields.insert("promptTokens".to_owned(), json!(9));
        fields.insert("backend".to_owned(), json!({"name": "v1", "chosenBy": "Subject", "endpoint": "10.1.0.6:8000", "revision": "e26ac76772"}));
        fields.insert("candidates".to_owned(), json!([
            {"backend": "v1", "endpoint": "10.1.0.6:8000", "revision": "e26ac76772", "inFlight": 3, "ejected": false},
            {"backend": "v1", "endpoint": "10.1.0.9:8000", "revision": "e26ac76772", "inFlight": 7, "ejected": false},
            {"backend": "v2", "endpoint": "10.1.0.7:8000", "revision": "c6c637e134", "inFlight": 1, "ejected": false}]));
        let answer = serde_json::from_value(answer).unwrap();
        let shown = text(&answer, "fairlead-gateway-597f786475-cmgd7", 120, Paint::PLAIN);
        crate::documented::check("kubectl fairlead explain support-chat --user ada --tier gold", &shown);
    }

    #[test]
    fn one_that_nobody_can_take() {
        let mut answer = answer();
        answer["backend"] = Value::Null;
        answer["unavailable"] = json!("no backend of the split has an endpoint that can take it");
        let text = shown(&answer);
        assert!(text.contains("It would not be answered: no backend of the split has an endpoint"), "{text}");
    }

    #[test]
    fn a_newer_gateways_answer_is_shown_as_far_as_it_is_known() {
        let text = shown(
            &json!({"model": "m", "route": "a/b", "novel": {}, "fallbacks": [{"backend": "cloud"}, "x"]}),
        );
        assert!(text.contains("m   by a/b") && text.contains("Fallbacks cloud, x"), "{text}");
    }
}
