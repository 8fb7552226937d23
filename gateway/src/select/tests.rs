use super::*;
use crate::decide::Weights;
use crate::ejection::Failure;
use crate::policy::prompt::PromptKey;
use http::HeaderMap;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::LazyLock;

fn backend(name: &str, weight: u32, addresses: &[&str]) -> RouteBackend {
    let endpoint = |text: &&str| {
        // `address@revision`
        let (address, revision) = text.split_once('@').map_or((*text, None), |(a, r)| (a, Some(r)));
        let endpoint = Endpoint::parse(&format!("http://{address}:1")).expect("parses");
        Arc::new(endpoint.at_revision(revision.map(str::to_owned)))
    };
    RouteBackend {
        name: name.into(),
        key: split::key_of(name),
        weight,
        endpoints: addresses.iter().map(endpoint).collect(),
        ..RouteBackend::default()
    }
}

fn route(backends: Vec<RouteBackend>) -> Route {
    Route { id: "ns/r".into(), model: "m".into(), backends, ..Route::default() }
}

/// With policies that remember nothing and a prompt that is too short to tell.
fn pick<'a>(
    selection: &mut Selection,
    route: &'a Route,
    rng: &mut dyn Rng,
) -> Result<Choice<'a>, Unavailable> {
    static POLICIES: LazyLock<Policies> = LazyLock::new(|| Policies::new(0, Arc::default()));
    let (prompt, headers) = (PromptKey::default(), HeaderMap::new());
    let ask = Ask { prompt: &prompt, salt: None, user: None, headers: &headers };
    selection.next(route, &POLICIES, &ask, Instant::now(), rng)
}

fn walk(route: &Route, attempts: usize, seed: u64) -> Vec<Result<(String, bool), Unavailable>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut selection = Selection::default();
    (0..attempts)
        .map(|_| {
            let choice = pick(&mut selection, route, &mut rng)?;
            Ok((choice.endpoint.address().to_owned(), choice.fresh))
        })
        .collect()
}

#[test]
fn a_backend_without_endpoints_leaves_its_share_to_the_others_in_proportion() {
    let route = route(vec![backend("gone", 50, &[]), backend("a", 40, &["a"]), backend("b", 10, &["b"])]);
    let mut rng = StdRng::seed_from_u64(3);
    let (mut a, mut diverted) = (0_u32, 0_u32);
    for _ in 0..10_000 {
        let mut selection = Selection::default();
        let choice = pick(&mut selection, &route, &mut rng).expect("a choice");
        assert_ne!(choice.backend.name, "gone");
        a += u32::from(choice.backend.name == "a");
        diverted += u32::from(selection.intended() != Some(&choice.backend.name));
    }
    // Binomial: sigma is 40 for p = 0.8 and 50 for p = 0.5.
    assert!(a.abs_diff(8_000) < 200, "{a}");
    assert!(diverted.abs_diff(5_000) < 250, "{diverted}");
}

#[test]
fn attempts_go_to_untried_endpoints_of_the_backend_then_of_others_then_again() {
    let route =
        route(vec![backend("v1", 1, &["a", "b"]), backend("v2", 0, &["c"]), backend("v3", 1, &["d"])]);
    let seed = (0..).find(|seed| walk(&route, 1, *seed)[0].as_ref().expect("ok").0 != "d:1").expect("a seed");
    let walked: Vec<_> = walk(&route, 4, seed).into_iter().map(|step| step.expect("ok")).collect();
    let mut first: Vec<_> = walked[..2].iter().map(|step| step.0.as_str()).collect();
    first.sort_unstable();
    assert_eq!(first, ["a:1", "b:1"]);
    assert_eq!(walked[2], ("d:1".to_owned(), true), "a backend of weight 0 takes nothing, not even retries");
    assert!(!walked[3].1 && walked[3].0 != "d:1", "{walked:?}");
}

#[test]
fn an_ejected_endpoint_is_passed_over_unless_it_is_the_last() {
    let route = route(vec![backend("v1", 1, &["a", "b"])]);
    let now = Instant::now();
    assert!(route.backends[0].endpoints[0].record_failure(Failure::Connect, now));
    for seed in 0..20 {
        assert_eq!(walk(&route, 1, seed), [Ok(("b:1".to_owned(), true))]);
    }
    assert!(route.backends[0].endpoints[1].record_failure(Failure::Connect, now));
    let chosen: std::collections::BTreeSet<_> =
        (0..20).map(|seed| walk(&route, 1, seed)[0].clone().expect("never none").0).collect();
    assert_eq!(chosen.len(), 2, "with all ejected, all are used");
}

#[test]
fn nothing_to_choose_says_why() {
    assert_eq!(walk(&route(vec![backend("a", 0, &["a"])]), 1, 0), [Err(Unavailable::NoWeight)]);
    assert_eq!(walk(&route(vec![backend("a", 1, &[])]), 1, 0), [Err(Unavailable::NoEndpoint)]);
}

#[test]
fn fresh_endpoints_run_out() {
    let route = route(vec![backend("a", 1, &["a"]), backend("off", 0, &["b"])]);
    let mut selection = Selection::default();
    assert!(selection.has_fresh(&route));
    pick(&mut selection, &route, &mut StdRng::seed_from_u64(0)).expect("a choice");
    assert!(!selection.has_fresh(&route));
}

fn next(selection: &mut Selection, route: &Route, seed: u64) -> Result<String, Unavailable> {
    let mut rng = StdRng::seed_from_u64(seed);
    pick(selection, route, &mut rng).map(|choice| choice.endpoint.address().to_owned())
}

#[test]
fn a_retry_stays_with_the_revision_it_began_with_and_then_with_the_backend() {
    let route = route(vec![backend("v1", 1, &["a@r1", "b@r1", "c@r2"]), backend("v2", 1, &["d@r9"])]);
    for seed in 0..50 {
        let mut selection = Selection::default();
        let first = next(&mut selection, &route, seed).expect("a choice");
        let walked: Vec<_> = (0..3).map(|_| next(&mut selection, &route, seed).expect("a choice")).collect();
        match first.as_str() {
            "a:1" => assert_eq!(walked, ["b:1", "c:1", "d:1"]),
            "b:1" => assert_eq!(walked, ["a:1", "c:1", "d:1"]),
            "c:1" => assert_eq!(walked[2], "d:1"),
            other => assert_eq!(other, "d:1"),
        }
    }
}

#[test]
fn what_is_pinned_goes_on_with_its_backend_and_revision_or_nowhere() {
    let mut selection = Selection::default();
    let one = route(vec![backend("v1", 1, &["a@r1", "b@r1", "c@r2", "x"]), backend("v2", 1, &["d@r1"])]);
    selection.pin(&"v1".into(), Some("r1"));
    let walked: std::collections::BTreeSet<_> =
        (0..3).map(|seed| next(&mut selection, &one, seed).expect("a choice")).collect();
    assert_eq!(walked.into_iter().collect::<Vec<_>>(), ["a:1", "b:1", "x:1"]);
    // The weight is gone by then: what has begun may end all the same.
    let taken_back = route(vec![backend("v1", 0, &["e@r1"]), backend("v2", 1, &["d@r1"])]);
    assert_eq!(next(&mut selection, &taken_back, 0), Ok("e:1".to_owned()));
    let replaced = route(vec![backend("v1", 1, &["f@r2"]), backend("v2", 1, &["d@r1"])]);
    assert_eq!(next(&mut selection, &replaced, 0), Err(Unavailable::NoEndpoint));
    let removed = route(vec![backend("v2", 1, &["d@r1"])]);
    assert_eq!(next(&mut selection, &removed, 0), Err(Unavailable::NoEndpoint));
}

fn by_rule(ranks: &[&[(&str, u32)]]) -> Selection {
    let rank =
        |rank: &&[(&str, u32)]| rank.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
    let by = Weights::Rule(ranks.iter().map(rank).collect());
    Selection::new(Decision { by, ..Decision::default() })
}

#[test]
fn a_rules_split_stands_by_itself_and_a_target_that_is_gone_takes_nothing() {
    let route = route(vec![backend("v1", 1, &["a"]), backend("v2", 0, &["b"]), backend("v3", 0, &[])]);
    for seed in 0..20 {
        let mut selection = by_rule(&[&[("v2", 1), ("v3", 1), ("v9", 1)]]);
        assert_eq!(next(&mut selection, &route, seed), Ok("b:1".to_owned()));
        assert!(!selection.has_fresh(&route));
        assert_eq!(
            next(&mut selection, &route, seed),
            Ok("b:1".to_owned()),
            "not to v1, whoever is free there"
        );
    }
    assert_eq!(next(&mut by_rule(&[&[("v3", 1)]]), &route, 0), Err(Unavailable::NoEndpoint));
    assert_eq!(next(&mut by_rule(&[&[("v9", 1)]]), &route, 0), Err(Unavailable::NoWeight));
}

#[test]
fn the_next_rank_counts_when_the_first_has_no_endpoint_left() {
    let route = route(vec![backend("dear", 1, &["d"]), backend("cheap", 1, &["c"]), backend("gone", 1, &[])]);
    let ranks: &[&[(&str, u32)]] = &[&[("gone", 1)], &[("cheap", 1)], &[("dear", 1)]];
    let mut selection = by_rule(ranks);
    let walked: Vec<_> = (0..4).map(|seed| next(&mut selection, &route, seed).expect("a choice")).collect();
    assert_eq!(walked[..2], ["c:1", "d:1"]);
    assert_eq!(walked[2], "c:1", "then again from the first");
    assert_eq!(selection.intended().map(Name::as_str), Some("gone"));
}

fn sticky(subject: u64) -> Selection {
    Selection::new(Decision { subject: Some(subject), ..Decision::default() })
}

#[test]
fn a_subject_sticks_whatever_the_dice_say_and_comes_back_after_an_outage() {
    let both = route(vec![backend("v1", 1, &["a"]), backend("v2", 1, &["b"])]);
    let one = route(vec![backend("v1", 1, &["a"]), backend("v2", 1, &[])]);
    let mut diverted = 0;
    for subject in 0..200 {
        let place = next(&mut sticky(subject), &both, 0).expect("a choice");
        for seed in 1..5 {
            assert_eq!(next(&mut sticky(subject), &both, seed).as_ref(), Ok(&place));
        }
        let mut during = sticky(subject);
        assert_eq!(next(&mut during, &one, 0), Ok("a:1".to_owned()));
        diverted += u32::from(during.intended().is_some_and(|name| name == "v2"));
    }
    assert!((60..140).contains(&diverted), "{diverted}");
}

#[test]
fn while_pods_are_replaced_no_subject_goes_back_to_the_old_revision() {
    let stages = [
        &["a@r1", "b@r1", "c@r1"][..],
        &["a@r1", "b@r1", "c@r1", "d@r2"],
        &["a@r1", "b@r1", "d@r2"],
        &["a@r1", "d@r2", "e@r2"],
        &["d@r2", "e@r2", "f@r2"],
    ];
    let revision = |pods: &[&str], subject| {
        let route = route(vec![backend("v1", 1, pods)]);
        let mut rng = StdRng::seed_from_u64(subject);
        let mut selection = sticky(subject);
        let choice = pick(&mut selection, &route, &mut rng).expect("a choice");
        choice.endpoint.revision().expect("known").to_string()
    };
    for subject in 0..500 {
        let seen: Vec<_> = stages.iter().map(|pods| revision(pods, subject)).collect();
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!((seen[0].as_str(), seen[4].as_str()), ("r1", "r2"));
    }
}
