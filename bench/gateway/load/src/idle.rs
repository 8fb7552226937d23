//! Streams that are open and silent, held until standard input ends.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

use crate::client::{Connection, Request};

/// Opens so many streams, reads the first event of each, says so and holds them.
pub fn run(request: &Request, streams: usize, opening: usize) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let held: Mutex<(Vec<Connection>, Vec<String>)> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..opening {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < streams {
                    let opened = request.connect().and_then(|mut connection| {
                        connection.stream_answer(request, |_, _| false)?;
                        Ok(connection)
                    });
                    let Ok(mut held) = held.lock() else { return };
                    match opened {
                        Ok(connection) => held.0.push(connection),
                        Err(error) => held.1.push(format!("{error:#}")),
                    }
                }
            });
        }
    });
    let (held, errors) = held.into_inner().unwrap_or_default();
    println!("{}", json!({"held": held.len(), "errors": errors.len(), "error": errors.first()}));
    // Whoever started this reads the line, measures, and closes the pipe.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
