use super::*;
use http::HeaderValue;
use serde_json::{Value, json};

fn rules(rules: Value) -> Rules {
    let spec = json!({"backends": [
        {"name": "cheap", "modelDeployment": "m1", "weight": 3, "costPerMillionTokens": "500"},
        {"name": "tried", "modelDeployment": "m2", "costPerMillionTokens": "600"},
        {"name": "good", "modelDeployment": "m3", "costPerMillionTokens": "2000"},
        {"name": "twin", "modelDeployment": "m4", "costPerMillionTokens": "500.0"},
        {"name": "free-of-price", "modelDeployment": "m5"},
    ], "rules": rules});
    Rules::new(&serde_json::from_value(spec).expect("a spec"))
}

#[derive(Default)]
struct Sent {
    identity: Identity,
    headers: HeaderMap,
    prompt: PromptFacts,
    cap: Option<&'static str>,
}

impl Sent {
    fn header(name: &'static str, values: &[&'static str]) -> Self {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_static(value));
        }
        Self { headers, ..Self::default() }
    }

    fn question(text: &str) -> Self {
        Self {
            prompt: PromptFacts { question: text.to_owned(), ..PromptFacts::default() },
            ..Self::default()
        }
    }

    fn tokens(tokens: u64) -> Self {
        Self { prompt: PromptFacts { tokens, ..PromptFacts::default() }, ..Self::default() }
    }

    fn user(user: &str) -> Self {
        let identity = Identity { user: Some(user.to_owned()), ..Identity::default() };
        // What the body says of its user is nobody's identity.
        let prompt = PromptFacts { user: Some("root".to_owned()), ..PromptFacts::default() };
        Self { identity, prompt, ..Self::default() }
    }

    fn cap(cap: &'static str) -> Self {
        Self { cap: Some(cap), ..Self::default() }
    }

    fn holds(&self, when: Value) -> bool {
        let rules = rules(json!([{"name": "r", "match": when}]));
        assert_eq!(rules.problems, [] as [&str; 0]);
        let cap = self.cap.map(|cap| cap.parse().expect("a cost"));
        let asked = Asked::new(&self.identity, &self.headers, &self.prompt, cap);
        let rule = &rules.ready[0];
        assert_eq!(rule.holds(&asked), rule.why_not(&asked).is_none(), "the answer and its reason agree");
        rule.holds(&asked)
    }
}

#[test]
fn who_asks() {
    assert!(Sent::user("ada").holds(json!({"users": ["bob", "ada"]})));
    assert!(!Sent::user("ada").holds(json!({"users": ["bob"]})));
    assert!(!Sent::user("ada").holds(json!({"users": ["root"]})));
    assert!(!Sent::user("ada").holds(json!({"users": ["ADA"]})));
    assert!(!Sent::default().holds(json!({"tenants": ["acme"]})));
    let acme = Sent {
        identity: Identity { tenant: Some("acme".to_owned()), tier: Some("gold".to_owned()), user: None },
        ..Sent::default()
    };
    assert!(acme.holds(json!({"tenants": ["acme"], "tenantTiers": ["gold", "silver"]})));
    assert!(!acme.holds(json!({"tenants": ["acme"], "tenantTiers": ["silver"]})), "all conditions must hold");
}

#[test]
fn headers() {
    let sent = Sent::header("x-priority", &["low", "urgent"]);
    for (test, holds) in [
        (json!({"exact": "urgent"}), true),
        (json!({"exact": "urg"}), false),
        (json!({"exact": "URGENT"}), false),
        (json!({"prefix": "urg"}), true),
        (json!({"prefix": "gent"}), false),
        (json!({"regex": "urgent|critical"}), true),
        (json!({"regex": "rgen"}), false),
        (json!({"regex": "(?i)URGENT"}), true),
        (json!({"present": true}), true),
        (json!({"present": false}), false),
    ] {
        let mut header = test.clone();
        header["name"] = json!("X-Priority");
        assert_eq!(sent.holds(json!({"headers": [header]})), holds, "{test}");
    }
    assert!(Sent::default().holds(json!({"headers": [{"name": "x-priority", "present": false}]})));
    let both =
        json!({"headers": [{"name": "x-priority", "exact": "low"}, {"name": "x-other", "present": true}]});
    assert!(!sent.holds(both));
}

#[test]
fn the_prompt() {
    let range = |range: Value| json!({"promptTokens": range});
    for (tokens, wanted, holds) in [
        (10, json!({"min": 10}), true),
        (9, json!({"min": 10}), false),
        (10, json!({"max": 10}), true),
        (11, json!({"max": 10}), false),
        (5, json!({"min": 1, "max": 9}), true),
    ] {
        assert_eq!(Sent::tokens(tokens).holds(range(wanted.clone())), holds, "{tokens} {wanted}");
    }
    let contains = |texts: &[&str]| json!({"promptContains": texts});
    let asked = Sent::question("Bitte, ERKLÄRE es mir In Detail.");
    assert!(asked.holds(contains(&["complex explanation", "in detail"])));
    assert!(asked.holds(contains(&["erkläre"])), "case is case in every alphabet");
    assert!(!asked.holds(contains(&["details"])));
    assert!(!Sent::default().holds(contains(&["x"])));
}

#[test]
fn the_cap() {
    let range = |range: Value| json!({"maxCostPerMillionTokens": range});
    assert!(Sent::cap("0.1").holds(range(json!({}))));
    assert!(!Sent::default().holds(range(json!({}))));
    assert!(Sent::cap("1000").holds(range(json!({"max": "1000"}))));
    assert!(!Sent::cap("1000.000001").holds(range(json!({"max": "1000"}))));
    assert!(!Sent::cap("9").holds(range(json!({"min": "10"}))));
}

fn ranks(choose: Value, cap: Option<&str>) -> Vec<Vec<String>> {
    let rules = rules(json!([{"name": "r", "match": {"users": ["x"]}, "choose": choose}]));
    let Target::Cost(choice) = &rules.ready[0].target else { panic!("a choice") };
    let ranks = choice.ranks(cap.map(|cap| cap.parse().expect("a cost")));
    ranks.into_iter().map(|rank| rank.into_iter().map(str::to_owned).collect()).collect()
}

#[test]
fn by_cost_within_the_lower_cap_equals_together() {
    let cheapest = json!({"prefer": "Cheapest"});
    assert_eq!(ranks(cheapest.clone(), None), [vec!["cheap", "twin"], vec!["tried"], vec!["good"]]);
    assert_eq!(ranks(cheapest.clone(), Some("1000")), [vec!["cheap", "twin"], vec!["tried"]]);
    assert_eq!(ranks(cheapest, Some("499.999999")), [] as [Vec<&str>; 0]);
    let best = json!({"prefer": "MostExpensive", "maxCostPerMillionTokens": "1999"});
    assert_eq!(ranks(best.clone(), Some("5000"))[0], ["tried"]);
    assert_eq!(ranks(best, Some("550"))[0], ["cheap", "twin"]);
    let among = json!({"prefer": "Cheapest", "among": ["good", "tried"]});
    assert_eq!(ranks(among, None), [["tried"], ["good"]]);
}

#[test]
fn a_choice_that_nothing_fits_leaves_the_request_to_the_next_rules() {
    let rules = rules(
        json!([{"name": "r", "match": {"maxCostPerMillionTokens": {}}, "choose": {"prefer": "Cheapest"}}]),
    );
    let (identity, headers, prompt) = (Identity::default(), HeaderMap::new(), PromptFacts::default());
    let asked = |cap: &str| Asked::new(&identity, &headers, &prompt, Some(cap.parse().expect("a cost")));
    assert!(rules.ready[0].holds(&asked("500")));
    assert!(!rules.ready[0].holds(&asked("1")));
    assert_eq!(rules.ready[0].why_not(&asked("1")).as_deref(), Some("choose: no backend is within the cap"));
}

#[test]
fn a_rule_that_cannot_be_followed_is_left_out_and_told_of() {
    let rules = rules(json!([
        {"name": "broken", "match": {"headers": [{"name": "x", "regex": "("}]}},
        {"name": "lost", "match": {"users": ["ada"]}, "split": [{"backend": "gone"}]},
        {"name": "good", "match": {"users": ["ada"]}, "split": [{"backend": "cheap"}]},
    ]));
    assert_eq!(rules.ready.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["good"]);
    assert!(rules.problems[0].contains("spec.rules[broken].match.headers[0].regex"), "{:?}", rules.problems);
    assert!(rules.problems[1].contains("spec.rules[lost].split"), "{:?}", rules.problems);
}
