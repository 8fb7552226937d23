//! Reads an Evaluation for whoever decides by it: what is known of a backend at a revision. Pure; called by the operator's
//! rollouts and by tools that show them.

use super::scoring::Score;
use super::status::{EvaluationResult, Outcome};
use super::{Evaluation, ScoreResult};

/// What is known of one backend at one revision, for the questions and the spec as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing<'a> {
    /// It has answered.
    Scored(&'a EvaluationResult),
    /// It could not be asked; the message says why. It will not be asked again by itself.
    Failed(&'a str),
    /// It has not been asked yet, or is being asked.
    Pending,
}

/// One score, in the form that an interval is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Questions that have a part in it; at least 1.
    pub n: u64,
    /// Of a score that is a share: how many of them.
    pub hits: Option<u64>,
    /// The mean over them: a share between 0 and 1, or seconds.
    pub mean: f64,
    /// The sample variance over them (divided by n - 1); of a share the one that follows from `hits`; 0 where n is 1.
    pub variance: f64,
}

impl Evaluation {
    /// What is known of `backend` while its ModelDeployment is `model_deployment` at `revision`.
    ///
    /// A result counts only while the spec and the questions are those that it was made with: after a change of the spec
    /// everything is pending until the operator has seen it.
    pub fn standing(&self, backend: &str, model_deployment: &str, revision: &str) -> Standing<'_> {
        let Some(status) = &self.status else { return Standing::Pending };
        if status.observed_generation != self.metadata.generation {
            return Standing::Pending;
        }
        let Some(inputs) = &status.inputs else { return Standing::Pending };
        let found = status.results.iter().find(|result| {
            result.backend == backend
                && result.model_deployment == model_deployment
                && result.revision == revision
                && result.inputs == *inputs
        });
        match found {
            None => Standing::Pending,
            Some(result) if result.outcome == Outcome::Completed => Standing::Scored(result),
            // Something has changed that may help, or somebody has asked.
            Some(_) if status.current.iter().any(|it| it.backend == backend && it.job.is_some()) => {
                Standing::Pending
            }
            Some(result) => Standing::Failed(result.message.as_deref().unwrap_or("the run failed")),
        }
    }
}

impl EvaluationResult {
    /// One score. `None` where no question has a part in it, or where what stands there can't be read.
    pub fn measured(&self, score: Score) -> Option<Measured> {
        self.scores.iter().find(|result| result.name == score)?.measured()
    }
}

impl ScoreResult {
    /// Its numbers. `None` where there are none, or none that make sense.
    pub fn measured(&self) -> Option<Measured> {
        let n = u64::from(self.n);
        if n == 0 {
            return None;
        }
        // Counts, so that nothing depends on how a mean was rounded.
        if let Some(hits) = self.hits {
            let hits = u64::from(hits);
            if hits > n {
                return None;
            }
            let mean = f64::from(self.hits?) / f64::from(self.n);
            let variance =
                if n > 1 { mean * (1.0 - mean) * f64::from(self.n) / f64::from(self.n - 1) } else { 0.0 };
            return Some(Measured { n, hits: Some(hits), mean, variance });
        }
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
        let mean = number(&self.mean)?;
        let variance = match &self.variance {
            Some(text) => number(text).filter(|variance| *variance >= 0.0)?,
            None if n == 1 => 0.0,
            None => return None,
        };
        Some(Measured { n, hits: None, mean, variance })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn evaluation(generation: i64, status: &Value) -> Evaluation {
        serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "Evaluation",
            "metadata": {"name": "quality", "generation": generation},
            "spec": {"questions": {"configMapRef": {"name": "q", "key": "q.jsonl"}}, "target": {"route": "chat"}},
            "status": status,
        }))
        .unwrap()
    }

    fn result(backend: &str, revision: &str, inputs: &str) -> Value {
        json!({"backend": backend, "modelDeployment": format!("m-{backend}"), "revision": revision, "inputs": inputs,
        "questions": "q1", "outcome": "Completed", "asked": 40, "scores": [
            {"name": "exactMatch", "n": 40, "hits": 30, "mean": "0.75"},
            {"name": "f1", "n": 40, "mean": "0.8125", "variance": "0.0625"},
            {"name": "latency", "n": 1, "mean": "1.5"},
        ]})
    }

    #[test]
    fn a_result_stands_for_its_backend_at_its_revision_and_inputs() {
        let status = json!({"observedGeneration": 1, "inputs": "now",
            "results": [result("v2", "r2", "now"), result("v1", "r1", "now"), result("v1", "r0", "earlier")]});
        let known = evaluation(1, &status);
        assert!(
            matches!(known.standing("v1", "m-v1", "r1"), Standing::Scored(found) if found.backend == "v1")
        );
        for (backend, deployment, revision) in
            [("v1", "m-v1", "r0"), ("v1", "m-v2", "r1"), ("v1", "m-v1", "r2"), ("v3", "m-v3", "r1")]
        {
            assert_eq!(
                known.standing(backend, deployment, revision),
                Standing::Pending,
                "{backend} {revision}"
            );
        }
        assert_eq!(
            evaluation(2, &status).standing("v1", "m-v1", "r1"),
            Standing::Pending,
            "the spec has changed"
        );
        assert_eq!(evaluation(1, &json!({})).standing("v1", "m-v1", "r1"), Standing::Pending);
    }

    #[test]
    fn a_run_that_failed_says_why() {
        let mut failed = result("v1", "r1", "now");
        failed["outcome"] = json!("Failed");
        failed["message"] = json!("no route to host");
        let mut status = json!({"observedGeneration": 1, "inputs": "now", "results": [failed]});
        let known = evaluation(1, &status);
        assert_eq!(known.standing("v1", "m-v1", "r1"), Standing::Failed("no route to host"));
        status["current"] =
            json!([{"backend": "v1", "modelDeployment": "m-v1", "revision": "r1", "job": "quality-2"}]);
        assert_eq!(
            evaluation(1, &status).standing("v1", "m-v1", "r1"),
            Standing::Pending,
            "it is tried again"
        );
    }

    #[test]
    fn scores_are_read_in_the_form_that_intervals_are_made_from() {
        let scored: EvaluationResult = serde_json::from_value(result("v1", "r1", "now")).unwrap();
        let exact = scored.measured(Score::ExactMatch).unwrap();
        assert_eq!((exact.n, exact.hits, exact.mean), (40, Some(30), 0.75));
        // 30 ones and 10 zeros: the sum of squares about the mean is 7.5.
        assert!((exact.variance - 7.5 / 39.0).abs() < 1e-12, "{exact:?}");
        let f1 = scored.measured(Score::F1).unwrap();
        assert_eq!(f1, Measured { n: 40, hits: None, mean: 0.8125, variance: 0.0625 });
        let latency = scored.measured(Score::Latency).unwrap();
        assert_eq!(latency, Measured { n: 1, hits: None, mean: 1.5, variance: 0.0 });
        assert_eq!(scored.measured(Score::Refusal), None);
    }

    #[test]
    fn what_makes_no_sense_is_no_score() {
        let score = |value: Value| serde_json::from_value::<ScoreResult>(value).unwrap().measured();
        for nonsense in [
            json!({"name": "exactMatch", "n": 0, "hits": 0, "mean": "0"}),
            json!({"name": "exactMatch", "n": 3, "hits": 4, "mean": "1"}),
            json!({"name": "f1", "n": 3, "mean": "0.5"}),
            json!({"name": "f1", "n": 3, "mean": "NaN", "variance": "0.1"}),
            json!({"name": "f1", "n": 3, "mean": "0.5", "variance": "-0.1"}),
            json!({"name": "f1", "n": 3, "mean": "half", "variance": "0.1"}),
        ] {
            assert_eq!(score(nonsense.clone()), None, "{nonsense}");
        }
    }

    #[test]
    fn a_score_is_named_as_it_is_written() {
        for score in Score::ALL {
            assert_eq!(serde_json::to_value(score).unwrap(), score.name());
        }
    }
}
