//! Gates of Evaluations: what is known of the canary at its revision, by itself or against stable at its own. Pure.
//!
//! An Evaluation's questions are a sample of a size that was fixed before, so its shares have the intervals of such samples. Both backends
//! are asked the same, so where it is known which questions each answered they are compared question by question. Other scores are
//! means over the questions, with an interval from their spread: the square root of 2 ln(2/alpha) standard errors to either side, a
//! bound of the normal quantile that is rather too wide.
//!
//! A run that is asked for again has a part of alpha of its own, so that asking until it passes is no way to pass.

use fairlead_crds::evaluation::{
    Evaluation, EvaluationResult, Measured, Score, ScoreResult, Standing, discordant,
};
use fairlead_rollout::{
    Bound, External, Gate, Interval, Pairs, Tally, Verdict, paired_difference, sampled_difference,
    sampled_proportion,
};

/// The part of alpha that the first finding has; nearly all, as reruns are rare.
const FIRST: f64 = 0.9;

/// A backend and what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its name in the route.
    pub backend: String,
    /// Its ModelDeployment.
    pub deployment: String,
    /// The revision of that.
    pub revision: String,
}

/// Judges one gate. `name`: of the Evaluation; `found`: as it is, if it is there; `canary`, `stable`: as far as they are known and one.
pub fn judge(
    gate: &Gate,
    (name, found): (&str, Option<&Evaluation>),
    score: Score,
    canary: Option<&Served>,
    stable: Option<&Served>,
    alpha: f64,
) -> External {
    let Some(evaluation) = found else {
        return unknown(format!("there is no Evaluation {name} in the route's namespace; create it"));
    };
    let of = |served: Option<&Served>, who: &str| {
        let served = served.ok_or_else(|| format!("it is not known which one revision {who} serves"))?;
        measured(evaluation, name, score, served)
    };
    let (mine, theirs) = match (of(canary, "the canary"), gate.bound.compares()) {
        (Err(note), _) => return unknown(note),
        (Ok(mine), false) => (mine, None),
        (Ok(mine), true) => match of(stable, "stable") {
            Err(note) => return unknown(note),
            Ok(theirs) => (mine, Some(theirs)),
        },
    };
    let (mine_run, theirs_run) = (mine.run(), theirs.as_ref().map_or(1, Found::run));
    // Each rerun of either is another finding.
    let alpha = alpha * share_of_finding(mine_run.saturating_add(theirs_run).saturating_sub(1));
    let interval = match (&theirs, gate.bound) {
        (None, _) => alone(&mine.measured, score, alpha),
        (Some(theirs), bound) => {
            let more = against(&mine, theirs, score, alpha);
            // Regressions are worse and improvements better, whichever way that is.
            let worse_is_more = !score.higher_is_better();
            let turned = matches!(bound, Bound::MaxRegression(_)) != worse_is_more;
            if turned { Interval { low: -more.high, high: -more.low } } else { more }
        }
    };
    External {
        verdict: gate.bound.verdict(interval),
        canary: Some(mine.measured.mean),
        stable: theirs.as_ref().map(|it| it.measured.mean),
        interval: Some(interval),
        counted: (mine.measured.n, theirs.map(|it| it.measured.n)),
        note: None,
    }
}

/// What an Evaluation found of one backend.
struct Found<'a> {
    result: &'a EvaluationResult,
    score: &'a ScoreResult,
    measured: Measured,
}

impl Found<'_> {
    /// Which run of the same this is, from 1 on.
    fn run(&self) -> u32 {
        self.result.run.unwrap_or(1).max(1)
    }
}

/// The share of alpha of the `number`th finding, from 1 on: 0.9, 0.05, 0.0167, …, which add up to 1 however often it is asked for.
fn share_of_finding(number: u32) -> f64 {
    let number = f64::from(number);
    if number > 1.0 { (1.0 - FIRST) / (number * (number - 1.0)) } else { FIRST }
}

fn measured<'a>(
    evaluation: &'a Evaluation,
    name: &str,
    score: Score,
    served: &Served,
) -> Result<Found<'a>, String> {
    let Served { backend, deployment, revision } = served;
    let found = |result: &'a EvaluationResult| {
        let of = result.scores.iter().find(|it| it.name == score)?;
        Some(Found { result, score: of, measured: of.measured()? })
    };
    match evaluation.standing(backend, deployment, revision) {
        Standing::Scored(result) => found(result)
            .ok_or_else(|| format!("Evaluation {name} has no question that {} is measured by", score.name())),
        Standing::Failed(why) => Err(format!("Evaluation {name} could not ask {backend}: {why}")),
        Standing::Pending => {
            Err(format!("Evaluation {name} has not asked {backend} at its revision {revision} yet"))
        }
    }
}

fn unknown(note: String) -> External {
    let note = note.chars().take(300).collect();
    External { verdict: Verdict::NotMeasured, note: Some(note), ..External::default() }
}

fn alone(measured: &Measured, score: Score, alpha: f64) -> Interval {
    match bad(measured, score) {
        Some(tally) => better(sampled_proportion(tally, alpha), 1.0, score),
        None => around(measured.mean, spread(measured), alpha),
    }
}

fn against(mine: &Found<'_>, theirs: &Found<'_>, score: Score, alpha: f64) -> Interval {
    // The same inputs, as both stand for the Evaluation as it is: question for question the same.
    if let Some((first, second)) = discordant(mine.score, theirs.score) {
        return paired_difference(Pairs { first, second, of: mine.measured.n }, alpha);
    }
    let (mine, theirs) = (&mine.measured, &theirs.measured);
    match (bad(mine, score), bad(theirs, score)) {
        (Some(mine), Some(theirs)) => better(sampled_difference(mine, theirs, alpha), 0.0, score),
        _ => around(mine.mean - theirs.mean, spread(mine) + spread(theirs), alpha),
    }
}

/// The questions that went badly, of all.
fn bad(measured: &Measured, score: Score) -> Option<Tally> {
    let hits = measured.hits?;
    let of = measured.n;
    Some(Tally { hits: if score.higher_is_better() { of.saturating_sub(hits) } else { hits }, of })
}

/// Where the score itself lies when what went badly lies there; `whole`: what both add up to.
fn better(bad: Interval, whole: f64, score: Score) -> Interval {
    if score.higher_is_better() { Interval { low: whole - bad.high, high: whole - bad.low } } else { bad }
}

/// The variance of the mean; infinite of fewer than two questions.
fn spread(measured: &Measured) -> f64 {
    // Questions are counted in thousands.
    #[allow(clippy::cast_precision_loss)]
    let n = measured.n as f64;
    if measured.n < 2 { f64::INFINITY } else { measured.variance / n }
}

fn around(mean: f64, variance: f64, alpha: f64) -> Interval {
    let half = (2.0 * (2.0 / alpha).ln() * variance).sqrt();
    Interval { low: mean - half, high: mean + half }
}

#[cfg(test)]
mod tests {
    use fairlead_rollout::Metric;
    use serde_json::{Value, json};

    use super::*;

    fn evaluation(scores: &[(&str, Value)]) -> Evaluation {
        let results: Vec<Value> = scores
            .iter()
            .map(|(backend, scores)| {
                json!({"backend": backend, "modelDeployment": format!("m-{backend}"), "revision": "r1", "inputs": "now",
                    "questions": "q", "outcome": "Completed", "asked": 400, "scores": scores})
            })
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "Evaluation", "metadata": {"name": "faq", "generation": 1},
            "spec": {"questions": {"configMapRef": {"name": "q", "key": "q.jsonl"}}, "target": {"route": "chat"}},
            "status": {"observedGeneration": 1, "inputs": "now", "results": results},
        }))
        .unwrap()
    }

    fn served(backend: &str) -> Served {
        Served { backend: backend.into(), deployment: format!("m-{backend}"), revision: "r1".into() }
    }

    fn verdict(found: &Evaluation, score: Score, bound: Bound) -> Verdict {
        let gate = Gate { metric: Metric::Evaluation, quantile: 0.5, bound, of: None };
        let (canary, stable) = (served("v2"), served("v1"));
        judge(&gate, ("faq", Some(found)), score, Some(&canary), Some(&stable), 0.01).verdict
    }

    fn hits(name: &str, hits: u64) -> Value {
        json!([{"name": name, "n": 400, "hits": hits, "mean": "0"}])
    }

    #[test]
    fn better_and_worse_are_what_the_score_means_by_it() {
        let found = evaluation(&[("v1", hits("exactMatch", 300)), ("v2", hits("exactMatch", 380))]);
        let exact = |bound| verdict(&found, Score::ExactMatch, bound);
        assert_eq!(exact(Bound::MinImprovement(0.05)), Verdict::Pass);
        assert_eq!(exact(Bound::MinImprovement(0.4)), Verdict::Fail);
        assert_eq!(exact(Bound::MinImprovement(0.2)), Verdict::Undecided);
        assert_eq!(exact(Bound::MaxRegression(0.01)), Verdict::Pass);
        assert_eq!(exact(Bound::Min(0.8)), Verdict::Pass);
        assert_eq!(exact(Bound::Max(0.8)), Verdict::Fail);
        let found = evaluation(&[("v1", hits("errors", 4)), ("v2", hits("errors", 100))]);
        let errors = |bound| verdict(&found, Score::Errors, bound);
        assert_eq!(errors(Bound::MaxRegression(0.05)), Verdict::Fail);
        assert_eq!(errors(Bound::MinImprovement(0.0)), Verdict::Fail);
    }

    /// So many questions, of which those with `hit` were hits.
    fn answered(of: usize, run: u32, hit: impl Fn(usize) -> bool) -> (u32, Value) {
        let hits: Vec<bool> = (0..of).map(hit).collect();
        let count = hits.iter().filter(|hit| **hit).count();
        let pattern = fairlead_crds::evaluation::pattern(&hits);
        (run, json!([{"name": "contains", "n": of, "hits": count, "mean": "0", "pattern": pattern}]))
    }

    fn judged(stable: (u32, Value), canary: (u32, Value), bound: Bound) -> External {
        let mut found = evaluation(&[("v1", stable.1), ("v2", canary.1)]);
        let results = &mut found.status.as_mut().unwrap().results;
        (results[0].run, results[1].run) = (Some(stable.0), Some(canary.0));
        let gate = Gate { metric: Metric::Evaluation, quantile: 0.5, bound, of: None };
        let (canary, stable) = (served("v2"), served("v1"));
        judge(&gate, ("faq", Some(&found)), Score::Contains, Some(&canary), Some(&stable), 0.004)
    }

    #[test]
    fn who_was_asked_the_same_is_compared_question_by_question() {
        // The canary misses twelve that stable answers, and gains none.
        let stable = || answered(100, 1, |at| at < 70);
        let canary = || answered(100, 1, |at| at < 58);
        let bound = Bound::MaxRegression(0.0);
        let paired = judged(stable(), canary(), bound);
        assert_eq!(paired.verdict, Verdict::Fail, "{paired:?}");
        // As if they had been asked different questions: not enough to tell.
        let without = |(run, mut scores): (u32, Value)| {
            scores[0].as_object_mut().unwrap().remove("pattern");
            (run, scores)
        };
        let unpaired = judged(without(stable()), canary(), bound);
        assert_eq!(unpaired.verdict, Verdict::Undecided, "{unpaired:?}");
        // As many hits of other questions than stable's are no sign of being alike.
        let others = judged(stable(), answered(100, 1, |at| at >= 42), bound);
        assert_eq!(others.verdict, Verdict::Undecided, "{others:?}");
        let same = judged(stable(), stable(), Bound::MaxRegression(0.1));
        assert_eq!(same.verdict, Verdict::Pass, "{same:?}");
        // Better and worse turn with the score.
        assert_eq!(judged(canary(), stable(), Bound::MinImprovement(0.0)).verdict, Verdict::Pass);
    }

    #[test]
    fn asking_again_is_no_fresh_chance() {
        let shares: f64 = (1..100_000).map(share_of_finding).sum();
        assert!(shares <= 1.0 && shares > 0.999_9, "{shares}");
        let width = |stable: u32, canary: u32| {
            let interval = judged(
                answered(100, stable, |at| at < 70),
                answered(100, canary, |at| at < 67),
                Bound::MaxRegression(0.0),
            )
            .interval
            .unwrap();
            interval.high - interval.low
        };
        assert!(width(1, 1) < width(1, 2) && width(1, 2) < width(1, 9));
        assert_eq!(width(1, 3), width(2, 2), "a rerun of either is another finding");
        assert_eq!(width(0, 1), width(1, 1), "as an older operator left it");
    }

    #[test]
    fn means_are_judged_by_their_spread() {
        let latency = |mean: &str| json!([{"name": "latency", "n": 100, "mean": mean, "variance": "0.04"}]);
        let found = evaluation(&[("v1", latency("1.0")), ("v2", latency("1.5"))]);
        let judged = |bound| verdict(&found, Score::Latency, bound);
        assert_eq!(judged(Bound::MaxRegression(0.1)), Verdict::Fail);
        assert_eq!(judged(Bound::MaxRegression(0.7)), Verdict::Pass);
        assert_eq!(judged(Bound::MaxRegression(0.5)), Verdict::Undecided);
        assert_eq!(judged(Bound::Max(2.0)), Verdict::Pass);
        let one = json!([{"name": "latency", "n": 1, "mean": "9"}]);
        assert_eq!(verdict(&evaluation(&[("v2", one)]), Score::Latency, Bound::Max(1.0)), Verdict::Undecided);
    }

    #[test]
    fn what_is_not_known_is_told_and_never_passes() {
        let found = evaluation(&[("v2", hits("exactMatch", 380))]);
        let gate =
            Gate { metric: Metric::Evaluation, quantile: 0.5, bound: Bound::MaxRegression(0.5), of: None };
        let (canary, stable) = (served("v2"), served("v1"));
        let note = |found: Option<&Evaluation>, score, canary: Option<&Served>| {
            let judged = judge(&gate, ("faq", found), score, canary, Some(&stable), 0.01);
            assert_eq!(judged.verdict, Verdict::NotMeasured);
            judged.note.unwrap()
        };
        assert!(note(None, Score::ExactMatch, Some(&canary)).contains("no Evaluation faq"));
        assert!(note(Some(&found), Score::ExactMatch, Some(&canary)).contains("has not asked v1"));
        assert!(note(Some(&found), Score::F1, Some(&canary)).contains("no question that f1"));
        assert!(note(Some(&found), Score::ExactMatch, None).contains("not known which one revision"));
    }
}
