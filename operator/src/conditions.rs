//! Conditions after the kstatus rules, as a pure function of a verdict: `Ready` always, `Reconciling` or `Stalled` only
//! while they hold. Both controllers' statuses are made from it.

use fairlead_crds::condition::{READY, RECONCILING, STALLED, reconciling};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::error::Error;

/// How an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does what its spec says.
    Ready {
        /// One of `condition::ready`.
        reason: &'static str,
        /// In words.
        message: String,
    },
    /// It is being worked on.
    Reconciling {
        /// One of `condition::reconciling`.
        reason: &'static str,
        /// What is waited for.
        message: String,
    },
    /// Only a person can help.
    Stalled {
        /// One of `condition::stalled`.
        reason: &'static str,
        /// The field and the remedy.
        message: String,
    },
}

impl Verdict {
    /// What an error means for its object.
    pub fn of_error(error: &Error) -> Self {
        match error {
            Error::Invalid { reason, message, .. } => Self::Stalled { reason, message: message.clone() },
            Error::Waiting { reason, message, .. } => Self::Reconciling { reason, message: message.clone() },
            Error::Transient(_) | Error::NamespaceTerminating | Error::Outdated | Error::Kube { .. } => {
                Self::Reconciling { reason: reconciling::WAITING, message: format!("{error}; trying again") }
            }
        }
    }
}

/// The longest message that a condition may have.
const LONGEST_MESSAGE: usize = 32_768;

/// The conditions for a verdict. A condition keeps its transition time while its status stays the same.
pub fn conditions(
    before: &[Condition],
    verdict: &Verdict,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |type_: &str, status: &str, reason: &str, message: &str| Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(LONGEST_MESSAGE / 4).collect(),
        observed_generation: generation,
        last_transition_time: before
            .iter()
            .find(|old| old.type_ == type_ && old.status == status)
            .map_or(Time(now), |old| old.last_transition_time.clone()),
    };
    match verdict {
        Verdict::Ready { reason, message } => vec![condition(READY, "True", reason, message)],
        Verdict::Reconciling { reason, message } => {
            vec![condition(READY, "False", reason, message), condition(RECONCILING, "True", reason, message)]
        }
        Verdict::Stalled { reason, message } => {
            vec![condition(READY, "False", reason, message), condition(STALLED, "True", reason, message)]
        }
    }
}

/// How many of the objects with these conditions are ready, being worked on, and stalled. One without a status counts as
/// being worked on.
pub fn count_states(objects: &[Vec<Condition>]) -> [usize; 3] {
    let mut counts = [0; 3];
    for conditions in objects {
        let holds = |type_: &str| conditions.iter().any(|it| it.type_ == type_ && it.status == "True");
        let state = if holds(STALLED) {
            2
        } else if holds(READY) {
            0
        } else {
            1
        };
        counts[state] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_healthy_object_has_no_false_condition() {
        let ready = Verdict::Ready { reason: "Available", message: String::new() };
        let conditions = conditions(&[], &ready, Some(1), at(1));
        assert_eq!(conditions.len(), 1);
        assert_eq!((&*conditions[0].type_, &*conditions[0].status), (READY, "True"));
    }

    #[test]
    fn stalled_and_reconciling_exclude_each_other_and_leave_when_over() {
        let stalled = Verdict::Stalled { reason: "InvalidSpec", message: "fix it".into() };
        let first = conditions(&[], &stalled, Some(1), at(1));
        let types =
            |conditions: &[Condition]| conditions.iter().map(|it| it.type_.clone()).collect::<Vec<_>>();
        assert_eq!(types(&first), [READY, STALLED]);
        let rolling = Verdict::Reconciling { reason: "RollingOut", message: "0/1".into() };
        let second = conditions(&first, &rolling, Some(2), at(2));
        assert_eq!(types(&second), [READY, RECONCILING]);
        assert_eq!(second[0].last_transition_time, Time(at(1)), "Ready was False before");
        assert_eq!(second[1].last_transition_time, Time(at(2)));
        let ready = Verdict::Ready { reason: "Available", message: String::new() };
        let third = conditions(&second, &ready, Some(2), at(3));
        assert_eq!(types(&third), [READY]);
        assert_eq!(third[0].last_transition_time, Time(at(3)));
        assert_eq!(conditions(&third, &ready, Some(2), at(9)), third, "nothing changed, so nothing is new");
    }
}
