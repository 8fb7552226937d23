//! The progress bar through the steps. Pure.

use crate::render::units::span;

use super::report::Steps;

/// Narrowest bar that is drawn.
const NARROWEST: usize = 20;
/// Widest bar that is drawn.
const WIDEST: usize = 72;

/// `[=====|==>  |      ] step 2/3, 25 %`, and when it can go on at the earliest.
///
/// Every step has the same room, however long it is: holds differ by orders of magnitude.
pub fn bar(steps: &Steps, width: usize) -> String {
    let Steps { number, weights, hold_seconds, held_seconds, left_seconds, all_left_seconds } = steps;
    let count = weights.len().max(1);
    let room = (width.clamp(NARROWEST, WIDEST) - 2) / count;
    let room = room.saturating_sub(1).max(1);
    let hold = hold_seconds.get(number - 1).copied().unwrap_or(0);
    let mut cells = Vec::with_capacity(count);
    for index in 1..=count {
        let filled = match index.cmp(number) {
            std::cmp::Ordering::Less => room,
            std::cmp::Ordering::Greater => 0,
            std::cmp::Ordering::Equal => part(held_seconds.unwrap_or(0), hold, room),
        };
        let mut cell = "=".repeat(filled);
        if index == *number && filled < room {
            cell.push('>');
        }
        cells.push(format!("{cell:room$}"));
    }
    let weight = weights.get(number - 1).copied().unwrap_or(0);
    let time = match held_seconds {
        None => format!("its {} have not begun", span(hold)),
        Some(_) if *left_seconds > 0 => format!("{} of {} left", span(*left_seconds), span(hold)),
        Some(held) => format!("held for {}", span(*held)),
    };
    let then =
        if *all_left_seconds == 0 { "now".to_owned() } else { format!("in {}", span(*all_left_seconds)) };
    let words = format!("step {number}/{count} at {weight} %: {time}; promotion {then} at the earliest");
    format!("[{}]\n{words}", cells.join("|"))
}

fn part(done: u64, of: u64, room: usize) -> usize {
    if of == 0 {
        return room;
    }
    let room_ = u64::try_from(room).unwrap_or(u64::MAX);
    usize::try_from(done.min(of) * room_ / of).unwrap_or(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(number: usize, held: Option<u64>) -> Steps {
        let left = 600 - held.unwrap_or(0).min(600);
        Steps {
            number,
            weights: vec![5, 25, 50],
            hold_seconds: vec![600, 600, 1200],
            held_seconds: held,
            left_seconds: left,
            all_left_seconds: left + 1200,
        }
    }

    #[test]
    fn the_bar_fills_step_by_step() {
        assert_eq!(
            bar(&steps(2, Some(252)), 40),
            "[===========|====>      |           ]\nstep 2/3 at 25 %: 5m48s of 10m00s left; promotion in 25m48s at the earliest"
        );
        assert!(bar(&steps(1, None), 40).contains("[>          |"));
        assert!(
            bar(&steps(2, Some(900)), 40)
                .contains("[===========|===========|           ]\nstep 2/3 at 25 %: held for 15m00s")
        );
        // A terminal of no width, a hold of no time, and more steps than room.
        let odd = Steps {
            number: 20,
            weights: vec![1; 20],
            hold_seconds: vec![0; 20],
            held_seconds: Some(0),
            ..Steps::default()
        };
        assert!(bar(&odd, 0).contains("promotion now"));
    }
}
