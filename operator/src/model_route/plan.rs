//! From `spec.canary` to the plan that a rollout follows. Pure. The schema's rules refuse most of what is refused here.

use std::time::Duration;

use fairlead_crds::condition::stalled;
use fairlead_crds::model_route::ModelRoute;
use fairlead_crds::model_route::analysis::{Analysis, GateSpec};
use fairlead_crds::model_route::canary::{Canary, duration};
use fairlead_rollout::{Bound, Gate, Metric, Plan, Step};

use crate::error::Error;

/// Time between two looks at a canary that time alone moves, where its steps are not shorter.
const INTERVAL: Duration = Duration::from_secs(10);
/// A step is looked at this often at most.
const SHORTEST: Duration = Duration::from_secs(1);

/// The plan of a route's canary; `None` without one.
///
/// # Errors
/// [`Error::Invalid`] naming the field and the remedy.
pub fn plan(object: &ModelRoute) -> Result<Option<Plan>, Error> {
    let Some(canary) = &object.spec.canary else { return Ok(None) };
    made(object, canary)
        .map(Some)
        .map_err(|message| Error::invalid(stalled::INVALID_SPEC, format!("spec.canary.{message}")))
}

fn made(object: &ModelRoute, canary: &Canary) -> Result<Plan, String> {
    let backend = &canary.backend;
    match object.spec.backends.iter().find(|known| known.name == *backend) {
        None => {
            return Err(format!("backend: there is no backend {backend} in spec.backends; name one of them"));
        }
        Some(own) if own.weight.is_some_and(|weight| weight > 0) => {
            let remedy = "what the canary takes it takes from the others; leave its weight out";
            return Err(format!("backend: {backend} has a weight of its own; {remedy}"));
        }
        Some(_) => {}
    }
    let steps = canary.steps.iter().enumerate().map(|(index, step)| {
        let hold = duration(&step.hold).ok_or_else(|| {
            let remedy = "write hours, minutes and seconds, such as 10m";
            format!("steps[{index}].hold is {:?}; {remedy}", step.hold)
        })?;
        Ok(Step { weight: step.weight, hold })
    });
    let steps: Vec<Step> = steps.collect::<Result<_, String>>()?;
    let progress_deadline = canary.progress_deadline().ok_or_else(|| {
        let text = canary.progress_deadline.as_deref().unwrap_or_default();
        format!("progressDeadline is {text:?}; write hours, minutes and seconds, such as 30m")
    })?;
    let judged = canary.analysis.as_ref();
    let interval = match judged {
        Some(analysis) => analysis.interval().ok_or_else(|| {
            let text = analysis.interval.as_deref().unwrap_or_default();
            format!("analysis.interval is {text:?}; write a time from 1s to 1h, such as 30s")
        })?,
        None => {
            let shortest = steps.iter().map(|step| step.hold).min().unwrap_or(INTERVAL);
            shortest.clamp(SHORTEST, INTERVAL)
        }
    };
    let specs = judged.map_or(&[][..], |analysis| analysis.gates.as_slice());
    let gates = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| gate(spec).map_err(|message| format!("analysis.gates[{index}]{message}")));
    let alpha = match judged.and_then(|analysis| analysis.alpha.as_deref()) {
        None => 0.05,
        Some(text) => text.parse::<f64>().map_err(|_| {
            format!("analysis.alpha is {text:?}; write a probability above 0 and below 1, such as \"0.05\"")
        })?,
    };
    let of = |pick: fn(&Analysis) -> Option<u32>| judged.and_then(pick);
    let plan = Plan {
        fingerprint: object.rollout_fingerprint(),
        canary: backend.clone(),
        stable: object.stable_in_spec(),
        steps,
        interval,
        min_requests: of(|analysis| analysis.min_requests).unwrap_or(50).into(),
        failure_limit: of(|analysis| analysis.failure_limit).unwrap_or(1),
        alpha,
        on_undecided: judged.and_then(|analysis| analysis.on_undecided).unwrap_or_default(),
        gates: gates.collect::<Result<_, String>>()?,
        progress_deadline: Some(progress_deadline),
        paused: canary.paused,
    };
    plan.check()?;
    Ok(plan)
}

/// One gate; what is wrong with it begins with the field's place, such as `.max`.
fn gate(spec: &GateSpec) -> Result<Gate, String> {
    let GateSpec {
        metric,
        quantile,
        max,
        min,
        max_regression,
        min_improvement,
        prometheus,
        evaluation,
        score,
    } = spec;
    type MakeBound = fn(f64) -> Bound;
    let bounds: [(&str, &Option<String>, MakeBound); 4] = [
        ("max", max, Bound::Max),
        ("min", min, Bound::Min),
        ("maxRegression", max_regression, Bound::MaxRegression),
        ("minImprovement", min_improvement, Bound::MinImprovement),
    ];
    let mut given = bounds.iter().filter_map(|(name, text, make)| Some((name, text.as_ref()?, make)));
    let (Some((name, text, make)), None) = (given.next(), given.next()) else {
        return Err(": set exactly one of max, min, maxRegression and minImprovement".to_owned());
    };
    let compares = make(0.0).compares();
    let bound = make(number(text, *metric, compares).map_err(|why| format!(".{name} is {text:?}; {why}"))?);
    if (*metric == Metric::Prometheus) != prometheus.is_some() {
        return Err(
            ": metric Prometheus needs prometheus with its query, and no other metric has one".to_owned()
        );
    }
    let evaluated = evaluation.is_some() && score.is_some();
    if (*metric == Metric::Evaluation) != evaluated || evaluation.is_some() != score.is_some() {
        return Err(": metric Evaluation needs evaluation and score, and no other metric has them".to_owned());
    }
    if quantile.is_some() && !metric.has_quantile() {
        return Err(".quantile: it is for latencies and TokensPerAnswer; leave it out".to_owned());
    }
    let quantile = match quantile.as_deref() {
        Some(text) => text.parse().map_err(|_| {
            format!(".quantile is {text:?}; write a number above 0 and below 1, such as \"0.95\"")
        })?,
        None if *metric == Metric::TokensPerAnswer => 0.5,
        None => 0.95,
    };
    let of = evaluation.as_ref().zip(*score).map(|(name, score)| format!("{name}/{}", score.name()));
    Ok(Gate { metric: *metric, quantile, bound, of })
}

/// A bound's number in the metric's unit: shares and parts as such, times in seconds.
fn number(text: &str, metric: Metric, compares: bool) -> Result<f64, &'static str> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
    let value: f64 = digits.parse().map_err(|_| "write a number, such as \"0.02\", 2%, 800ms or 1.5s")?;
    let latency =
        matches!(metric, Metric::TimeToFirstToken | Metric::InterTokenLatency | Metric::EndToEndLatency);
    let outside = matches!(metric, Metric::Prometheus | Metric::Evaluation);
    if value < 0.0 && !outside {
        return Err("it cannot be less than nothing; write 0 or more");
    }
    let relative = compares && metric.has_quantile();
    match &text[digits.len()..] {
        "" => Ok(value),
        "%" if relative || outside || metric == Metric::ErrorRate => Ok(value / 100.0),
        "%" => Err("a percentage is no time and no length; write 1.5s, or a number"),
        "s" if (latency && !compares) || metric == Metric::Evaluation => Ok(value),
        "ms" if (latency && !compares) || metric == Metric::Evaluation => Ok(value / 1000.0),
        "s" | "ms" if latency => Err("it is a part of stable's time; write 20% or \"0.2\""),
        "s" | "ms" => Err("only latencies are times; leave the unit out"),
        _ => Err("its unit is not known; write %, ms, s, or none"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn plan_of(analysis: &Value) -> Result<Plan, String> {
        let route: ModelRoute = serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat"},
            "spec": {
                "backends": [{"name": "v1", "modelDeployment": "m1", "weight": 1}, {"name": "v2", "modelDeployment": "m2"}],
                "canary": {"backend": "v2", "steps": [{"weight": 5, "hold": "10m"}], "analysis": analysis},
            },
        }))
        .unwrap();
        plan(&route).map(Option::unwrap).map_err(|error| error.to_string())
    }

    fn gate_of(gate: &Value) -> Result<Gate, String> {
        Ok(plan_of(&json!({"gates": [gate]}))?.gates.remove(0))
    }

    #[test]
    fn what_is_left_out_has_sensible_defaults() {
        let plan = plan_of(&json!({"gates": [{"metric": "ErrorRate", "max": "1%"}]})).unwrap();
        assert_eq!((plan.interval, plan.min_requests, plan.failure_limit), (Duration::from_secs(30), 50, 1));
        assert_eq!((plan.alpha, plan.on_undecided), (0.05, fairlead_rollout::OnUndecided::Pause));
        assert_eq!(plan.progress_deadline, Some(Duration::from_secs(3600)));
        let quantile = |metric: &str| gate_of(&json!({"metric": metric, "max": "5"})).unwrap().quantile;
        assert_eq!((quantile("EndToEndLatency"), quantile("TokensPerAnswer")), (0.95, 0.5));
    }

    #[test]
    fn bounds_are_read_in_the_units_that_people_write() {
        let bound = |metric: &str, field: &str, text: &str| {
            gate_of(&json!({"metric": metric, field: text})).unwrap().bound
        };
        assert_eq!(bound("ErrorRate", "max", "2%"), Bound::Max(0.02));
        assert_eq!(bound("ErrorRate", "maxRegression", "0.01"), Bound::MaxRegression(0.01));
        assert_eq!(bound("TimeToFirstToken", "max", "800ms"), Bound::Max(0.8));
        assert_eq!(bound("TimeToFirstToken", "max", "1.5"), Bound::Max(1.5));
        assert_eq!(bound("EndToEndLatency", "minImprovement", "10%"), Bound::MinImprovement(0.1));
        assert_eq!(bound("TokensPerAnswer", "min", "20"), Bound::Min(20.0));
        let gate = gate_of(
            &json!({"metric": "Evaluation", "evaluation": "faq", "score": "exactMatch", "minImprovement": "-1%"}),
        );
        let gate = gate.unwrap();
        assert_eq!((gate.bound, gate.of.as_deref()), (Bound::MinImprovement(-0.01), Some("faq/exactMatch")));
        let gate = gate_of(&json!({"metric": "Prometheus", "prometheus": {"query": "up"}, "min": "-3"}));
        assert_eq!(gate.unwrap().bound, Bound::Min(-3.0));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_field_and_the_remedy() {
        for (gate, part) in [
            (json!({"metric": "ErrorRate"}), "analysis.gates[0]: set exactly one of max"),
            (
                json!({"metric": "ErrorRate", "max": "1%", "min": "0"}),
                "analysis.gates[0]: set exactly one of max",
            ),
            (
                json!({"metric": "ErrorRate", "max": "few"}),
                "analysis.gates[0].max is \"few\"; write a number",
            ),
            (json!({"metric": "ErrorRate", "max": "-1%"}), "cannot be less than nothing"),
            (json!({"metric": "ErrorRate", "max": "1s"}), "only latencies are times"),
            (json!({"metric": "EndToEndLatency", "max": "10%"}), "a percentage is no time"),
            (json!({"metric": "EndToEndLatency", "maxRegression": "1s"}), "it is a part of stable's time"),
            (json!({"metric": "EndToEndLatency", "max": "1s", "quantile": "1"}), "gates[0].quantile is 1"),
            (
                json!({"metric": "EndToEndLatency", "max": "1s", "quantile": "p95"}),
                "gates[0].quantile is \"p95\"",
            ),
            (
                json!({"metric": "ErrorRate", "max": "1%", "quantile": "0.9"}),
                "gates[0].quantile: it is for latencies",
            ),
            (json!({"metric": "Prometheus", "max": "1"}), "needs prometheus with its query"),
            (
                json!({"metric": "ErrorRate", "max": "1", "prometheus": {"query": "up"}}),
                "no other metric has one",
            ),
            (
                json!({"metric": "Prometheus", "maxRegression": "1", "prometheus": {"query": "up"}}),
                "compare with stable in the query",
            ),
            (json!({"metric": "Evaluation", "min": "1", "evaluation": "faq"}), "needs evaluation and score"),
            (json!({"metric": "ErrorRate", "min": "1", "score": "f1"}), "no other metric has them"),
        ] {
            let error = gate_of(&gate).unwrap_err();
            assert!(error.starts_with("spec.canary.") && error.contains(part), "{part}: {error}");
        }
        for (field, value) in [("interval", json!("soon")), ("alpha", json!("2")), ("failureLimit", json!(0))]
        {
            let mut analysis = json!({"gates": [{"metric": "ErrorRate", "max": "1%"}]});
            analysis[field] = value;
            let error = plan_of(&analysis).unwrap_err();
            assert!(error.contains(&format!("spec.canary.analysis.{field} is")), "{error}");
        }
    }
}
