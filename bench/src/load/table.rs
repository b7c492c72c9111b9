//! Results as Markdown tables.

use std::fmt::Write as _;

use anyhow::Result;

/// The result of one subject, as a Markdown table.
pub struct Table {
    pub title: &'static str,
    /// What is done, in a sentence or two.
    what: String,
    head: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(title: &'static str, what: String, head: &[&'static str]) -> Table {
        Table { title, what, head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, or the reason why there is none.
    pub fn row(&mut self, name: &str, cells: Result<Vec<String>>) {
        let cells = cells.unwrap_or_else(|error| vec![format!("not measured: {error:#}").replace('|', "/")]);
        let row: Vec<String> = std::iter::once(name.to_owned()).chain(cells).collect();
        println!("{}: {}", self.title, row.join(" · "));
        self.rows.push(row);
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.what);
        let _ = writeln!(text, "| {} |\n|{}", self.head.join(" | "), "---|".repeat(self.head.len()));
        for row in &self.rows {
            let _ = writeln!(text, "| {} |{}", row.join(" | "), " |".repeat(self.head.len().saturating_sub(row.len())));
        }
        text
    }
}

/// The value below which a share of sorted values lies; zero if there are none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).or(sorted.last()).copied().unwrap_or(0.0)
}

/// The values in ascending order.
pub fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)), (50.0, 99.0, 100.0));
        assert_eq!((quantile(&[], 0.5), quantile(&[7.0], 0.01), quantile(&[7.0, 9.0], 0.99)), (0.0, 7.0, 9.0));
    }

    #[test]
    fn a_row_that_failed_says_why_and_keeps_the_table_whole() {
        let mut table = Table::new("Things", "What is done.".into(), &["a", "b", "c"]);
        table.row("good", Ok(vec!["1".into(), "2".into()]));
        table.row("bad", Err(anyhow::anyhow!("no | route")));
        let text = table.markdown();
        assert!(text.contains("| a | b | c |\n|---|---|---|\n| good | 1 | 2 |\n"), "{text}");
        assert!(text.contains("| bad | not measured: no / route | |\n"), "{text}");
    }
}
