//! A report as text. Pure.

use jiff::Timestamp;

use crate::render::units::{short, span};
use crate::render::{Paint, Table, wrap};

use super::report::{Moment, Report, Standing};
use super::{bar, gates};

/// How many moves of the history a status shows; `rollout history` shows all.
const RECENT: usize = 6;
/// From this width on the history has dates beside ages.
const ROOMY: usize = 72;

/// All of it, for a terminal.
pub fn full(report: &Report, now: Timestamp, width: usize, paint: Paint) -> String {
    let Report { namespace, route, canary, stable, split, gates, history, steps, message, stalled, .. } =
        report;
    let mut lines: Vec<String> = Vec::new();
    let names = match (canary, stable) {
        (Some(canary), Some(stable)) => format!("   {canary} against {stable}"),
        (Some(canary), None) => format!("   {canary}"),
        _ => String::new(),
    };
    lines.push(format!(
        "{}   {}{names}",
        paint.strong(&format!("{namespace}/{route}")),
        paint.phase(&report.phase)
    ));
    if let Some(stalled) = stalled {
        let words = format!("The operator cannot act on this route: {stalled}");
        lines.extend(wrap(&words, width).iter().map(|row| paint.bad(row)));
    }
    if let Some(message) = message {
        lines.extend(wrap(message, width));
    }
    if let Some(steps) = steps {
        lines.push(String::new());
        for row in bar::bar(steps, width).lines() {
            // The bar itself is no text.
            if row.starts_with('[') { lines.push(row.to_owned()) } else { lines.extend(wrap(row, width)) }
        }
    }
    if !split.is_empty() {
        lines.push(String::new());
        let mut table = Table::new(&["BACKEND", "SHARE", ""]).right(1);
        for share in split {
            let role = if Some(&share.backend) == canary.as_ref() { "canary" } else { "" };
            table.row([share.backend.clone(), format!("{} %", short(share.percent)), role.to_owned()]);
        }
        lines.extend(table.render(width).lines().map(str::to_owned));
    }
    if !gates.is_empty() {
        lines.push(String::new());
        lines.extend(gates::text(gates, width, paint).lines().map(str::to_owned));
    }
    if !history.is_empty() {
        lines.push(String::new());
        let recent = &history[history.len().saturating_sub(RECENT)..];
        lines.extend(moments(recent, now, width, paint).render(width).lines().map(str::to_owned));
    }
    for hint in hints(report) {
        lines.push(String::new());
        lines.push(paint.faint(&hint));
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// One line, for logs: what `-w` prints for every change where there is no terminal.
pub fn line(report: &Report) -> String {
    let Report { route, weight, message, steps, canary, .. } = report;
    let step = steps
        .as_ref()
        .map(|steps| format!(" step {}/{}", steps.number, steps.weights.len()))
        .unwrap_or_default();
    let share = canary.as_ref().map(|canary| format!(", {canary} has {weight} %")).unwrap_or_default();
    let gates: Vec<String> =
        report.gates.iter().map(|gate| format!("{} {}", gate.gate, gate.verdict)).collect();
    let gates = if gates.is_empty() { String::new() } else { format!(" [{}]", gates.join(", ")) };
    let message = report
        .stalled
        .as_ref()
        .or(message.as_ref())
        .map(|message| format!(": {message}"))
        .unwrap_or_default();
    format!("{route} {}{step}{share}{gates}{message}", report.phase)
}

/// The history as a table.
pub fn moments(history: &[Moment], now: Timestamp, width: usize, paint: Paint) -> Table {
    let mut table = Table::new(&["WHEN", "AGO", "CANARY", "PHASE", "SHARE", "REASON"]).right(4);
    for Moment { at, canary, phase, reason, weight } in history {
        let ago = at.map(|at| span(u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0)));
        // Whole seconds are enough.
        let when = at.filter(|_| width >= ROOMY).map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        table.row([
            when.unwrap_or_default(),
            ago.unwrap_or_default(),
            canary.clone(),
            paint.phase(phase),
            format!("{weight} %"),
            reason.clone(),
        ]);
    }
    table
}

/// What a person can do next.
fn hints(report: &Report) -> Vec<String> {
    let ask = |actions: &str| {
        vec![format!("kubectl fairlead rollout {actions} {} -n {}", report.route, report.namespace)]
    };
    match (report.standing(), report.phase.as_str()) {
        (Standing::UnderWay, "Pending") | (Standing::Done, _) => Vec::new(),
        (Standing::UnderWay, "Paused") => ask("resume|promote|abort"),
        (Standing::UnderWay, _) => ask("pause|promote|abort"),
        (Standing::Failed, _) => ask("retry"),
    }
}
