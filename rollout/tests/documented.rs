//! Whatever a rollout may say has its place in the docs.

#![allow(clippy::unwrap_used)]

use fairlead_rollout::Reason;

/// Reasons that nothing is to be done about: it goes on, or went as it should.
const WELL: [Reason; 4] = [Reason::NoCanary, Reason::Holding, Reason::GatesPassed, Reason::StepsDone];

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../docs/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn every_reason_to_stop_has_a_runbook_that_names_it() {
    let index = read("runbooks/README.md");
    for reason in Reason::ALL.into_iter().filter(|reason| !WELL.contains(reason)) {
        let name = format!("`{reason:?}`");
        let rows: Vec<&str> =
            index.lines().filter(|line| line.starts_with('|') && line.contains(&name)).collect();
        assert!(!rows.is_empty(), "docs/runbooks/README.md has no row for {reason:?}");
        for row in rows {
            let file = row.split_once("](").unwrap().1.split_once(')').unwrap().0;
            assert!(read(&format!("runbooks/{file}")).contains(&name), "{file} does not name {reason:?}");
        }
    }
}

#[test]
fn every_reason_is_in_the_table_of_the_kinds_page() {
    let page = read("spec/modelroute.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::NoCanary) {
        let named = rows.iter().any(|row| row.split('|').nth(1).unwrap().contains(&format!("`{reason:?}`")));
        assert!(named, "docs/spec/modelroute.md has no row for {reason:?}");
    }
}
