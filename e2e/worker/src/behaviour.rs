//! How a worker behaves: how long its answers are, how fast they come and how often they fail. Pure: the dice are handed in.

use std::time::Duration;

use clap::Args;
use rand::{Rng, RngExt};

/// How a worker behaves.
#[derive(Args, Clone, Debug)]
pub struct Behaviour {
    /// Tokens of an answer, unless the request wants fewer.
    #[arg(long, env = "FAIRLEAD_WORKER_TOKENS", default_value_t = 16)]
    pub tokens: u32,
    /// Time to the first token, such as 20ms.
    #[arg(long, env = "FAIRLEAD_WORKER_FIRST_TOKEN", default_value = "0ms", value_parser = duration)]
    pub first_token: Duration,
    /// Time between two tokens, such as 500us.
    #[arg(long, env = "FAIRLEAD_WORKER_PER_TOKEN", default_value = "0ms", value_parser = duration)]
    pub per_token: Duration,
    /// How much both times vary from answer to answer: 0.3 draws a factor from 0.7 to 1.3.
    #[arg(long, env = "FAIRLEAD_WORKER_SPREAD", default_value_t = 0.0, value_parser = share)]
    pub spread: f64,
    /// Part of the requests that are answered with a 500.
    #[arg(long, env = "FAIRLEAD_WORKER_ERROR_RATE", default_value_t = 0.0, value_parser = share)]
    pub error_rate: f64,
    /// Part of the answers that break off in the middle.
    #[arg(long, env = "FAIRLEAD_WORKER_BREAK_RATE", default_value_t = 0.0, value_parser = share)]
    pub break_rate: f64,
    /// Part of the requests that are never answered.
    #[arg(long, env = "FAIRLEAD_WORKER_HANG_RATE", default_value_t = 0.0, value_parser = share)]
    pub hang_rate: f64,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// A 500.
    Error,
    /// Nothing, until the client goes away.
    Hang,
    /// An answer.
    Answer {
        /// Its tokens.
        tokens: u32,
        /// After so many of them it breaks off.
        breaks_after: Option<u32>,
        /// Time to the first.
        first_token: Duration,
        /// Time between two.
        per_token: Duration,
    },
}

impl Behaviour {
    /// Draws what becomes of a request that wants at most `wanted` tokens.
    pub fn draw(&self, wanted: Option<u32>, rng: &mut impl Rng) -> Fate {
        if rng.random_bool(self.error_rate) {
            return Fate::Error;
        }
        if rng.random_bool(self.hang_rate) {
            return Fate::Hang;
        }
        let factor =
            if self.spread > 0.0 { rng.random_range(1.0 - self.spread..=1.0 + self.spread) } else { 1.0 };
        let tokens = wanted.unwrap_or(self.tokens).min(self.tokens).max(1);
        Fate::Answer {
            tokens,
            breaks_after: rng.random_bool(self.break_rate).then(|| rng.random_range(0..tokens)),
            first_token: self.first_token.mul_f64(factor),
            per_token: self.per_token.mul_f64(factor),
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is not a number; write one from 0 to 1"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(format!("{text} is not from 0 to 1")) }
}

/// A time such as `5s`, `20ms` or `500us`.
///
/// # Errors
/// In words, with the form.
pub fn duration(text: &str) -> Result<Duration, String> {
    let remedy = || format!("{text:?} is not a time; write one such as 5s, 20ms or 500us");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(remedy)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| remedy())?;
    match unit {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(remedy),
        _ => Err(remedy()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn behaviour() -> Behaviour {
        Behaviour {
            tokens: 10,
            first_token: Duration::from_millis(100),
            per_token: Duration::from_millis(10),
            spread: 0.0,
            error_rate: 0.0,
            break_rate: 0.0,
            hang_rate: 0.0,
        }
    }

    #[test]
    fn without_faults_every_answer_is_as_told() {
        let mut rng = StdRng::seed_from_u64(1);
        let expected = Fate::Answer {
            tokens: 4,
            breaks_after: None,
            first_token: Duration::from_millis(100),
            per_token: Duration::from_millis(10),
        };
        for _ in 0..100 {
            assert_eq!(behaviour().draw(Some(4), &mut rng), expected);
        }
    }

    #[test]
    fn faults_come_as_often_as_told() {
        let behaviour = Behaviour { error_rate: 0.1, hang_rate: 0.2, break_rate: 0.5, ..behaviour() };
        let mut rng = StdRng::seed_from_u64(2);
        let fates: Vec<Fate> = (0..10_000).map(|_| behaviour.draw(None, &mut rng)).collect();
        let count = |wanted: fn(&Fate) -> bool| fates.iter().filter(|fate| wanted(fate)).count();
        assert!(count(|fate| *fate == Fate::Error).abs_diff(1_000) < 150);
        assert!(count(|fate| *fate == Fate::Hang).abs_diff(1_800) < 200);
        let broken = count(|fate| matches!(fate, Fate::Answer { breaks_after: Some(0..10), .. }));
        assert!(broken.abs_diff(3_600) < 250, "{broken}");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "ms", "-1s", "1h", "99999999999999999999s"] {
            assert!(duration(bad).unwrap_err().contains("20ms"), "{bad}");
        }
    }
}
