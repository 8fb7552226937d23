use fairlead_rollout::{Counts, Histogram};

use super::*;

const INTERVAL: Duration = Duration::from_secs(30);

fn epoch() -> Epoch {
    let key = EpochKey { uid: "u".into(), fingerprint: "f".into(), epoch: 1 };
    Epoch::new(key, INTERVAL, &["v1", "v2"], Timestamp::from_second(1_800_000_000).expect("a time"))
}

/// The number of the interval that the epoch begins in; a multiple of 64.
const FIRST: i64 = 60_000_000;

/// So many seconds after the epoch began, on both clocks; it began with an interval.
fn at(epoch: &Epoch, seconds: f64) -> (Instant, Timestamp) {
    let millis = 1_800_000_000_000_i64 + Duration::from_secs_f64(seconds).as_millis() as i64;
    (epoch.begun + Duration::from_secs_f64(seconds), Timestamp::from_millisecond(millis).expect("a time"))
}

fn told(epoch: &Epoch, backend: &str, seconds: f64) -> BackendReport {
    let (now, wall) = at(epoch, seconds);
    epoch.report(None, now, wall).remove(backend).expect("a backend")
}

fn end(end: Ended, seconds: f64, waiting: bool) -> Fact {
    Fact::End { end, seconds, waiting }
}

#[test]
fn an_answered_request_is_counted_in_the_step_and_in_what_began_before() {
    let epoch = epoch();
    let place = epoch.begin("v2", None, true, at(&epoch, 31.0)).expect("counted");
    epoch.add(&place, Fact::FirstToken(0.3));
    epoch.add(&place, Fact::BetweenTokens(0.02));
    epoch.add(&place, end(Ended::Answered(Some(12.0)), 0.6, false));
    let BackendReport { step, stretches } = told(&epoch, "v2", 61.0);
    assert_eq!(
        stretches,
        BTreeMap::from([(FIRST + 1, step.clone()), (FIRST + 2, Counts::default())]),
        "the one that began with its interval, and not the next"
    );
    assert_eq!((step.requests, step.errors), (1, 0));
    let histograms = [
        &step.time_to_first_token,
        &step.inter_token_latency,
        &step.end_to_end_latency,
        &step.tokens_per_answer,
    ];
    assert_eq!(histograms.map(Histogram::count), [1; 4]);
    assert_eq!((step.unanswered.count(), step.unfinished.count()), (0, 0));
    assert_eq!(told(&epoch, "v1", 2.0).step, Counts::default());
}

/// So many answered requests, in the middle of an interval of that number after the first.
fn answered(epoch: &Epoch, subject: Option<u64>, interval: i64) -> Option<Place> {
    let seconds = Duration::from_secs(30).as_secs_f64() * interval as f64 + 15.0;
    let place = epoch.begin("v2", subject, false, at(epoch, seconds))?;
    epoch.add(&place, end(Ended::Answered(None), 0.1, false));
    Some(place)
}

fn in_interval(epoch: &Epoch, interval: i64) -> BackendReport {
    told(epoch, "v2", 30.0 * interval as f64 + 29.0)
}

#[test]
fn every_stretch_counts_what_began_since_it_did() {
    let epoch = epoch();
    // As many requests in each interval as its number says.
    for interval in 0..=700_i64 {
        for _ in 0..interval {
            assert!(answered(&epoch, None, interval).is_some());
        }
        let BackendReport { step, stretches } = in_interval(&epoch, interval);
        let since = |begun: i64| (begun..=interval).sum::<i64>() as u64;
        assert_eq!(step.requests, since(0));
        for (begun, counts) in &stretches {
            assert_eq!(counts.requests, since(begun - FIRST), "{begun} in {interval}");
        }
        assert!(stretches.len() <= 11 && (interval == 0 || stretches.contains_key(&(FIRST + interval))));
    }
    let slots = &epoch.backends[1].1;
    assert!(slots.iter().all(|slot| lock(slot).cells() <= 12), "memory is bounded");
}

#[test]
fn of_a_subject_each_stretch_counts_the_first_request() {
    let epoch = epoch();
    let mut seen: Vec<(u64, i64)> = Vec::new();
    let mut mixed = 1_u64;
    for interval in 0..=150_i64 {
        for _ in 0..6 {
            mixed = mixed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Few enough that none falls on another's bit.
            let subject = (mixed >> 33) % 40;
            answered(&epoch, Some(subject), interval);
            seen.push((subject, interval));
        }
        let BackendReport { step, stretches } = in_interval(&epoch, interval);
        let since = |begun: i64| {
            let subjects = seen.iter().filter(|(_, interval)| *interval >= begun).map(|(subject, _)| subject);
            subjects.collect::<std::collections::BTreeSet<_>>().len() as u64
        };
        assert_eq!(step.requests, since(0));
        for (begun, counts) in &stretches {
            assert_eq!(counts.requests, since(begun - FIRST), "{begun} in {interval}");
        }
    }
}

#[test]
fn what_outlives_its_stretch_is_counted_in_those_that_are_left() {
    let epoch = epoch();
    answered(&epoch, None, 2);
    let place = epoch.begin("v2", None, true, at(&epoch, 155.0)).expect("counted");
    let waits =
        |stretches: &BTreeMap<i64, Counts>, begun: i64| stretches[&(FIRST + begun)].unanswered.count();
    let BackendReport { step, stretches } = in_interval(&epoch, 5);
    assert_eq!([4, 5].map(|begun| waits(&stretches, begun)), [1, 1]);
    assert_eq!(step.unanswered.count(), 1);
    epoch.add(&place, end(Ended::Answered(None), 150.0, true));
    let BackendReport { step, stretches } = in_interval(&epoch, 10);
    assert!(!stretches.contains_key(&(FIRST + 5)), "it is over");
    assert_eq!([4, 6, 10].map(|begun| stretches[&(FIRST + begun)].requests), [1, 0, 0]);
    assert_eq!((step.requests, step.unanswered.count(), step.unfinished.count()), (2, 0, 0));
    // A subject's second request counts in no stretch that is left, and ends in none.
    answered(&epoch, Some(1), 10);
    let again = epoch.begin("v2", Some(1), false, at(&epoch, 345.0)).expect("counted in 11");
    in_interval(&epoch, 40);
    epoch.add(&again, end(Ended::Answered(None), 900.0, false));
    assert_eq!(in_interval(&epoch, 40).step.requests, 3);
}

#[test]
fn a_clock_that_jumps_loses_nothing_of_the_step() {
    let epoch = epoch();
    for interval in [0, 1, 2, 1, 900, 3, 4, 5, 4, 6] {
        answered(&epoch, None, interval);
    }
    let BackendReport { step, stretches } = in_interval(&epoch, 6);
    assert_eq!(step.requests, 10);
    assert_eq!(stretches[&(FIRST + 6)].requests, 1);
    assert!(stretches.keys().all(|begun| *begun <= FIRST + 6), "{stretches:?}");
}

#[test]
fn what_hangs_is_told_by_its_age_and_what_ends_is_not() {
    let epoch = epoch();
    let streamed = epoch.begin("v2", None, true, at(&epoch, 1.0)).expect("counted");
    let whole = epoch.begin("v2", None, false, at(&epoch, 1.0)).expect("counted");
    let ages = |seconds: f64| {
        let step = told(&epoch, "v2", seconds).step;
        (step.unanswered.at_least(4.0), step.unfinished.at_least(4.0))
    };
    assert_eq!((ages(3.0), ages(6.0)), ((0, 0), (1, 2)));
    epoch.add(&streamed, Fact::FirstToken(5.5));
    assert_eq!(ages(7.0), (0, 2));
    epoch.add(&streamed, end(Ended::Answered(None), 6.5, false));
    epoch.add(&whole, end(Ended::Void, 6.5, false));
    assert_eq!(ages(8.0), (0, 0));
    assert_eq!(told(&epoch, "v2", 8.0).step.requests, 1, "what says nothing of the variant is not counted");
}

#[test]
fn a_client_that_leaves_has_waited_for_so_long() {
    let epoch = epoch();
    let place = epoch.begin("v2", None, true, at(&epoch, 1.0)).expect("counted");
    epoch.add(&place, end(Ended::Left, 10.0, true));
    let Counts { requests, unanswered, unfinished, .. } = told(&epoch, "v2", 100.0).step;
    assert_eq!((requests, unanswered.at_least(9.0), unfinished.at_least(9.0)), (0, 1, 1));
    assert_eq!(unanswered.at_least(11.0), 0, "it does not grow older");
}

#[test]
fn what_fails_is_an_error_and_infinite() {
    let epoch = epoch();
    let place = epoch.begin("v2", None, true, at(&epoch, 1.0)).expect("counted");
    epoch.add(&place, end(Ended::Failed { between_unknown: false }, 0.1, true));
    let place = epoch.begin("v2", None, true, at(&epoch, 1.0)).expect("counted");
    epoch.add(&place, Fact::FirstToken(0.2));
    epoch.add(&place, end(Ended::Failed { between_unknown: true }, 0.5, false));
    let step = told(&epoch, "v2", 2.0).step;
    assert_eq!((step.requests, step.errors), (2, 2));
    let endless = |histogram: &Histogram| histogram.at_least(10_000.0);
    assert_eq!(
        [&step.time_to_first_token, &step.end_to_end_latency, &step.inter_token_latency].map(endless),
        [1, 2, 1]
    );
}

#[test]
fn of_a_subject_the_first_request_counts_and_at_one_gateway() {
    let epoch = epoch();
    let (mut counted, subjects) = (0, 640_u64);
    for subject in (0..subjects).chain(0..subjects) {
        if let Some(place) = epoch.begin("v2", Some(subject), false, at(&epoch, 1.0)) {
            epoch.add(&place, end(Ended::Answered(None), 0.1, false));
            counted += 1;
        }
    }
    assert!((600..=subjects).contains(&counted), "{counted}");
    let (now, wall) = at(&epoch, 2.0);
    let of = |parts| epoch.report(parts, now, wall)["v2"].step.requests;
    let thirds: Vec<u64> = (0..3).map(|part| of(Some((part, 3)))).collect();
    assert_eq!(thirds.iter().sum::<u64>(), counted);
    assert!(thirds.iter().all(|third| *third > 150), "{thirds:?}");
    assert_eq!(of(None), counted);
}

#[test]
fn many_threads_lose_nothing() {
    let epoch = epoch();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let place = epoch.begin("v1", None, true, at(&epoch, 1.0)).expect("counted");
                    epoch.add(&place, Fact::FirstToken(0.1));
                    epoch.add(&place, end(Ended::Answered(Some(3.0)), 0.2, false));
                }
            });
        }
    });
    let step = told(&epoch, "v1", 2.0).step;
    assert_eq!(
        (step.requests, step.time_to_first_token.count(), step.unfinished.count()),
        (10_000, 10_000, 0)
    );
}
