//! Requests at a fixed rate. A latency counts from the moment at which the request was due, so that one that had to wait for a
//! connection, because those before it were slow, says so.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Connection, Request};
use crate::quantile;

/// Sleeps end late by up to this much; the rest is waited for awake.
const SLACK: Duration = Duration::from_micros(150);

/// Sends for so many seconds and reports.
pub fn run(request: &Request, rate: f64, seconds: f64, connections: usize) -> anyhow::Result<Value> {
    let count = (rate * seconds) as usize;
    let next = AtomicUsize::new(0);
    let results: Mutex<(Vec<Duration>, Vec<String>)> = Mutex::new((Vec::with_capacity(count), Vec::new()));
    let opened: Vec<Connection> =
        (0..connections).map(|_| request.connect()).collect::<anyhow::Result<_>>()?;
    let start = Instant::now() + Duration::from_millis(50);
    thread::scope(|scope| {
        for connection in opened {
            scope.spawn(|| {
                let (latencies, errors) = worker(request, connection, rate, count, start, &next);
                if let Ok(mut results) = results.lock() {
                    results.0.extend(latencies);
                    results.1.extend(errors);
                }
            });
        }
    });
    let (mut latencies, errors) = results.into_inner().unwrap_or_default();
    latencies.sort_unstable();
    let took = start.elapsed().as_secs_f64();
    Ok(json!({
        "requests": latencies.len(),
        "errors": errors.len(),
        "error": errors.first(),
        "rate": latencies.len() as f64 / took,
        "p50": quantile(&latencies, 0.5),
        "p90": quantile(&latencies, 0.9),
        "p99": quantile(&latencies, 0.99),
        "p999": quantile(&latencies, 0.999),
        "max": quantile(&latencies, 1.0),
    }))
}

fn worker(
    request: &Request,
    connection: Connection,
    rate: f64,
    count: usize,
    start: Instant,
    next: &AtomicUsize,
) -> (Vec<Duration>, Vec<String>) {
    let (mut latencies, mut errors) = (Vec::new(), Vec::new());
    let mut connection = Some(connection);
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= count {
            return (latencies, errors);
        }
        let due = start + Duration::from_secs_f64(index as f64 / rate);
        if let Some(ahead) = due.checked_duration_since(Instant::now() + SLACK) {
            thread::sleep(ahead);
        }
        while Instant::now() < due {
            thread::yield_now();
        }
        let asked = match connection.take() {
            Some(open) => Ok(open),
            None => request.connect(),
        };
        let answered = asked.and_then(|mut open| Ok((open.ask(request)?, open)));
        match answered {
            Ok((again, open)) => {
                latencies.push(due.elapsed());
                connection = again.then_some(open);
            }
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
}
