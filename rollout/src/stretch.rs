//! The stretches that recent requests are counted over: which there are at a moment, and the share of alpha that each has.
//!
//! A whole step's counts hide what turns bad after a long good past. So every interval begins a stretch: those requests that begin
//! from then on. A stretch whose number is a multiple of 2^s and not of 2^(s+1) lasts for 2^(s+1) intervals: every second one for two,
//! every fourth for four, and so on. Whenever something breaks, soon one of them began about then, or not long before compared with
//! the time since; and no more than two for each of `SCALES` lengths have to be kept.
//!
//! Owns: the arithmetic. Must not: count, judge, read a clock. Called by gateways, which count, and by the state machine, which judges.

/// Of how many lengths there are stretches; the longest last 512 intervals.
pub const SCALES: u32 = 9;

/// The lengths' number of the longest.
const LONGEST: u32 = SCALES - 1;

/// The length of a stretch that begins with interval `begun`, as a power of two: it lasts for twice that many intervals.
fn scale(begun: i64) -> u32 {
    begun.trailing_zeros().min(LONGEST)
}

/// How many intervals a stretch is judged for.
fn lasts(begun: i64) -> i64 {
    2 << scale(begun)
}

/// Whether a stretch that began with interval `begun` is looked at in interval `now`.
pub fn is_judged(begun: i64, now: i64) -> bool {
    now.saturating_sub(begun) < lasts(begun)
}

/// The beginnings of the stretches that are kept in interval `now`, upwards: those that are judged, and those that were until the
/// last interval, as other clocks may be behind.
fn kept(now: i64) -> Vec<i64> {
    let mut kept: Vec<i64> = (0..SCALES)
        .flat_map(|scale| {
            let unit = 1_i64 << scale;
            // The beginnings of this scale are `apart`, those of the longest just as much as they last, the others twice.
            let (apart, offset) = if scale == LONGEST { (unit, 0) } else { (2 * unit, unit) };
            let last =
                now.saturating_sub(offset).div_euclid(apart).saturating_mul(apart).saturating_add(offset);
            (0..=2).map(move |back| last.saturating_sub(back * apart))
        })
        .filter(|begun| now.saturating_sub(*begun) <= lasts(*begun))
        .collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// The share that the stretch from interval `begun` on has of what all stretches of a step together have, which began in interval
/// `step`. The shares of all stretches that ever begin add up to 1. `None` for those that the whole step's counts cover.
///
/// Each length has as much as another. Of that, the first has 1 − 1/(1 + ln 2), the next 1/(1 + ln 2) − 1/(1 + ln 3), and so on: about
/// 1/(i ln² i), so that a long past costs little, and a long stretch, of which there have been few, the least.
pub fn share(begun: i64, step: i64) -> Option<f64> {
    let covered = step.saturating_add(1);
    if begun <= covered {
        return None;
    }
    let scale = scale(begun);
    let number = |interval: i64| {
        let units = interval >> scale;
        if scale == LONGEST { units } else { units.saturating_add(1) >> 1 }
    };
    let place = number(begun).saturating_sub(number(covered)).max(1);
    // Intervals are counted in millions at most.
    #[allow(clippy::cast_precision_loss)]
    let left = |place: i64| (1.0 + (place as f64).ln()).recip();
    Some((left(place) - left(place.saturating_add(1))) / f64::from(SCALES))
}

/// The stretches that are kept, as time goes on.
#[derive(Clone, Debug)]
pub struct Live {
    now: i64,
    begun: Vec<i64>,
}

impl Live {
    /// From interval `now` on; the first stretch begins with the next.
    pub fn new(now: i64) -> Self {
        Self { now, begun: Vec::new() }
    }

    /// It is interval `now`. Whether that changes which are kept.
    ///
    /// A stretch begins with its interval or never. A clock that goes back by one interval is one that raced with another's reading.
    pub fn advance(&mut self, now: i64) -> bool {
        if now == self.now || now.saturating_add(1) == self.now {
            return false;
        }
        let (before, kept) = (self.now, kept(now));
        self.begun.retain(|begun| kept.contains(begun));
        self.begun.extend(kept.into_iter().filter(|begun| *begun > before));
        self.now = now;
        true
    }

    /// The beginnings of those that are kept, upwards.
    pub fn begun(&self) -> &[i64] {
        &self.begun
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_second_stretch_is_short_and_few_are_long() {
        let lengths: Vec<i64> = (1..=16).map(lasts).collect();
        assert_eq!(lengths, [2, 4, 2, 8, 2, 4, 2, 16, 2, 4, 2, 8, 2, 4, 2, 32]);
        assert_eq!([lasts(0), lasts(256), lasts(-512), lasts(i64::MIN)], [512; 4]);
        let judged = |now| kept(now).into_iter().filter(move |begun| is_judged(*begun, now));
        assert!(judged(1000).eq([512, 768, 896, 960, 976, 992, 996, 998, 999, 1000]));
        for now in 2000..3000 {
            let all = (now - 600..=now).filter(|begun| is_judged(*begun, now));
            assert!(judged(now).eq(all), "{now}");
        }
    }

    #[test]
    fn all_shares_add_up_to_no_more_than_one_however_long_a_step_lasts() {
        for step in [0, 255, -77, 58_000_001] {
            let sum: f64 = (step - 5..step + 500_000).filter_map(|begun| share(begun, step)).sum();
            assert!(sum <= 1.0 && sum > 0.8, "{step}: {sum}");
            assert_eq!([share(step, step), share(step + 1, step), share(i64::MIN, step)], [None; 3]);
        }
        // What a stretch costs beside the first of its length, in nats.
        let nats = |begun: i64| -share(begun, -1).unwrap().ln();
        assert!(
            nats(100_001) < 18.0 && nats(100_000 & !63) < 13.0,
            "{} {}",
            nats(100_001),
            nats(100_000 & !63)
        );
    }

    proptest! {
        /// What breaks is soon seen by a stretch that has at least a quarter of the time since, and nothing from before.
        #[test]
        fn some_stretch_began_not_long_after_whatever_breaks(broke in 1_000_i64..100_000_000, since in 1_i64..1_000) {
            let now = broke + since;
            let kept = kept(now);
            let best = kept.iter().copied().find(|begun| *begun >= broke && is_judged(*begun, now));
            let best = best.expect("a stretch without good past");
            prop_assert!(4 * (now + 1 - best) > since.min(512), "{best} {broke} {now}");
            prop_assert!(kept.len() <= 2 * SCALES as usize);
        }

        /// However its clock jumps, nothing is kept for longer than it is of use, and what is kept began in time.
        #[test]
        fn what_is_kept_began_in_time_and_is_of_use(jumps in prop::collection::vec(-40_i64..80, 1..60)) {
            let mut live = Live::new(5_000);
            let mut now = 5_000;
            for jump in jumps {
                // Mostly on, by one.
                let step = if jump % 3 == 0 { jump } else { 1 };
                now += step;
                live.advance(now);
                prop_assert!(live.begun().is_sorted() && live.begun().len() <= 2 * SCALES as usize);
                for begun in live.begun() {
                    prop_assert!(*begun <= now + 1, "{begun} {now}");
                    prop_assert!(now.saturating_sub(*begun) <= lasts(*begun), "{begun} {now}");
                }
            }
        }

        #[test]
        fn without_jumps_every_kept_stretch_is_there(steps in 1_i64..700) {
            let mut live = Live::new(77);
            for now in 78..=77 + steps {
                prop_assert!(live.advance(now), "each interval begins a stretch");
            }
            let expected: Vec<i64> = kept(77 + steps).into_iter().filter(|begun| *begun > 77).collect();
            prop_assert_eq!(live.begun(), expected);
        }
    }
}
