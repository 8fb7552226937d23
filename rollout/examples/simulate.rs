//! Simulated rollouts: how often two identical versions are taken for different, and how soon a worse one is found.
//!
//!     cargo run --release -p fairlead-rollout --example simulate [FILE]
//!
//! Prints two tables, and writes them to FILE as JSON. The same seeds give the same tables.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

use std::time::Duration;

use fairlead_rollout::{
    Bound, Counts, Gate, Metric, Observation, OnUndecided, Phase, Plan, Reason, Step, Verdict, decide,
};
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// Rollouts of two identical versions.
const ROLLOUTS: u64 = 10_000;
/// Rollouts of each worse version.
const TRIALS: u64 = 400;
const ALPHA: f64 = 0.05;
const REQUESTS_PER_SECOND: f64 = 10.0;
/// Requests of each variant between two looks, where a worse version is looked for.
const BETWEEN_LOOKS: u64 = 25;

/// How a version behaves: failures, and log-normal latencies as servers have them.
#[derive(Clone, Copy)]
struct Version {
    error_rate: f64,
    /// Median time to first token in seconds.
    first_token: f64,
}

const STABLE: Version = Version { error_rate: 0.01, first_token: 0.3 };

impl Version {
    fn answer(self, counts: &mut Counts, rng: &mut StdRng) {
        counts.requests += 1;
        if rng.random_range(0.0..1.0) < self.error_rate {
            counts.errors += 1;
            return;
        }
        let first = self.first_token * (0.6 * normal(rng)).exp();
        let tokens = (120.0 * (0.8 * normal(rng)).exp()).ceil();
        let between = 0.03 * (0.25 * normal(rng)).exp();
        counts.time_to_first_token.add(first);
        counts.inter_token_latency.add(between);
        counts.tokens_per_answer.add(tokens);
        counts.end_to_end_latency.add(first + between * (tokens - 1.0));
    }
}

/// A normal variable by Box and Muller.
fn normal(rng: &mut StdRng) -> f64 {
    let (a, b): (f64, f64) = (rng.random_range(f64::EPSILON..1.0), rng.random_range(0.0..1.0));
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

fn gate(metric: Metric, quantile: f64, bound: f64) -> Gate {
    Gate { metric, quantile, bound: Bound::MaxRegression(bound), of: None }
}

/// The bounds are those that identical versions lie on exactly, which is where a wrong rollback is likeliest.
fn plan() -> Plan {
    Plan {
        fingerprint: "a/a".into(),
        canary: "b".into(),
        stable: "a".into(),
        steps: [5, 25, 50].map(|weight| Step { weight, hold: Duration::from_secs(300) }).to_vec(),
        interval: Duration::from_secs(30),
        min_requests: 50,
        failure_limit: 1,
        alpha: ALPHA,
        on_undecided: OnUndecided::Promote,
        gates: vec![
            gate(Metric::ErrorRate, 0.5, 0.0),
            gate(Metric::TimeToFirstToken, 0.95, 0.0),
            gate(Metric::InterTokenLatency, 0.5, 0.0),
            gate(Metric::EndToEndLatency, 0.9, 0.0),
        ],
        progress_deadline: None,
        paused: false,
    }
}

/// Whether a rollout of a version that is no other was rolled back.
fn taken_for_worse(plan: &Plan, seed: u64) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut now = Timestamp::from_second(1_800_000_000).unwrap();
    let (mut seen, mut last) = (nothing(), [Counts::default(), Counts::default()]);
    let mut decision = decide(Some(plan), &plan.stable, None, &seen, None, now);
    while let Some(wait) = decision.next {
        if seen.epoch != decision.state.epoch {
            seen = Observation { epoch: decision.state.epoch, ..nothing() };
            last = [Counts::default(), Counts::default()];
        }
        let share = f64::from(decision.state.weight) / 100.0;
        let mut this = [Counts::default(), Counts::default()];
        for _ in 0..(wait.as_secs_f64() * REQUESTS_PER_SECOND) as u64 {
            let counts = if rng.random_range(0.0..1.0) < share { &mut this[0] } else { &mut this[1] };
            STABLE.answer(counts, &mut rng);
        }
        seen.canary.merge(&this[0]);
        seen.stable.merge(&this[1]);
        [seen.recent_canary, seen.recent_stable] = last;
        seen.recent_canary.merge(&this[0]);
        seen.recent_stable.merge(&this[1]);
        last = this;
        now += wait;
        decision = decide(Some(plan), &plan.stable, Some(&decision.state), &seen, None, now);
    }
    decision.state.phase == Phase::RolledBack && decision.state.reason == Reason::GateFailed
}

/// A gate and a version that breaks it.
struct Case<'a> {
    name: &'a str,
    gate: Gate,
    canary: Version,
    /// The gate's share of alpha.
    alpha: f64,
    /// Requests of stable for each of the canary.
    stable: u64,
}

/// How many requests of the canary a gate sees until it fails; `None` where 200,000 are not enough.
fn requests_until_failed(case: &Case<'_>, seed: u64) -> Option<u64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut mine, mut theirs) = (Counts::default(), Counts::default());
    while mine.requests < 200_000 {
        // Looks grow rarer, so that a simulation ends; a test that may be looked at always may be looked at rarely.
        for _ in 0..BETWEEN_LOOKS.max(mine.requests / 50) {
            case.canary.answer(&mut mine, &mut rng);
            (0..case.stable).for_each(|_| STABLE.answer(&mut theirs, &mut rng));
        }
        if case.gate.judge(&mine, &theirs, 50, case.alpha).verdict == Verdict::Fail {
            return Some(mine.requests);
        }
    }
    None
}

fn detection(case: &Case<'_>) -> Value {
    let mut needed: Vec<u64> =
        (0..TRIALS).map(|seed| requests_until_failed(case, seed).unwrap_or(u64::MAX)).collect();
    needed.sort_unstable();
    let at = |part: f64| needed[((TRIALS as f64 * part) as usize).min(needed.len() - 1)];
    let name = case.name;
    println!("{name:<74} {:>8} {:>8}", at(0.5), at(0.9));
    json!({
        "metric": format!("{name}: requests of the canary until the gate fails, median"),
        "unit": "requests", "ours": at(0.5), "better": "lower", "ninetiethPercentile": at(0.9),
    })
}

/// Requests of the canary from the moment at which it breaks, late in a long step, until it is taken back. It had so many good ones.
fn late(name: &str, good: u64, broken: Version) -> Value {
    let plan = Plan { steps: vec![Step { weight: 50, hold: Duration::from_secs(7 * 24 * 3600) }], ..plan() };
    let per_look = 150;
    let mut needed: Vec<u64> = (0..TRIALS / 4)
        .map(|seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut now = Timestamp::from_second(1_800_000_000).unwrap();
            let mut decision = decide(Some(&plan), &plan.stable, None, &nothing(), None, now);
            let (mut whole, mut last) =
                ([Counts::default(), Counts::default()], [Counts::default(), Counts::default()]);
            let mut requests = 0;
            while decision.state.phase == Phase::Progressing && requests < good + 100_000 {
                let mine = if requests < good { STABLE } else { broken };
                let mut this = [Counts::default(), Counts::default()];
                for _ in 0..per_look {
                    mine.answer(&mut this[0], &mut rng);
                    STABLE.answer(&mut this[1], &mut rng);
                }
                let both = |place: usize| {
                    let mut both: Counts = last[place].clone();
                    both.merge(&this[place]);
                    both
                };
                let (recent_canary, recent_stable) = (both(0), both(1));
                (0..2).for_each(|place| whole[place].merge(&this[place]));
                let [canary, stable] = whole.clone();
                let epoch = decision.state.epoch;
                let seen = Observation { epoch, canary, stable, recent_canary, recent_stable, ..nothing() };
                now += plan.interval;
                decision = decide(Some(&plan), &plan.stable, Some(&decision.state), &seen, None, now);
                last = this;
                requests += per_look;
            }
            requests.saturating_sub(good)
        })
        .collect();
    needed.sort_unstable();
    let at = |part: f64| needed[((needed.len() as f64 * part) as usize).min(needed.len() - 1)];
    println!("{name:<74} {:>8} {:>8}", at(0.5), at(0.9));
    json!({
        "metric": format!("{name}: requests of the canary from then until it is taken back, median"),
        "unit": "requests", "ours": at(0.5), "better": "lower", "ninetiethPercentile": at(0.9),
    })
}

fn nothing() -> Observation {
    Observation { canary_ready: true, asked: true, ..Observation::default() }
}

fn main() {
    println!("requests of the canary, and as many of stable, until one gate fails, alpha {ALPHA}");
    println!("{:<74} {:>8} {:>8}", "", "median", "90 %");
    let errors = |error_rate| Version { error_rate, ..STABLE };
    let slower = |factor| Version { first_token: STABLE.first_token * factor, ..STABLE };
    let ttft = |quantile, bound| gate(Metric::TimeToFirstToken, quantile, bound);
    let error_rate = |bound| gate(Metric::ErrorRate, 0.5, bound);
    let absolute = || Gate { metric: Metric::ErrorRate, quantile: 0.5, bound: Bound::Max(0.01), of: None };
    let alone = |name, gate, canary| detection(&Case { name, gate, canary, alpha: ALPHA, stable: 1 });
    let mut found = vec![
        alone("errors 1 % -> 2 %, maxRegression 0", error_rate(0.0), errors(0.02)),
        alone("errors 1 % -> 5 %, maxRegression 0", error_rate(0.0), errors(0.05)),
        alone("errors 2 %, max 1 %", absolute(), errors(0.02)),
        alone("errors 5 %, max 1 %", absolute(), errors(0.05)),
        alone("time to first token 25 % worse, median, maxRegression 0", ttft(0.5, 0.0), slower(1.25)),
        alone("time to first token 25 % worse, median, maxRegression 0.1", ttft(0.5, 0.1), slower(1.25)),
        alone("time to first token 25 % worse, p95, maxRegression 0.1", ttft(0.95, 0.1), slower(1.25)),
        alone("time to first token 100 % worse, median, maxRegression 0.1", ttft(0.5, 0.1), slower(2.0)),
        alone("time to first token 100 % worse, p95, maxRegression 0.1", ttft(0.95, 0.1), slower(2.0)),
    ];
    // As in a rollout of three steps and four gates, of which the canary has a twentieth: half of a twelfth of alpha for a step.
    println!("\nthe same as one of four gates in three steps, beside 19 requests of stable for each");
    let alpha = plan().alpha_of_step();
    let real = |name, gate, canary| detection(&Case { name, gate, canary, alpha, stable: 19 });
    found.extend([
        real("in a rollout at 5 %: errors 1 % -> 2 %, maxRegression 0", error_rate(0.0), errors(0.02)),
        real("in a rollout at 5 %: errors 1 % -> 5 %, maxRegression 0", error_rate(0.0), errors(0.05)),
        real("in a rollout at 5 %: errors 1 % -> 20 %, maxRegression 0", error_rate(0.0), errors(0.2)),
        real("in a rollout at 5 %: errors 5 %, max 1 %", absolute(), errors(0.05)),
        real(
            "in a rollout at 5 %: time to first token 25 % worse, p95, maxRegression 0.1",
            ttft(0.95, 0.1),
            slower(1.25),
        ),
        real(
            "in a rollout at 5 %: time to first token 100 % worse, p95, maxRegression 0.1",
            ttft(0.95, 0.1),
            slower(2.0),
        ),
    ]);
    println!("\nafter 100,000 good requests, 150 an interval, four gates");
    found.extend([
        late("late in a step: errors 1 % -> 5 %", 99_900, errors(0.05)),
        late("late in a step: errors 1 % -> 20 %", 99_900, errors(0.2)),
        late("late in a step: time to first token 100 % worse", 99_900, slower(2.0)),
    ]);

    let plan = plan();
    let wrong = (0..ROLLOUTS).filter(|seed| taken_for_worse(&plan, *seed)).count();
    println!(
        "\n{wrong} of {ROLLOUTS} rollouts of two identical versions were rolled back: {:.2} %, alpha is {:.0} %",
        100.0 * wrong as f64 / ROLLOUTS as f64,
        100.0 * ALPHA
    );
    if let Some(file) = std::env::args().nth(1) {
        let conditions = json!({
            "alpha": ALPHA, "rollouts": ROLLOUTS, "steps": [5, 25, 50], "gates": plan.gates.len(), "looksPerStep": 10,
            "requestsPerSecond": REQUESTS_PER_SECOND, "trialsOfWorseVersions": TRIALS,
            "workload": "errors 1 %; log-normal time to first token, tokens of an answer and time between tokens; seeded",
        });
        let mut rows = vec![json!({
            "metric": "rollouts of two identical versions that were rolled back, bounds exactly where they lie",
            "unit": "share", "ours": wrong as f64 / ROLLOUTS as f64, "better": "lower", "goal": ALPHA,
        })];
        rows.extend(found);
        let whole = json!({"conditions": conditions, "rows": rows});
        std::fs::write(file, format!("{whole:#}\n")).unwrap();
    }
}
