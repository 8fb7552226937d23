//! Whether one provider can be called: what its answers, and the failures to get any, tell of it. Pure but for the log.
//!
//! Owns what is told of its trouble (`GET /providers`, [`super::report`]); it chooses nothing: whom requests go to is the circuit's and
//! the ejection's matter. [`super::target`] notes what requests meet, [`super::check`] what its own looks meet. A request that succeeds
//! costs one atomic read here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fairlead_crds::model_route::provider::reach::{ProviderReach, Trouble, TroubleKind};
use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::failure::Failure;

/// A provider that cannot be connected to is looked at again after this time.
const AGAIN_IN_TROUBLE: Duration = Duration::from_secs(10);
/// One that can, after this time: whoever is a fallback only should not be found broken when it is needed.
const AGAIN: Duration = Duration::from_secs(600);

/// What is known of one provider.
#[derive(Debug, Default)]
pub struct Health {
    /// It was reached, and there is nothing that a success would take away.
    well: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    reached: bool,
    /// Why it cannot be connected to; a connection takes it away.
    connection: Option<Fault>,
    /// What is wrong by what it answers; only a success takes it away.
    answer: Option<Fault>,
    /// When it was looked at last, and how much of the usual time the next look waits; see [`Health::look_now`].
    looked: Option<(Instant, f64)>,
}

impl Seen {
    fn slot(&mut self, kind: TroubleKind) -> &mut Option<Fault> {
        if is_of_connection(kind) { &mut self.connection } else { &mut self.answer }
    }
}

#[derive(Debug)]
struct Fault {
    kind: TroubleKind,
    message: String,
    since: Timestamp,
    /// How often since the last success.
    times: u32,
}

impl Fault {
    fn is_told(&self) -> bool {
        self.times >= told_after(self.kind)
    }
}

/// How often in a row something must be met before it is told.
fn told_after(kind: TroubleKind) -> u32 {
    match kind {
        // Happens to anyone once.
        TroubleKind::NotResolved | TroubleKind::NotConnected => 2,
        TroubleKind::KeyRefused => REFUSALS,
        _ => 1,
    }
}

/// Some providers answer 403 for what is in a request, too: they mean the key when they answer nothing else.
const REFUSALS: u32 = 3;

/// Whether a connection that stands takes it away.
fn is_of_connection(kind: TroubleKind) -> bool {
    matches!(kind, TroubleKind::NotResolved | TroubleKind::NotConnected | TroubleKind::NotTrusted)
}

impl Health {
    /// Notes an answer, by its status.
    pub fn answered(&self, status: StatusCode, now: impl FnOnce() -> Timestamp) {
        match status.as_u16() {
            // By these it has taken the key. Not by 400: with that, some refuse one.
            200..=399 | 413 | 422 | 429 => {
                if !self.well.load(Ordering::Relaxed) {
                    self.reached(true);
                }
            }
            401 | 403 => {
                self.connected();
                let refused = format!("it answers {}: it refuses the key", status.as_u16());
                let times = if status == StatusCode::UNAUTHORIZED { REFUSALS } else { 1 };
                self.noted(TroubleKind::KeyRefused, refused, times, now());
            }
            _ => self.connected(),
        }
    }

    /// Notes the body of an answer that says that something is not there: only some of them mean the model.
    pub fn not_found(&self, model: &str, body: &[u8], now: Timestamp) {
        if !means_the_model(body) {
            return;
        }
        self.noted(TroubleKind::ModelUnknown, format!("it answers 404: it knows no model {model:?}"), 1, now);
    }

    /// Notes that it was connected to.
    pub fn connected(&self) {
        if !self.well.load(Ordering::Relaxed) {
            self.reached(false);
        }
    }

    /// Notes that it could not be connected to.
    pub fn not_connected(&self, failure: &Failure, now: Timestamp) {
        self.noted(failure.kind, failure.message.clone(), 1, now);
    }

    /// Whether it should be looked at now; if so, that is noted, and the next time comes after `spread` (about 1) times the usual:
    /// providers that came together are not looked at together for ever.
    pub fn look_now(&self, now: Instant, spread: f64) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let again = if seen.connection.is_some() { AGAIN_IN_TROUBLE } else { AGAIN };
        let due = seen.looked.is_none_or(|(looked, spread)| {
            now.saturating_duration_since(looked).as_secs_f64() >= again.as_secs_f64() * spread
        });
        if due {
            seen.looked = Some((now, spread));
        }
        due
    }

    /// What is told of it. That it cannot be connected to comes first: it is so now and nothing else can be put right before it, while
    /// what it answered is told again as soon as it answers.
    pub fn told(&self) -> ProviderReach {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = [&seen.connection, &seen.answer].into_iter().flatten().find(|fault| fault.is_told());
        let trouble = fault.map(|fault| Trouble {
            kind: fault.kind,
            message: fault.message.clone(),
            since: fault.since,
        });
        ProviderReach { reached: seen.reached, trouble }
    }

    /// It was reached, with or without a success.
    fn reached(&self, success: bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.reached = true;
        let answer = if success { seen.answer.take() } else { None };
        for over in seen.connection.take().into_iter().chain(answer).filter(Fault::is_told) {
            tracing::info!(was = over.message, "what was wrong with a provider is over");
        }
        self.well.store(seen.answer.is_none(), Ordering::Relaxed);
    }

    /// It could not be used, which counts so many times.
    fn noted(&self, kind: TroubleKind, message: String, times: u32, now: Timestamp) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = seen.slot(kind);
        let (earlier, since) = slot.as_ref().map_or((0, now), |fault| (fault.times, fault.since));
        let fault = Fault { kind, message, since, times: earlier.saturating_add(times) };
        match slot {
            // What is told stays until something else is sure, too.
            Some(before) if before.is_told() && !fault.is_told() => before.times = fault.times,
            before => {
                if fault.is_told() && !before.as_ref().is_some_and(Fault::is_told) {
                    tracing::warn!(problem = fault.message, "a provider cannot be called");
                }
                *before = Some(fault);
            }
        }
        self.well.store(false, Ordering::Relaxed);
    }
}

/// OpenAI says so by the code, others by the name of the field.
fn means_the_model(body: &[u8]) -> bool {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return false };
    let error = &body["error"];
    error["code"] == "model_not_found" || error["param"] == "model"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn failure(kind: TroubleKind) -> Failure {
        Failure { kind, message: format!("{kind:?}") }
    }

    fn kind(health: &Health) -> Option<TroubleKind> {
        health.told().trouble.map(|trouble| trouble.kind)
    }

    #[test]
    fn a_success_takes_away_what_was_wrong() {
        let health = Health::default();
        assert_eq!(health.told(), ProviderReach::default());
        health.not_connected(&failure(TroubleKind::NotTrusted), at(1));
        let told = health.told();
        let trouble = told.trouble.expect("told at once: it does not pass by itself");
        assert_eq!((told.reached, trouble.kind, trouble.since), (false, TroubleKind::NotTrusted, at(1)));
        health.answered(StatusCode::OK, || at(2));
        assert_eq!(health.told(), ProviderReach { reached: true, trouble: None });
    }

    #[test]
    fn what_happens_to_anyone_is_told_when_it_happens_again() {
        let health = Health::default();
        health.not_connected(&failure(TroubleKind::NotConnected), at(1));
        assert_eq!(kind(&health), None);
        health.connected();
        health.not_connected(&failure(TroubleKind::NotConnected), at(2));
        assert_eq!(kind(&health), None, "there was a success between");
        health.not_connected(&failure(TroubleKind::NotResolved), at(3));
        assert_eq!(kind(&health), Some(TroubleKind::NotResolved));
        assert_eq!(health.told().trouble.expect("told").since, at(2));
    }

    #[test]
    fn a_key_is_refused_by_401_and_by_403_that_comes_alone() {
        let health = Health::default();
        health.answered(StatusCode::UNAUTHORIZED, || at(1));
        assert_eq!(kind(&health), Some(TroubleKind::KeyRefused));
        // A connection proves nothing of the key, nor does an error of theirs.
        health.connected();
        health.answered(StatusCode::BAD_GATEWAY, || at(1));
        assert_eq!(kind(&health), Some(TroubleKind::KeyRefused));
        health.answered(StatusCode::TOO_MANY_REQUESTS, || at(1));
        assert_eq!(kind(&health), None);
        for _ in 0..2 {
            health.answered(StatusCode::FORBIDDEN, || at(1));
            health.answered(StatusCode::FORBIDDEN, || at(1));
            assert_eq!(kind(&health), None);
            health.answered(StatusCode::OK, || at(1));
        }
        for _ in 0..3 {
            health.answered(StatusCode::FORBIDDEN, || at(1));
        }
        assert_eq!(kind(&health), Some(TroubleKind::KeyRefused));
    }

    #[test]
    fn a_404_is_about_the_model_only_when_it_says_so() {
        let health = Health::default();
        health.answered(StatusCode::NOT_FOUND, || at(1));
        health.not_found("m", br#"{"error": {"code": "unknown_url"}}"#, at(1));
        health.not_found("m", b"<html>", at(1));
        assert_eq!(health.told(), ProviderReach { reached: true, trouble: None });
        health.not_found("m", br#"{"error": {"code": "model_not_found"}}"#, at(1));
        assert_eq!(kind(&health), Some(TroubleKind::ModelUnknown));
        health.answered(StatusCode::OK, || at(1));
        health.not_found("m", br#"{"error": {"code": 404, "param": "model"}}"#, at(1));
        assert_eq!(kind(&health), Some(TroubleKind::ModelUnknown));
    }

    #[test]
    fn a_connection_that_fails_once_takes_nothing_away_of_what_was_answered() {
        let health = Health::default();
        health.answered(StatusCode::UNAUTHORIZED, || at(1));
        health.not_connected(&failure(TroubleKind::NotConnected), at(2));
        assert_eq!(kind(&health), Some(TroubleKind::KeyRefused), "once happens to anyone");
        health.not_connected(&failure(TroubleKind::NotConnected), at(3));
        let trouble = health.told().trouble.expect("told");
        assert_eq!((trouble.kind, trouble.since), (TroubleKind::NotConnected, at(2)), "what is so now");
        health.connected();
        let trouble = health.told().trouble.expect("told");
        assert_eq!((trouble.kind, trouble.since), (TroubleKind::KeyRefused, at(1)));
        // What was counted of refusals counts nothing for connections.
        health.not_connected(&failure(TroubleKind::NotResolved), at(4));
        assert_eq!(kind(&health), Some(TroubleKind::KeyRefused));
        health.answered(StatusCode::OK, || at(5));
        assert_eq!(health.told(), ProviderReach { reached: true, trouble: None });
        health.not_connected(&failure(TroubleKind::NotResolved), at(6));
        assert_eq!(kind(&health), None, "a success takes both away");
    }

    #[test]
    fn an_unknown_model_stays_told_until_more_is_sure() {
        let health = Health::default();
        health.not_found("m", br#"{"error": {"code": "model_not_found"}}"#, at(1));
        health.answered(StatusCode::FORBIDDEN, || at(2));
        assert_eq!(kind(&health), Some(TroubleKind::ModelUnknown));
        health.answered(StatusCode::FORBIDDEN, || at(3));
        assert_eq!(kind(&health), Some(TroubleKind::KeyRefused));
    }

    #[test]
    fn a_400_proves_nothing_of_the_key() {
        let health = Health::default();
        health.answered(StatusCode::UNAUTHORIZED, || at(1));
        health.not_connected(&failure(TroubleKind::NotTrusted), at(1));
        health.answered(StatusCode::BAD_REQUEST, || at(2));
        let told = health.told();
        assert_eq!((told.reached, told.trouble.map(|it| it.kind)), (true, Some(TroubleKind::KeyRefused)));
        health.answered(StatusCode::UNPROCESSABLE_ENTITY, || at(3));
        assert_eq!(kind(&health), None);
    }

    #[test]
    fn looks_are_spread() {
        let (soon, late, now) = (Health::default(), Health::default(), Instant::now());
        assert!(soon.look_now(now, 0.9) && late.look_now(now, 1.1));
        let earlier = now + AGAIN.mul_f64(0.95);
        assert!(soon.look_now(earlier, 1.0) && !late.look_now(earlier, 1.0));
        assert!(!late.look_now(now + AGAIN.mul_f64(1.05), 1.0));
        assert!(late.look_now(now + AGAIN.mul_f64(1.15), 1.0));
    }

    #[test]
    fn who_is_in_trouble_is_looked_at_again_soon() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(health.look_now(now, 1.0));
        assert!(!health.look_now(now + AGAIN_IN_TROUBLE, 1.0));
        health.not_connected(&failure(TroubleKind::NotConnected), at(1));
        assert!(health.look_now(now + AGAIN_IN_TROUBLE, 1.0));
        health.connected();
        assert!(!health.look_now(now + AGAIN_IN_TROUBLE * 2, 1.0));
        health.answered(StatusCode::UNAUTHORIZED, || at(1));
        assert!(!health.look_now(now + AGAIN_IN_TROUBLE * 3, 1.0), "a look tells nothing of the key");
        assert!(health.look_now(now + AGAIN_IN_TROUBLE + AGAIN, 1.0));
    }
}
