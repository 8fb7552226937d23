//! Policies together with what they remember; each policy's own arithmetic is tested beside it.

mod simulation;

use std::collections::BTreeMap;

use fairlead_openai::Prompt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::endpoint::InFlight;

const HEADERS: fn() -> HeaderMap = HeaderMap::new;

fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
    (0..count)
        .map(|i| Arc::new(Endpoint::parse(&format!("http://10.0.0.{i}:8000")).expect("parses")))
        .collect()
}

fn text(text: &str) -> PromptKey {
    PromptKey::of_completion(&[Prompt::Text(text.to_owned())])
}

fn spec(json: &str) -> Spec {
    let spec: Spec = serde_json::from_str(json).expect("a policy");
    spec.check().expect("a good policy");
    spec
}

fn policies() -> Policies {
    Policies::new(1 << 20, Arc::new(Metrics::default()))
}

const TARGET: Target<'static> = Target { route: "ns/chat", policy: None, backend: "v1", served_model: None };

/// A gateway with its own memory.
struct Case {
    policies: Policies,
    rng: StdRng,
}

impl Case {
    fn new() -> Self {
        Self { policies: policies(), rng: StdRng::seed_from_u64(11) }
    }

    fn at(
        &mut self,
        prompt: &str,
        salt: Option<&str>,
        target: &Target<'_>,
        endpoints: &[Arc<Endpoint>],
    ) -> Verdict {
        let (prompt, headers) = (text(prompt), HEADERS());
        let ask = Ask { prompt: &prompt, salt, user: None, headers: &headers };
        let candidates: Vec<_> = endpoints.iter().collect();
        self.policies.choose(&ask, target, &candidates, &mut self.rng).expect("a choice")
    }

    fn ask(&mut self, prompt: &str, endpoints: &[Arc<Endpoint>]) -> Verdict {
        self.at(prompt, None, &TARGET, endpoints)
    }
}

fn long(seed: &str) -> String {
    seed.repeat(2_000 / seed.len())
}

#[test]
fn a_prompt_goes_where_its_beginning_went() {
    let (mut case, endpoints) = (Case::new(), endpoints(4));
    for seed in ["alpha ", "beta ", "gamma ", "delta "] {
        let first = case.ask(&long(seed), &endpoints);
        assert_eq!((first.why, first.matched), (Why::NoPrefixMatch, 0));
        let next = case.ask(&(long(seed) + "and then?"), &endpoints);
        assert_eq!((next.index, next.why, next.matched), (first.index, Why::PrefixMatch, 1_792));
    }
}

#[test]
fn what_comes_first_decides_and_not_what_is_somewhere_in_it() {
    let (mut case, endpoints) = (Case::new(), endpoints(8));
    let (a, b) = (long("aaaa "), long("bbbb "));
    let (of_a, of_b) = (case.ask(&a, &endpoints).index, case.ask(&b, &endpoints).index);
    assert_ne!(of_a, of_b, "the test's seeds must part them");
    assert_eq!(case.ask(&(b + &a), &endpoints).index, of_b);
}

#[test]
fn nothing_is_shared_across_backends_adapters_salts_and_routes() {
    let (mut case, endpoints) = (Case::new(), endpoints(4));
    let prompt = long("the same ");
    case.at(&prompt, None, &TARGET, &endpoints);
    assert_eq!(case.at(&prompt, None, &TARGET, &endpoints).why, Why::PrefixMatch);
    assert_eq!(case.at(&prompt, Some("tenant"), &TARGET, &endpoints).why, Why::NoPrefixMatch);
    for other in [
        Target { backend: "v2", ..TARGET },
        Target { served_model: Some("adapter"), ..TARGET },
        Target { route: "ns/other", ..TARGET },
        Target { route: "ns/cha", backend: "tv1", ..TARGET },
    ] {
        assert_eq!(case.at(&prompt, None, &other, &endpoints).why, Why::NoPrefixMatch, "{other:?}");
    }
}

/// A pod of a new revision, or one that was started anew, has an empty cache even at an old pod's address.
#[test]
fn prefixes_do_not_cross_revisions() {
    let mut case = Case::new();
    let revision = |name: &str| -> Vec<Arc<Endpoint>> {
        let endpoint = |i| Endpoint::parse(&format!("http://10.0.0.{i}:8000")).expect("parses");
        (0..2).map(|i| Arc::new(endpoint(i).at_revision(Some(name.to_owned())))).collect()
    };
    let (old, new) = (revision("r1"), revision("r2"));
    let prompt = long("the same ");
    case.ask(&prompt, &old);
    assert_eq!(case.ask(&prompt, &old).why, Why::PrefixMatch);
    assert_eq!(case.ask(&prompt, &new).why, Why::NoPrefixMatch);
    // Side by side, as during a roll-out: each keeps to its own.
    let both: Vec<_> = old.iter().chain(&new).cloned().collect();
    let headers = HEADERS();
    let key = text(&prompt);
    let ask = Ask { prompt: &key, salt: None, user: None, headers: &headers };
    let candidates: Vec<_> = both.iter().collect();
    let (_, explained) = case.policies.explain(&ask, &TARGET, &candidates, &mut case.rng);
    assert_eq!(explained.iter().filter(|candidate| candidate.matched > 0).count(), 2, "{explained:?}");
}

#[test]
fn a_short_common_beginning_is_no_match() {
    let (mut case, endpoints) = (Case::new(), endpoints(8));
    let preamble = long("You are helpful. ");
    let prompt = |topic: &str| preamble.clone() + &topic.repeat(8_000 / topic.len());
    case.ask(&prompt("cats "), &endpoints);
    assert_eq!(case.ask(&prompt("dogs "), &endpoints).why, Why::NoPrefixMatch);
    let lax = spec(r#"{"minMatchPercent": 10}"#);
    let target = Target { policy: Some(&lax), ..TARGET };
    let verdict = case.at(&prompt("fish "), None, &target, &endpoints);
    assert_eq!((verdict.why, verdict.matched), (Why::PrefixMatch, 1_792));
}

#[test]
fn a_match_wins_until_its_endpoint_is_much_more_loaded() {
    let (mut case, endpoints) = (Case::new(), endpoints(3));
    let prompt = long("popular ");
    let home = case.ask(&prompt, &endpoints).index;
    let mut running: Vec<InFlight> = (0..8).map(|_| endpoints[home].begin()).collect();
    assert_eq!(case.ask(&prompt, &endpoints).index, home, "eight more than the least loaded are allowed");
    running.push(endpoints[home].begin());
    let verdict = case.ask(&prompt, &endpoints);
    assert_eq!(verdict.why, Why::PrefixOverruled);
    assert_ne!(verdict.index, home);
    // The one that helped out has it now.
    assert_eq!(case.ask(&prompt, &endpoints).index, verdict.index);
    // Where all are busy the share counts and not the number.
    for endpoint in &endpoints {
        running.extend((0..100).map(|_| endpoint.begin()));
    }
    let mut other = Case::new();
    other.ask(&prompt, &endpoints[home..=home]);
    assert_eq!(other.ask(&prompt, &endpoints).why, Why::PrefixMatch, "109 is not 150 % of 100");
}

#[test]
fn short_prompts_are_spread_by_load() {
    let (mut case, endpoints) = (Case::new(), endpoints(4));
    let mut counts = [0_u32; 4];
    for _ in 0..4_000 {
        counts[case.ask("hi", &endpoints).index] += 1;
    }
    // Binomial(4000, 1/4): sigma is 27.
    assert!(counts.iter().all(|count| count.abs_diff(1_000) < 150), "{counts:?}");
}

#[test]
fn gateways_that_share_nothing_begin_a_conversation_at_the_same_endpoint() {
    let endpoints = endpoints(8);
    for conversation in 0..50 {
        let opening = long(&format!("conversation {conversation} "));
        let first = Case::new().ask(&opening, &endpoints).index;
        assert_eq!(Case::new().ask(&opening, &endpoints).index, first);
        // Plain completions open with their first kilobyte, so the next turn agrees as well.
        assert_eq!(Case::new().ask(&(opening + "more of it"), &endpoints).index, first);
    }
}

fn session_case(
    user: Option<&str>,
    headers: &HeaderMap,
    policy: &Spec,
    endpoints: &[Arc<Endpoint>],
) -> Verdict {
    let prompt = PromptKey::default();
    let ask = Ask { prompt: &prompt, salt: None, user, headers };
    let target = Target { policy: Some(policy), ..TARGET };
    let candidates: Vec<_> = endpoints.iter().collect();
    policies().choose(&ask, &target, &candidates, &mut StdRng::seed_from_u64(1)).expect("a choice")
}

#[test]
fn a_session_stays_and_scaling_moves_few() {
    let policy = spec(r#"{"kind": "SessionAffinity", "session": {"by": "User"}}"#);
    let nine = endpoints(9);
    let mut moved = 0;
    for user in 0..900 {
        let user = format!("user-{user}");
        let at = |endpoints: &[Arc<Endpoint>]| session_case(Some(&user), &HEADERS(), &policy, endpoints);
        let before = at(&nine[..8]);
        assert_eq!((before.index, before.why), (at(&nine[..8]).index, Why::Session));
        let after = at(&nine).index;
        assert!(after == before.index || after == 8, "only the new endpoint takes sessions");
        moved += u32::from(after == 8);
    }
    // Binomial(900, 1/9): sigma is 9.4.
    assert!(moved.abs_diff(100) < 48, "{moved}");
}

#[test]
fn a_session_gives_way_to_load_and_requests_without_one_go_by_load() {
    let policy =
        spec(r#"{"kind": "SessionAffinity", "session": {"by": "Header", "header": "X-Session-Id"}}"#);
    let endpoints = endpoints(3);
    let mut headers = HeaderMap::new();
    headers.insert("x-session-id", "s1".parse().expect("a value"));
    let home = session_case(None, &headers, &policy, &endpoints).index;
    let _running: Vec<_> = (0..9).map(|_| endpoints[home].begin()).collect();
    let away = session_case(None, &headers, &policy, &endpoints);
    assert_eq!(away.why, Why::SessionOverruled);
    assert_eq!(
        session_case(None, &headers, &policy, &endpoints).index,
        away.index,
        "always to the same next one"
    );
    let without = session_case(Some("the field is not asked for"), &HEADERS(), &policy, &endpoints);
    assert_eq!(without.why, Why::LeastLoad);
    assert_ne!(without.index, home);
}

#[test]
fn an_explanation_says_what_the_choice_looks_at_and_changes_nothing() {
    let (mut case, endpoints) = (Case::new(), endpoints(3));
    let prompt = long("explained ");
    let home = case.ask(&prompt, &endpoints).index;
    let _running: Vec<_> = (0..9).map(|_| endpoints[home].begin()).collect();
    let (key, headers) = (text(&prompt), HEADERS());
    let ask = Ask { prompt: &key, salt: None, user: None, headers: &headers };
    let candidates: Vec<_> = endpoints.iter().collect();
    let before = case.policies.metrics.render(std::time::Duration::ZERO).expect("text");
    for _ in 0..3 {
        let (verdict, explained) = case.policies.explain(&ask, &TARGET, &candidates, &mut case.rng);
        let verdict = verdict.expect("a choice");
        assert_eq!((verdict.why, verdict.matched), (Why::PrefixOverruled, 0));
        assert_eq!(explained[home], Explained { in_flight: 9, too_loaded: true, matched: 1_792 });
        assert_eq!(explained[verdict.index], Explained { in_flight: 0, too_loaded: false, matched: 0 });
    }
    assert_eq!(case.policies.metrics.render(std::time::Duration::ZERO).expect("text"), before);
}

#[test]
fn what_decided_is_counted() {
    let (mut case, endpoints) = (Case::new(), endpoints(2));
    case.ask(&long("counted "), &endpoints);
    case.ask(&long("counted "), &endpoints);
    let text = case.policies.metrics.render(std::time::Duration::ZERO).expect("text");
    let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    for (name, value) in [
        ("fairlead_gateway_endpoint_choices_total{reason=\"PrefixMatch\"}", "1"),
        ("fairlead_gateway_endpoint_choices_total{reason=\"NoPrefixMatch\"}", "1"),
        ("fairlead_gateway_prefix_lookup_bytes_total", "4000"),
        ("fairlead_gateway_prefix_match_bytes_total", "1792"),
    ] {
        assert_eq!(values.get(name), Some(&value), "{name} in:\n{text}");
    }
}

#[test]
fn the_guard_needs_both_bounds() {
    let guard = LoadGuard { extra: 8, percent: 150 };
    for (load, least, exceeded) in
        [(8, 0, false), (9, 0, true), (18, 10, false), (19, 10, true), (150, 100, false), (151, 100, true)]
    {
        assert_eq!(guard.exceeded(load, least), exceeded, "{load} against {least}");
    }
    assert!(!LoadGuard { extra: usize::MAX, percent: usize::MAX }.exceeded(usize::MAX, usize::MAX));
}
