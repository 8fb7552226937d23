use super::*;

const INTERVAL: Duration = Duration::from_secs(30);

fn epoch() -> Epoch {
    let key = EpochKey { uid: "u".into(), fingerprint: "f".into(), epoch: 1 };
    Epoch::new(key, INTERVAL, &["v1", "v2"])
}

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
fn an_answered_request_is_counted_in_the_step_and_in_both_stretches() {
    let epoch = epoch();
    let place = epoch.begin("v2", None, true, at(&epoch, 1.0)).expect("counted");
    epoch.add(&place, Fact::FirstToken(0.3));
    epoch.add(&place, Fact::BetweenTokens(0.02));
    epoch.add(&place, end(Ended::Answered(Some(12.0)), 0.6, false));
    let BackendReport { step, recent } = told(&epoch, "v2", 2.0);
    assert_eq!(step, recent);
    assert_eq!((step.requests, step.errors), (1, 0));
    let histograms = [
        &step.time_to_first_token,
        &step.inter_token_latency,
        &step.end_to_end_latency,
        &step.tokens_per_answer,
    ];
    assert_eq!(histograms.map(Histogram::count), [1; 4]);
    assert_eq!((step.unanswered.count(), step.unfinished.count()), (0, 0));
    assert_eq!(told(&epoch, "v1", 2.0), BackendReport::default());
}

#[test]
fn what_is_recent_is_what_began_in_this_interval_or_the_last() {
    let epoch = epoch();
    for seconds in [1.0, 29.0, 31.0, 61.0] {
        let place = epoch.begin("v2", None, false, at(&epoch, seconds)).expect("counted");
        epoch.add(&place, end(Ended::Answered(None), 0.1, false));
        let BackendReport { step, recent } = told(&epoch, "v2", seconds + 0.5);
        let expected = match seconds {
            1.0 => (1, 1),
            29.0 => (2, 2),
            31.0 => (3, 3),
            _ => (4, 2),
        };
        assert_eq!((step.requests, recent.requests), expected, "{seconds}");
    }
    assert_eq!(told(&epoch, "v2", 400.0).recent.requests, 0);
    assert_eq!(told(&epoch, "v2", 400.0).step.requests, 4);
    // A request that outlives its stretch is counted in the step alone.
    let place = epoch.begin("v2", None, false, at(&epoch, 401.0)).expect("counted");
    told(&epoch, "v2", 500.0);
    epoch.add(&place, end(Ended::Answered(None), 99.0, false));
    assert_eq!((told(&epoch, "v2", 501.0).step.requests, told(&epoch, "v2", 501.0).recent.requests), (5, 0));
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
