//! A run's arithmetic, and how its items are kept within a size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fairlead_crds::evaluation::Score;
use fairlead_evaluation::items::{Item, write};
use fairlead_evaluation::{Grade, summarize};
use proptest::prelude::*;
use serde_json::Value;

fn item(id: usize, exact: bool, f1: f64, seconds: f64) -> Item {
    Item {
        id: id.to_string(),
        answer: Some("An answer.".to_owned()),
        grade: Grade {
            exact_match: Some(exact),
            contains: Some(exact),
            f1: Some(f1),
            refusal: None,
            false_refusal: Some(false),
        },
        seconds: Some(seconds),
        attempts: 1,
        revision: Some("r1".to_owned()),
        ..Item::default()
    }
}

#[test]
fn a_run_is_counts_means_variances_and_quantiles() {
    let mut items: Vec<Item> =
        (1..=8).map(|n| item(n, n <= 6, [1.0, 0.5][n % 2], f64::from(u8::try_from(n).unwrap()))).collect();
    items.push(Item {
        id: "absent".to_owned(),
        grade: Grade { refusal: Some(true), ..Grade::default() },
        attempts: 1,
        seconds: Some(0.5),
        answer: Some("I don't know".to_owned()),
        ..Item::default()
    });
    items.push(Item {
        id: "broken".to_owned(),
        error: Some("503".to_owned()),
        grade: Grade {
            exact_match: Some(false),
            contains: Some(false),
            f1: Some(0.0),
            refusal: None,
            false_refusal: Some(false),
        },
        attempts: 4,
        ..Item::default()
    });
    let summary = summarize(&items, &[]);
    let told: Vec<(Score, u32, Option<u32>, &str)> =
        summary.scores.iter().map(|score| (score.name, score.n, score.hits, score.mean.as_str())).collect();
    assert_eq!(
        told,
        [
            (Score::ExactMatch, 9, Some(6), "0.666667"),
            (Score::Contains, 9, Some(6), "0.666667"),
            // Four halves, four ones and a nought.
            (Score::F1, 9, None, "0.666667"),
            (Score::Refusal, 1, Some(1), "1"),
            (Score::FalseRefusal, 9, Some(0), "0"),
            (Score::Latency, 9, None, "4.055556"),
            (Score::Errors, 10, Some(1), "0.1"),
        ]
    );
    assert_eq!(summary.scores[2].variance.as_deref(), Some("0.125"));
    // Six hits and three misses; means have none.
    let patterns = [0, 2].map(|at| summary.scores[at].pattern.as_deref());
    assert_eq!(patterns, [Some("fc0"), None]);
    let latency = summary.latency.unwrap();
    assert_eq!([latency.p50, latency.p90, latency.p99, latency.max], ["4", "8", "8", "8"]);
    assert_eq!((summary.asked, summary.revisions["r1"]), (10, 8));
}

#[test]
fn the_scores_that_are_wanted_come_in_their_order_and_errors_always() {
    let names = |wanted: &[Score]| -> Vec<Score> {
        summarize(&[item(1, true, 1.0, 0.1)], wanted).scores.iter().map(|score| score.name).collect()
    };
    assert_eq!(names(&[Score::F1, Score::ExactMatch]), [Score::F1, Score::ExactMatch, Score::Errors]);
    assert_eq!(names(&[Score::Errors, Score::F1]), [Score::Errors, Score::F1]);
    assert_eq!(names(&[Score::Refusal]), [Score::Errors], "no question has a part in it");
    let one = summarize(&[item(1, true, 1.0, 0.1)], &[Score::F1]);
    assert_eq!(one.scores[0].variance, None);
}

#[test]
fn a_summary_fits_a_termination_message() {
    let mut items: Vec<Item> =
        (0..10_000).map(|n| item(n, n % 3 == 0, 0.333_333_333, 12_345.678_901)).collect();
    for (index, item) in items.iter_mut().enumerate() {
        item.revision = Some(format!("{:063}", index % 9));
    }
    // Too many for patterns; just as many as fit; few.
    for (questions, patterns, limit) in [(10_000, 0, 2048), (9_600, 1, 4096), (1_900, 4, 4096), (29, 4, 2048)]
    {
        let summary = summarize(&items[..questions], &[]);
        let text = serde_json::to_string(&summary).unwrap();
        assert!(text.len() < limit, "{questions}: {} bytes", text.len());
        let told = summary.scores.iter().filter(|score| score.pattern.is_some()).count();
        assert_eq!(told, patterns, "{questions}");
    }
}

#[test]
fn items_that_fit_are_kept_whole_and_others_are_marked() {
    let mut items: Vec<Item> = (0..50).map(|n| item(n, true, 1.0, 0.1)).collect();
    items[7].answer = Some("ö".repeat(10_000));
    let whole = write(&items, 1 << 20);
    assert!(!whole.truncated);
    let read: Vec<Item> = whole.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, items);

    let cut = write(&items, 17_000);
    assert!(cut.truncated && cut.text.len() <= 17_000);
    let lines: Vec<Value> = cut.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 50, "every question is there");
    assert!(lines[7]["answer"].as_str().unwrap().ends_with("… [cut, 10000 characters]"));
    assert_eq!(lines[8]["answer"], "An answer.", "short answers are left alone");

    let fewer = write(&items, 2_000);
    assert!(fewer.truncated && fewer.text.len() <= 2_000);
    let last: Value = serde_json::from_str(fewer.text.lines().last().unwrap()).unwrap();
    let kept = u64::try_from(fewer.text.lines().count() - 1).unwrap();
    assert_eq!((&last["truncated"], last["leftOut"].as_u64().unwrap()), (&Value::Bool(true), 50 - kept));
}

proptest! {
    #[test]
    fn items_never_exceed_their_size(lengths in prop::collection::vec(0_usize..3000, 0..40), limit in 0_usize..60_000) {
        let items: Vec<Item> = lengths
            .iter()
            .enumerate()
            .map(|(n, length)| Item { answer: Some("é".repeat(*length)), ..item(n, true, 1.0, 0.1) })
            .collect();
        let written = write(&items, limit);
        prop_assert!(written.text.len() <= limit);
        for line in written.text.lines() {
            prop_assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
        }
    }
}
