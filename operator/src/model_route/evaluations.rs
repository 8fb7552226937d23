//! Gates of Evaluations: what is known of the canary at its revision, by itself or against stable at its own. Pure.
//!
//! An Evaluation's questions are a sample of a size that was fixed before, so its shares have the intervals of such samples. Other scores are means over the questions, with an interval from their
//! spread: the square root of 2 ln(2/alpha) standard errors to either side, a bound of the normal quantile that is rather too wide.

use fairlead_crds::evaluation::{Evaluation, Measured, Score, Standing};
use fairlead_rollout::{
    Bound, External, Gate, Interval, Tally, Verdict, sampled_difference, sampled_proportion,
};

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
    let interval = match (&theirs, gate.bound) {
        (None, _) => alone(&mine, score, alpha),
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
        canary: Some(mine.mean),
        stable: theirs.map(|it| it.mean),
        interval: Some(interval),
        counted: (mine.n, theirs.map(|it| it.n)),
        note: None,
    }
}

fn measured(evaluation: &Evaluation, name: &str, score: Score, served: &Served) -> Result<Measured, String> {
    let Served { backend, deployment, revision } = served;
    match evaluation.standing(backend, deployment, revision) {
        Standing::Scored(result) => result
            .measured(score)
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

fn against(mine: &Measured, theirs: &Measured, score: Score, alpha: f64) -> Interval {
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
