//! Answers whose scores were worked out by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fairlead_crds::evaluation::{Ignored, Score};
use fairlead_evaluation::grade::Reply;
use fairlead_evaluation::{Grade, Question, Rules, grade, parse};
use serde_json::{Value, json};

fn question(value: &Value) -> Question {
    parse(&value.to_string()).unwrap().remove(0)
}

fn graded(expected: &Value, answer: &str, rules: &Rules) -> Grade {
    grade(&question(&json!({"question": "?", "expected": expected})), Reply::Text(answer), rules)
}

/// exactMatch, contains, f1.
fn text_scores(expected: &Value, answer: &str) -> (bool, bool, f64) {
    let grade = graded(expected, answer, &Rules::default());
    let f1 = (grade.f1.unwrap() * 1000.0).round() / 1000.0;
    (grade.exact_match.unwrap(), grade.contains.unwrap(), f1)
}

#[test]
fn answers_are_compared_as_in_squad() {
    for (expected, answer, scores) in [
        // The same, whatever the case, the punctuation and the articles.
        (json!("Denver Broncos"), "The Denver Broncos.", (true, true, 1.0)),
        (json!("the cat sat"), "A cat sat!", (true, true, 1.0)),
        (json!("state-of-the-art"), "stateoftheart", (true, true, 1.0)),
        (json!("12,500"), "12500", (true, true, 1.0)),
        (json!("$5"), "5", (true, true, 1.0)),
        (json!("it's late"), "It’s late", (true, true, 1.0)),
        // More than was expected: precision 2/5, recall 1.
        (json!("red wine"), "They drank red wine there", (false, true, 0.571)),
        // Less: precision 1, recall 1/2.
        (json!("red wine"), "wine", (false, false, 0.667)),
        // The same words in another order.
        (json!("red wine"), "wine red", (false, false, 1.0)),
        // A word counts as often as it stands in both: 1 of 3 and 1 of 1.
        (json!("no"), "no no no", (false, true, 0.5)),
        (json!("x"), "y", (false, false, 0.0)),
        (json!("x"), "", (false, false, 0.0)),
        // Not a part of a word.
        (json!("7"), "17", (false, false, 0.0)),
        (json!("7"), "It is 7, not 17.", (false, true, 0.333)),
    ] {
        assert_eq!(text_scores(&expected, answer), scores, "{expected} and {answer:?}");
    }
}

#[test]
fn the_best_of_several_expected_answers_counts() {
    let expected = json!(["Paris", "the city of Paris", "City of Light"]);
    assert_eq!(text_scores(&expected, "City of Paris"), (true, true, 1.0));
    assert_eq!(text_scores(&expected, "It is Paris"), (false, true, 0.5));
    assert_eq!(text_scores(&expected, "the light of the city"), (false, false, 1.0));
    assert_eq!(text_scores(&expected, "London"), (false, false, 0.0));
}

#[test]
fn every_script_is_compared() {
    for (expected, answer, scores) in [
        ("Ärzte", "ÄRZTE", (true, true, 1.0)),
        // Composed and decomposed.
        ("caf\u{e9}", "cafe\u{301}", (true, true, 1.0)),
        // Full-width, ligature, superscript.
        ("12 m2 office", "１２ m² oﬃce", (true, true, 1.0)),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσεύς", (false, false, 0.0)),
        ("ΟΔΥΣΣΕΥΣ", "Οδυσσευς", (true, true, 1.0)),
        // Written without spaces: a character is a word. 2 of 4 and 2 of 2.
        ("北京", "在北京。", (false, true, 0.8)),
        ("北京", "北京。", (true, true, 1.0)),
        ("東京タワー", "「東京タワー」", (true, true, 1.0)),
        // Other punctuation separates words.
        ("ring that guides", "a ring—that «guides»…", (true, true, 1.0)),
        ("Привет, мир", "привет мир!", (true, true, 1.0)),
        ("مرحبا", "«مرحبا»،", (true, true, 1.0)),
    ] {
        assert_eq!(text_scores(&json!(expected), answer), scores, "{expected} and {answer:?}");
    }
}

#[test]
fn a_step_that_would_leave_nothing_is_left_out() {
    // The choice A is not the article.
    assert_eq!(text_scores(&json!("A"), "A."), (true, true, 1.0));
    assert_eq!(text_scores(&json!("A"), "B"), (false, false, 0.0));
    assert_eq!(text_scores(&json!("A"), ""), (false, false, 0.0));
    assert_eq!(text_scores(&json!("A"), "..."), (false, false, 0.0));
    assert_eq!(text_scores(&json!("+"), "+"), (true, true, 1.0));
    assert_eq!(text_scores(&json!("+"), "-"), (false, false, 0.0));
}

#[test]
fn what_is_ignored_can_be_chosen() {
    let exact = |ignore: &[Ignored], expected: &str, answer: &str| {
        let rules = Rules::new(Some(ignore), &[] as &[&str]);
        graded(&json!(expected), answer, &rules).exact_match.unwrap()
    };
    assert!(exact(&[], "A rope.", " A  rope.\n"), "white space never counts");
    assert!(!exact(&[], "A rope.", "a rope."));
    assert!(exact(&[Ignored::Case], "A rope.", "a rope."));
    assert!(!exact(&[Ignored::Case], "A rope.", "a rope"));
    assert!(exact(&[Ignored::Punctuation], "A rope.", "A rope"));
    assert!(exact(&[Ignored::Articles], "The rope", "rope"));
    assert!(!exact(&[Ignored::Articles], "The rope", "Rope"));
    let cited = "[2] A fairlead guides a rope [1, 3].";
    assert!(!exact(&[Ignored::Punctuation], "A fairlead guides a rope", cited));
    assert!(exact(&[Ignored::Punctuation, Ignored::Citations], "A fairlead guides a rope", cited));
    assert!(exact(&[Ignored::Citations], "see [note] and [12345]", "see [note] and [12345]"));
    // What is left of punctuation stands by itself.
    let kept = graded(&json!("a rope"), "It guides a rope.", &Rules::new(Some(&[]), &[] as &[&str]));
    assert_eq!(kept.contains, Some(true));
}

#[test]
fn refusals_are_told_from_answers() {
    let rules = Rules::default();
    let refused = |rules: &Rules, answer| {
        let absent = question(&json!({"question": "?", "refusal": true}));
        let wanted = question(&json!({"question": "?", "expected": "x"}));
        let grades = (grade(&absent, Reply::Text(answer), rules), grade(&wanted, Reply::Text(answer), rules));
        assert_eq!(grades.0, Grade { refusal: grades.1.false_refusal, ..Grade::default() }, "{answer}");
        grades.0.refusal.unwrap()
    };
    for answer in [
        "The context does not contain the answer.",
        "I don’t know.",
        "I'm sorry, but I cannot answer that",
        "THE PASSAGES DO NOT SAY.",
        "There is not enough information to tell.",
    ] {
        assert!(refused(&rules, answer), "{answer}");
    }
    for answer in ["A ring that guides a rope.", "", "She knows.", "The context is this."] {
        assert!(!refused(&rules, answer), "{answer}");
    }
    let own = Rules::new(None, &["weiß ich nicht"]);
    assert!(refused(&own, "Das weiß ich nicht!"));
    assert!(!refused(&own, "I don't know."));
    let absent = question(&json!({"question": "?", "refusal": true}));
    assert_eq!(grade(&absent, Reply::Refused, &rules).refusal, Some(true));
    assert_eq!(grade(&absent, Reply::Nothing, &rules).refusal, Some(false));
}

#[test]
fn a_question_that_got_nothing_is_answered_wrongly() {
    let asked = question(&json!({"question": "?", "expected": "x"}));
    for reply in [Reply::Nothing, Reply::Refused] {
        let grade = grade(&asked, reply, &Rules::default());
        assert_eq!((grade.exact_match, grade.contains, grade.f1), (Some(false), Some(false), Some(0.0)));
        assert_eq!(grade.false_refusal, Some(reply == Reply::Refused));
    }
}

#[test]
fn a_question_may_have_a_part_in_some_scores_only() {
    let asked = question(&json!({"question": "?", "expected": "rope", "match": ["contains"]}));
    let grade = grade(&asked, Reply::Text("a rope it is"), &Rules::default());
    assert_eq!((grade.exact_match, grade.contains, grade.f1), (None, Some(true), None));
    assert!(!Score::Errors.higher_is_better());
}
