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

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_rollout::stretch::Live;
use fairlead_rollout::{
    Bound, Counts, Gate, Metric, Observation, OnUndecided, Phase, Plan, Reason, Step, Verdict, decide, window,
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
/// Requests of each variant in an interval, where it breaks late.
const PER_LOOK: u64 = 150;
/// Long steps of two identical versions, and their intervals.
const LONG: (u64, u64) = (500, 2_000);

/// The processor, and how many there are of it. The numbers do not depend on it.
fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", model.map_or(std::env::consts::ARCH, |(_, model)| model))
}

/// The commit that is measured, where git knows it.
fn commit() -> Option<String> {
    let told = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    Some(String::from_utf8(told.stdout).ok()?.trim().to_owned()).filter(|commit| !commit.is_empty())
}

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

/// What the gateways count, as they count it.
#[derive(Clone)]
struct Gateways {
    epoch: u64,
    interval: Duration,
    live: Live,
    step: [Counts; 2],
    stretches: [BTreeMap<i64, Counts>; 2],
}

impl Gateways {
    fn new(epoch: u64, interval: Duration, now: Timestamp) -> Self {
        let live = Live::new(window(now, interval));
        Self { epoch, interval, live, step: Default::default(), stretches: Default::default() }
    }

    /// Requests that began and ended at this moment.
    fn count(&mut self, now: Timestamp, counted: [&Counts; 2]) {
        self.live.advance(window(now, self.interval));
        for (place, counts) in counted.into_iter().enumerate() {
            self.step[place].merge(counts);
            let stretches = &mut self.stretches[place];
            stretches.retain(|begun, _| self.live.begun().contains(begun));
            self.live.begun().iter().for_each(|begun| stretches.entry(*begun).or_default().merge(counts));
        }
    }

    fn told(&self) -> Observation {
        let ([canary, stable], [recent_canary, recent_stable]) = (self.step.clone(), self.stretches.clone());
        Observation { epoch: self.epoch, canary, stable, recent_canary, recent_stable, ..nothing() }
    }
}

/// Whether a rollout of a version that is no other was rolled back.
///
/// `lasts`: when nobody looks any more, in seconds.
fn taken_for_worse(plan: &Plan, seed: u64, lasts: Option<i64>) -> bool {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut now = Timestamp::from_second(1_800_000_000).unwrap();
    let ends = lasts.map(|lasts| Timestamp::from_second(1_800_000_000 + lasts).unwrap());
    let mut decision = decide(Some(plan), &plan.stable, None, &nothing(), None, now);
    let mut gateways = Gateways::new(decision.state.epoch, plan.interval, now);
    while let Some(wait) = decision.next {
        if gateways.epoch != decision.state.epoch {
            gateways = Gateways::new(decision.state.epoch, plan.interval, now);
        }
        let share = f64::from(decision.state.weight) / 100.0;
        let mut this = [Counts::default(), Counts::default()];
        for _ in 0..(wait.as_secs_f64() * REQUESTS_PER_SECOND) as u64 {
            let counts = if rng.random_range(0.0..1.0) < share { &mut this[0] } else { &mut this[1] };
            STABLE.answer(counts, &mut rng);
        }
        gateways.count(now, [&this[0], &this[1]]);
        now += wait;
        decision = decide(Some(plan), &plan.stable, Some(&decision.state), &gateways.told(), None, now);
        if ends.is_some_and(|ends| now >= ends) {
            break;
        }
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

/// The good past of a canary, without a look at it.
fn good_past(plan: &Plan, looks: u64, seed: u64) -> (Gateways, Timestamp) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut now = Timestamp::from_second(1_800_000_000).unwrap();
    // The first step of a rollout counts as 1.
    let mut gateways = Gateways::new(1, plan.interval, now);
    for _ in 0..looks {
        let this = an_interval(STABLE, &mut rng);
        gateways.count(now, [&this[0], &this[1]]);
        now += plan.interval;
    }
    (gateways, now)
}

/// An interval's requests of a canary and of stable.
fn an_interval(canary: Version, rng: &mut StdRng) -> [Counts; 2] {
    let mut this = [Counts::default(), Counts::default()];
    for _ in 0..PER_LOOK {
        canary.answer(&mut this[0], rng);
        STABLE.answer(&mut this[1], rng);
    }
    this
}

/// Intervals from the moment at which a canary breaks, late in a long step, until it is taken back: it had so many good ones before.
fn late(good: u64, cases: &[(&str, Version)]) -> Vec<Value> {
    let plan =
        Plan { steps: vec![Step { weight: 50, hold: Duration::from_secs(365 * 24 * 3600) }], ..plan() };
    let begun = Timestamp::from_second(1_800_000_000).unwrap();
    let began = decide(Some(&plan), &plan.stable, None, &nothing(), None, begun).state;
    let mut needed = vec![Vec::new(); cases.len()];
    for seed in 0..TRIALS / 4 {
        let past = good_past(&plan, good, seed);
        for (needed, (_, broken)) in needed.iter_mut().zip(cases) {
            let (mut gateways, mut now) = past.clone();
            // Another future than the past was.
            let mut rng = StdRng::seed_from_u64(seed + TRIALS);
            let mut state = began.clone();
            let mut intervals = 0_u64;
            while state.phase == Phase::Progressing && intervals < 1_000 {
                let this = an_interval(*broken, &mut rng);
                gateways.count(now, [&this[0], &this[1]]);
                now += plan.interval;
                state = decide(Some(&plan), &plan.stable, Some(&state), &gateways.told(), None, now).state;
                intervals += 1;
            }
            needed.push(intervals);
        }
    }
    let row = |(needed, (name, _)): (&mut Vec<u64>, &(&str, Version))| {
        needed.sort_unstable();
        let at = |part: f64| needed[((needed.len() as f64 * part) as usize).min(needed.len() - 1)];
        let name = format!("after {} good requests: {name}", good * PER_LOOK);
        println!("{name:<74} {:>8} {:>8}", at(0.5), at(0.9));
        json!({
            "metric": format!("{name}: intervals of {PER_LOOK} requests from then until it is taken back, median"),
            "unit": "intervals", "ours": at(0.5), "better": "lower", "ninetiethPercentile": at(0.9),
        })
    };
    needed.iter_mut().zip(cases).map(row).collect()
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
    println!(
        "\nintervals from when it breaks until it is taken back, {PER_LOOK} requests an interval, four gates"
    );
    let cases = [
        ("errors 1 % -> 2 %", errors(0.02)),
        ("errors 1 % -> 5 %", errors(0.05)),
        ("errors 1 % -> 20 %", errors(0.2)),
        ("time to first token 25 % worse", slower(1.25)),
        ("time to first token 100 % worse", slower(2.0)),
    ];
    for good in [67, 667, 6_667] {
        found.extend(late(good, &cases));
    }

    let plan = plan();
    let wrong = (0..ROLLOUTS).filter(|seed| taken_for_worse(&plan, *seed, None)).count();
    println!(
        "\n{wrong} of {ROLLOUTS} rollouts of two identical versions were rolled back: {:.2} %, alpha is {:.0} %",
        100.0 * wrong as f64 / ROLLOUTS as f64,
        100.0 * ALPHA
    );
    let (rollouts, looks) = LONG;
    let half = Step { weight: 50, hold: Duration::from_secs(365 * 24 * 3600) };
    let long = Plan { steps: vec![half], gates: plan.gates[..2].to_vec(), ..plan.clone() };
    let lasts = i64::try_from(looks * plan.interval.as_secs()).unwrap();
    let late = (0..rollouts).filter(|seed| taken_for_worse(&long, *seed, Some(lasts))).count();
    println!("{late} of {rollouts} steps of {looks} intervals, two gates, were rolled back");
    if let Some(file) = std::env::args().nth(1) {
        let conditions = json!({
            "machine": machine(), "commit": commit(), "date": format!("{:.0}", Timestamp::now()),
            "versions": {"fairlead": env!("CARGO_PKG_VERSION")},
            "alpha": ALPHA, "rollouts": ROLLOUTS, "steps": [5, 25, 50], "gates": plan.gates.len(), "looksPerStep": 10,
            "requestsPerSecond": REQUESTS_PER_SECOND, "trialsOfWorseVersions": TRIALS,
            "workload": "errors 1 %; log-normal time to first token, tokens of an answer and time between tokens; seeded",
        });
        let mut rows = vec![
            json!({
                "metric": "rollouts of two identical versions that were rolled back, bounds exactly where they lie",
                "unit": "share", "ours": wrong as f64 / ROLLOUTS as f64, "better": "lower", "goal": ALPHA,
            }),
            json!({
                "metric": format!("the same in {rollouts} steps of {looks} intervals, two gates"),
                "unit": "share", "ours": late as f64 / rollouts as f64, "better": "lower", "goal": ALPHA,
            }),
        ];
        rows.extend(found);
        let whole = json!({"conditions": conditions, "rows": rows});
        std::fs::write(file, format!("{whole:#}\n")).unwrap();
    }
}
