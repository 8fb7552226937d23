//! How evenly events arrive: the server sends them at a fixed interval, and each gap that a client sees differs from it.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Request;
use crate::quantile;

/// Reads so many streams at a time, each to its end, and reports.
pub fn run(request: &Request, streams: usize, interval: Duration) -> anyhow::Result<Value> {
    let results: Mutex<(Vec<Duration>, Vec<String>)> = Mutex::default();
    thread::scope(|scope| {
        for number in 0..streams {
            let results = &results;
            scope.spawn(move || {
                // Spread over one interval: servers that begin together would send together.
                let share = number as f64 / streams as f64;
                thread::sleep(interval.mul_f64(share));
                let read = arrivals(request);
                let Ok(mut results) = results.lock() else { return };
                match read {
                    Ok(times) => {
                        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
                        results.0.extend(gaps.map(|gap| gap.abs_diff(interval)));
                    }
                    Err(error) => results.1.push(format!("{error:#}")),
                }
            });
        }
    });
    let (mut off, errors) = results.into_inner().unwrap_or_default();
    off.sort_unstable();
    Ok(json!({
        "gaps": off.len(),
        "errors": errors.len(),
        "error": errors.first(),
        "p50": quantile(&off, 0.5),
        "p99": quantile(&off, 0.99),
        "max": quantile(&off, 1.0),
    }))
}

/// When each event arrived.
fn arrivals(request: &Request) -> anyhow::Result<Vec<Instant>> {
    let mut times = Vec::new();
    let mut last = u8::MAX;
    request.connect()?.stream_answer(request, |piece, now| {
        for byte in piece {
            // An empty line ends an event.
            if *byte == b'\n' && last == b'\n' {
                times.push(now);
            }
            last = if *byte == b'\r' { last } else { *byte };
        }
        true
    })?;
    // What ends a stream comes at once with its last token.
    times.truncate(times.len().saturating_sub(2));
    Ok(times)
}
