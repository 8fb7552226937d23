use std::sync::Arc;

use super::*;
use crate::identity::Identity;
use crate::rules::Rules;
use crate::snapshot::RouteBackend;
use http::HeaderValue;
use proptest::prelude::*;
use serde_json::{Value, json};

fn route(rules: Value, by: StickyBy) -> Route {
    let costs = [("v1", 90, Some("5")), ("v2", 10, Some("5")), ("v3", 0, Some("9")), ("v4", 0, None)];
    let backends = costs.map(|(name, weight, cost)| {
        json!({"name": name, "modelDeployment": name, "weight": weight, "costPerMillionTokens": cost})
    });
    let spec = serde_json::from_value(json!({"backends": backends, "rules": rules})).expect("a spec");
    let backends = costs.map(|(name, weight, _)| RouteBackend {
        name: name.into(),
        key: split::key_of(name),
        weight,
        ..RouteBackend::default()
    });
    Route {
        id: "ns/chat".into(),
        backends: backends.into(),
        split: "v1=90 v2=10".into(),
        rules: Arc::new(Rules::new(&spec)),
        stick: Stick { by, header: (by == StickyBy::Header).then(|| HeaderName::from_static("x-session")) },
        ..Route::default()
    }
}

fn decided(route: &Route, user: Option<&str>, own_user: Option<&str>, trusted: &TrustedHeaders) -> Decision {
    let identity = Identity { user: user.map(str::to_owned), tenant: Some("acme".to_owned()), tier: None };
    let prompt = PromptFacts { user: own_user.map(str::to_owned), tokens: 7, ..PromptFacts::default() };
    let mut headers = HeaderMap::new();
    headers.insert("x-session", HeaderValue::from_static("s1"));
    decide(route, &Asked::new(&identity, &headers, &prompt, None).with_trust(trusted))
}

fn ranks(decision: &Decision, route: &Route) -> Vec<Vec<u32>> {
    decision.ranks(route).into_iter().map(RankWeights::into_vec).collect()
}

fn first_match(rules: Value) -> Decision {
    decided(&route(rules, StickyBy::Request), Some("ada"), None, &TrustedHeaders::default())
}

#[test]
fn the_first_rule_that_holds_has_the_request() {
    let ada = json!({"users": ["ada"]});
    let decision = first_match(json!([
        {"name": "other", "match": {"users": ["bob"]}, "split": [{"backend": "v4"}]},
        {"name": "first", "match": ada, "split": [{"backend": "v2"}, {"backend": "v3", "weight": 3}]},
        {"name": "second", "match": ada, "split": [{"backend": "v4"}]},
    ]));
    assert_eq!((decision.rule.as_deref(), &*decision.split), (Some("first"), "v2=25 v3=75"));
    assert!(!decision.by_own_split());
    let route = route(json!([]), StickyBy::Request);
    assert_eq!(ranks(&decision, &route), [[0, 1, 3, 0]]);
}

#[test]
fn a_rule_without_a_split_leaves_it_to_the_routes_own() {
    let decision = first_match(json!([
        {"name": "mine", "match": {"tenants": ["acme"]}},
        {"name": "rest", "match": {"users": ["ada"]}, "split": [{"backend": "v4"}]},
    ]));
    assert_eq!((decision.rule.as_deref(), &*decision.split), (Some("mine"), "v1=90 v2=10"));
    assert!(decision.by_own_split(), "it tells of the canary like any other");
    let none = first_match(json!([]));
    assert_eq!((none.rule.as_deref(), none.by_own_split()), (None, true));
}

#[test]
fn equals_in_cost_share_by_their_weights_and_the_next_rank_waits() {
    let choose =
        |choose: Value| first_match(json!([{"name": "r", "match": {"users": ["ada"]}, "choose": choose}]));
    let decision = choose(json!({"prefer": "Cheapest"}));
    assert_eq!(&*decision.split, "v1=90 v2=10");
    let route = route(json!([]), StickyBy::Request);
    assert_eq!(
        ranks(&decision, &route),
        [[90, 10, 0, 0], [0, 0, 1, 0]],
        "one without a weight is chosen all the same"
    );
    assert_eq!(&*choose(json!({"prefer": "MostExpensive"})).split, "v3=100");
}

#[test]
fn what_sticks() {
    let trusting =
        TrustedHeaders { user: Some(HeaderName::from_static("x-user")), ..TrustedHeaders::default() };
    let none = TrustedHeaders::default();
    let subject = |by, user, own, trusted: &TrustedHeaders| {
        let decision = decided(&route(json!([]), by), user, own, trusted);
        assert_eq!(decision.sticky, if decision.subject.is_some() { by } else { StickyBy::Request });
        decision.subject
    };
    assert_eq!(subject(StickyBy::Request, Some("ada"), Some("ada"), &none), None);
    let ada = subject(StickyBy::User, Some("ada"), None, &trusting);
    assert!(ada.is_some());
    // Where a user is trusted, naming oneself anew in the body moves nobody.
    assert_eq!(subject(StickyBy::User, Some("ada"), Some("other"), &trusting), ada);
    assert_eq!(subject(StickyBy::User, None, Some("ada"), &trusting), None);
    assert_eq!(subject(StickyBy::User, None, Some("ada"), &none), ada, "otherwise the body's word counts");
    assert_eq!(subject(StickyBy::User, None, Some(""), &none), None);
    let tenant = subject(StickyBy::Tenant, Some("ada"), None, &none);
    assert!(tenant.is_some() && tenant != ada);
    assert!(subject(StickyBy::Header, None, None, &none).is_some());
}

#[test]
fn a_cap_that_is_no_cost_is_refused() {
    let mut headers = HeaderMap::new();
    assert_eq!(cap(&headers).expect("none"), None);
    headers.insert(headers::MAX_COST, HeaderValue::from_static(" 0.5 "));
    assert_eq!(cap(&headers).expect("a cap").map(|cap| cap.to_string()).as_deref(), Some("0.5"));
    headers.insert(headers::MAX_COST, HeaderValue::from_static("-1"));
    let error = cap(&headers).expect_err("refused");
    assert!(
        error.status == 400 && error.to_string().contains("x-fairlead-max-cost-per-million-tokens"),
        "{error}"
    );
}

#[test]
fn the_answer_tells() {
    let decision = decided(
        &route(json!([{"name": "r", "match": {"users": ["ada"]}}]), StickyBy::User),
        Some("ada"),
        None,
        &TrustedHeaders::default(),
    );
    let mut answer = HeaderMap::new();
    decision.tell(&mut answer);
    let text = |name: &HeaderName| answer.get(name).map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(text(&headers::RULE).as_deref(), Some("r"));
    assert_eq!(text(&headers::SPLIT).as_deref(), Some("v1=90 v2=10"));
    assert_eq!(text(&headers::STICKY).as_deref(), Some("User"));
}

proptest! {
    /// A canary's steps as the gateways see them: whatever the weights were and however the backends stand, a user who has come to
    /// the canary stays there until it shrinks.
    #[test]
    fn a_growing_canary_only_ever_adds_users(
        standing in prop::collection::vec(0_u32..100, 1..5),
        mut steps in prop::collection::vec(0_u32..=100, 1..8),
        user in "[a-z0-9]{1,12}",
        turn in 0_usize..5,
    ) {
        prop_assume!(standing.iter().any(|weight| *weight > 0));
        steps.sort_unstable();
        let subject = split::subject_of("ns/chat", "User", &user);
        let mut place: Option<String> = None;
        for percent in steps {
            // As `ModelRoute::weights` mixes a canary in.
            let sum: u32 = standing.iter().sum();
            let mut backends: Vec<(String, u32)> = standing
                .iter()
                .enumerate()
                .map(|(index, weight)| (format!("v{index}"), (100 - percent) * weight))
                .chain([("canary".to_owned(), percent * sum)])
                .collect();
            let turned = turn % backends.len();
            backends.rotate_left(turned);
            let shares = backends.iter().map(|(name, weight)| (split::key_of(name), *weight));
            let index = split::stick(shares, subject);
            let now = index.map(|index| backends[index].0.clone());
            prop_assert!(place.is_none() || now == place || now.as_deref() == Some("canary"), "{place:?} to {now:?}");
            place = now;
        }
    }
}
