//! Columns of text, as kubectl prints them: left-aligned, three spaces apart, no wider than the terminal.

use console::{Alignment, measure_text_width, pad_str, truncate_str};

const GAP: usize = 3;

/// A table that is being filled.
#[derive(Clone, Debug, Default)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with these columns.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&name| name.to_owned()).collect(), ..Self::default() }
    }

    /// Aligns a column of numbers to the right.
    pub fn right(mut self, column: usize) -> Self {
        self.right.push(column);
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How wide it is where nothing is cut.
    pub fn width(&self) -> usize {
        self.render(usize::MAX).lines().map(measure_text_width).max().unwrap_or(0)
    }

    /// The text. Where it is too wide, the widest columns are cut with `…` first; columns without any content are left out.
    pub fn render(&self, width: usize) -> String {
        let used: Vec<usize> = (0..self.head.len())
            .filter(|&column| {
                self.rows.is_empty()
                    || self.rows.iter().any(|row| row.get(column).is_some_and(|cell| !cell.is_empty()))
            })
            .collect();
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let mut widths: Vec<usize> = used
            .iter()
            .map(|&column| all().map(|row| measure_text_width(&cell(row, column))).max().unwrap_or(0))
            .collect();
        narrow(&mut widths, width);
        let mut text = String::new();
        for row in all() {
            let mut line = String::new();
            for (&column, &wide) in used.iter().zip(&widths) {
                let side = if self.right.contains(&column) { Alignment::Right } else { Alignment::Left };
                let cell = cell(row, column);
                line.push_str(&pad_str(&truncate_str(&cell, wide, "…"), wide, side, None));
                line.push_str(&" ".repeat(GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Takes columns from the widest until the row fits; none gets narrower than 8.
fn narrow(widths: &mut [usize], width: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>().saturating_add(gaps) > width {
        match widths.iter_mut().filter(|wide| **wide > 8).max() {
            Some(widest) => *widest -= 1,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "NOTE", "N"]).right(2);
        table.row(["v1".to_owned(), "a rather long remark".to_owned(), "7".to_owned()]);
        table.row(["überlänge".to_owned(), String::new(), "1234".to_owned()]);
        table
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let expected = "NAME        NOTE                      N\nv1          a rather long remark      7\nüberlänge                          1234\n";
        assert_eq!(table().render(80), expected);
    }

    #[test]
    fn the_widest_is_cut_and_no_line_is_wider_than_the_terminal() {
        let text = table().render(30);
        assert!(text.contains("a rather l…"), "{text}");
        assert!(text.lines().all(|line| measure_text_width(line) <= 30), "{text}");
        // Nothing sensible fits: it overflows rather than vanishes.
        assert!(table().render(5).contains("1234"));
    }

    #[test]
    fn a_column_without_content_is_left_out() {
        let mut table = Table::new(&["NAME", "EMPTY", "N"]);
        table.row(["v1".to_owned(), String::new(), "7".to_owned()]);
        assert_eq!(table.render(80), "NAME   N\nv1     7\n");
    }
}
