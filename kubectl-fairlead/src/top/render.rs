//! `top` as text. Pure.

use crate::render::units::{latency, short};
use crate::render::{Paint, Table, wrap};

use super::window::{Backend, Top};

/// A share of failures from which on it is red, in percent.
const MANY_FAILURES: f64 = 1.0;

/// A table of backends, under a line of what it is of.
pub fn text(top: &Top, width: usize, paint: Paint) -> String {
    let Top { window_seconds, gateways, silent, in_flight, backends } = top;
    let s = if *gateways == 1 { "" } else { "s" };
    let mut text = format!(
        "{gateways} gateway{s}, {in_flight} requests in flight, over the last {} s\n",
        short(*window_seconds)
    );
    for why in silent {
        for line in wrap(why, width) {
            text.push_str(&paint.wary(&line));
            text.push('\n');
        }
    }
    text.push('\n');
    if backends.is_empty() {
        text.push_str("no backends\n");
        return text;
    }
    let head = [
        "NAMESPACE",
        "ROUTE",
        "BACKEND",
        "SHARE",
        "SEEN",
        "REQ/S",
        "FAILED",
        "TTFT P50",
        "P99",
        "E2E P50",
        "P99",
        "TOK/S",
        "IN FLIGHT",
    ];
    let mut table = (3..head.len()).fold(Table::new(&head), Table::right);
    let several = backends.iter().any(|backend| backends[0].namespace != backend.namespace);
    for backend in backends {
        let Backend { percent, seen_percent, failed_percent, time_to_first_token, end_to_end, .. } = backend;
        let share =
            |share: &Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{} %", short(share)));
        let time = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), latency);
        let failed = share(failed_percent);
        table.row([
            // Where all have the same, whoever asked knows which.
            if several { backend.namespace.clone() } else { String::new() },
            backend.route.clone(),
            backend.backend.clone(),
            percent.map(|percent| format!("{} %", short(percent))).unwrap_or_default(),
            share(&seen_percent.map(|seen| (seen * 10.0).round() / 10.0)),
            rate(backend.requests_per_second),
            if failed_percent.is_some_and(|failed| failed >= MANY_FAILURES) {
                paint.bad(&failed)
            } else {
                failed
            },
            time(time_to_first_token.p50),
            time(time_to_first_token.p99),
            time(end_to_end.p50),
            time(end_to_end.p99),
            rate(backend.tokens_per_second),
            short(backend.in_flight),
        ]);
    }
    text.push_str(&table.render(width));
    text
}

fn rate(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::window::Quantiles;

    fn top() -> Top {
        let backend = |backend: &str, percent: f64, failed: f64| Backend {
            namespace: "shop".to_owned(),
            route: "support-chat".to_owned(),
            backend: backend.to_owned(),
            percent: Some(percent),
            seen_percent: Some(percent + 0.4321),
            requests_per_second: 2.04 * percent,
            failed_percent: Some(failed),
            time_to_first_token: Quantiles { p50: Some(0.12), p99: Some(1.2) },
            end_to_end: Quantiles { p50: Some(2.5), p99: Some(12.0) },
            tokens_per_second: 31.0 * percent,
            in_flight: 17.0,
        };
        let idle = Backend {
            backend: "v3".to_owned(),
            route: "support-chat".to_owned(),
            namespace: "shop".to_owned(),
            ..Backend::default()
        };
        Top {
            window_seconds: 10.0,
            gateways: 2,
            silent: vec!["the gateway fairlead-gateway-x does not answer: no answer within 15 s".to_owned()],
            in_flight: 34.0,
            backends: vec![backend("v1", 75.0, 0.02), backend("v2", 25.0, 3.5), idle],
        }
    }

    #[test]
    fn backends_in_a_table() {
        insta::assert_snapshot!(text(&top(), 140, Paint::PLAIN));
        let narrow = text(&top(), 90, Paint::PLAIN);
        assert!(narrow.lines().all(|line| console::measure_text_width(line) <= 110), "{narrow}");
        assert!(text(&top(), 140, Paint::new(true)).contains("\u{1b}[31m3.5 %"), "failures are red");
    }

    #[test]
    fn the_page_shows_what_is_printed() {
        let mut top = top();
        top.silent.clear();
        top.backends.truncate(2);
        crate::documented::check("kubectl fairlead top -w", &text(&top, 140, Paint::PLAIN));
    }

    #[test]
    fn json_for_programs() {
        insta::assert_json_snapshot!(Top { backends: vec![top().backends[0].clone()], ..top() });
    }
}
