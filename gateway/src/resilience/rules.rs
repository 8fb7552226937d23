//! A route's rules for slow and broken backends, read once for each snapshot. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_crds::model_route::ModelRouteSpec;
use fairlead_crds::model_route::duration::parse;
use fairlead_crds::model_route::resilience::{FallbackOn, Hedging, Retries, RetryOn, Timeouts};

use super::circuit::Breaker;
use crate::retry::RetryBudget;

/// Second questions as a share of the requests, where the spec does not say.
const HEDGES_PERCENT: u32 = 5;

/// A route's rules; what is `None` is as the gateway's flags say.
#[derive(Debug, Default)]
pub struct Rules {
    /// Until the first byte.
    pub first_byte: Option<Duration>,
    /// Between two pieces of a stream.
    pub between_tokens: Option<Duration>,
    /// For all of a request.
    pub request: Option<Duration>,
    /// Most attempts.
    pub attempts: Option<u32>,
    /// The route's own budget of retries.
    pub budget: Option<Arc<RetryBudget>>,
    retry_on: Option<Vec<RetryOn>>,
    /// When and how often a second pod is asked.
    pub hedge: Option<Hedge>,
    /// What is tried when nobody else could answer: backends' names, in order.
    pub fallbacks: Vec<FallbackRule>,
    /// When a backend is left alone.
    pub breaker: Breaker,
    key: String,
}

/// When a second pod is asked.
#[derive(Clone, Debug)]
pub struct Hedge {
    /// After so long without a beginning.
    pub after: Duration,
    /// How often.
    pub budget: Arc<RetryBudget>,
}

/// A backend that is tried when others could not answer.
#[derive(Clone, Debug)]
pub struct FallbackRule {
    /// Its name.
    pub backend: String,
    on: Option<Vec<FallbackOn>>,
}

impl FallbackRule {
    /// Whether it is for this.
    pub fn is_for(&self, why: FallbackOn) -> bool {
        self.on.as_ref().is_none_or(|on| on.contains(&why))
    }
}

impl Rules {
    /// The rules of a spec. Budgets go on where `previous` had the same rules.
    pub fn of(spec: &ModelRouteSpec, previous: Option<&Self>, now: Instant) -> Self {
        let Timeouts { first_byte, between_tokens, request } = spec.timeouts.clone().unwrap_or_default();
        let Retries { attempts, budget_percent, on } = spec.retries.clone().unwrap_or_default();
        let time = |text: Option<String>| text.as_deref().and_then(parse);
        let key = serde_json::to_string(&(&spec.retries, &spec.hedging)).unwrap_or_default();
        let same = previous.filter(|previous| previous.key == key);
        let budget = |percent| Arc::new(RetryBudget::of_percent(percent, now));
        let retries =
            same.and_then(|previous| previous.budget.clone()).or_else(|| budget_percent.map(budget));
        let hedge = same.and_then(|previous| previous.hedge.clone()).or_else(|| {
            let Hedging { after, max_percent } = spec.hedging.as_ref()?;
            let budget = Arc::new(RetryBudget::share_only(max_percent.unwrap_or(HEDGES_PERCENT), now));
            Some(Hedge { after: parse(after)?, budget })
        });
        let fallbacks = spec.fallbacks.iter();
        Self {
            first_byte: time(first_byte),
            between_tokens: time(between_tokens),
            request: time(request),
            attempts,
            budget: retries,
            retry_on: on,
            hedge,
            fallbacks: fallbacks
                .map(|fallback| FallbackRule { backend: fallback.backend.clone(), on: fallback.on.clone() })
                .collect(),
            breaker: spec.circuit_breaker.as_ref().map(Breaker::of).unwrap_or_default(),
            key,
        }
    }

    /// Whether a failure of this kind is tried again.
    pub fn retries(&self, what: RetryOn) -> bool {
        match &self.retry_on {
            Some(on) => on.contains(&what),
            None => matches!(what, RetryOn::Connect | RetryOn::Reset | RetryOn::Busy),
        }
    }

    /// Notes a new request in the budgets.
    pub fn earn(&self) {
        if let Some(budget) = &self.budget {
            budget.earn();
        }
        if let Some(hedge) = &self.hedge {
            hedge.budget.earn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(extra: Value) -> ModelRouteSpec {
        let mut spec = json!({"backends": [{"name": "v1", "modelDeployment": "m"}]});
        spec.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        serde_json::from_value(spec).expect("a spec")
    }

    #[test]
    fn what_is_left_out_is_left_to_the_flags() {
        let rules = Rules::of(&spec(json!({})), None, Instant::now());
        assert!(rules.first_byte.is_none() && rules.attempts.is_none() && rules.budget.is_none());
        assert!(rules.retries(RetryOn::Busy) && !rules.retries(RetryOn::Timeout));
        assert!(rules.hedge.is_none() && rules.fallbacks.is_empty());
        assert_eq!(rules.breaker, Breaker::default());
    }

    #[test]
    fn what_is_said_is_read_and_budgets_outlive_other_edits() {
        let said = json!({
            "timeouts": {"firstByte": "1500ms", "request": "2m"},
            "retries": {"attempts": 5, "budgetPercent": 10, "on": ["Timeout"]},
            "hedging": {"after": "300ms"},
            "fallbacks": [{"backend": "v1", "on": ["Overloaded"]}, {"backend": "v1"}],
        });
        let now = Instant::now();
        let rules = Rules::of(&spec(said.clone()), None, now);
        assert_eq!((rules.first_byte, rules.between_tokens), (Some(Duration::from_millis(1500)), None));
        assert!(rules.retries(RetryOn::Timeout) && !rules.retries(RetryOn::Connect));
        assert!(
            rules.fallbacks[0].is_for(FallbackOn::Overloaded)
                && !rules.fallbacks[0].is_for(FallbackOn::Error)
        );
        assert!(rules.fallbacks[1].is_for(FallbackOn::Error));
        let mut other = said.clone();
        other["timeouts"] = json!({});
        let next = Rules::of(&spec(other.clone()), Some(&rules), now);
        let same = |one: &Rules, two: &Rules| {
            Arc::ptr_eq(one.budget.as_ref().expect("a budget"), two.budget.as_ref().expect("a budget"))
        };
        assert!(same(&rules, &next));
        other["retries"]["budgetPercent"] = json!(20);
        assert!(!same(&next, &Rules::of(&spec(other), Some(&next), now)));
    }
}
