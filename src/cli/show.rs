//! How the subcommands write for people: amounts, times, tables, and to an output that may go away.
//!
//! Owns formats only. The asymmetry to know: amounts are rounded for reading and never parsed back; `--json` is what
//! programs read.

use std::io::{self, Write};

/// Writes to standard output, all at once.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Whether a command failed only because nobody reads its output any more (`ringway … | head`).
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Bytes, in the largest unit that leaves at least one: `0 B`, `999 B`, `1.5 KiB`, `12 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut whole = n;
    let mut rest = 0;
    let mut unit = 0;
    for (index, _) in UNITS.iter().enumerate() {
        (whole, rest, unit) = (whole / 1024, whole % 1024, index);
        if whole < 1024 {
            break;
        }
    }
    let tenths = rest * 10 / 1024;
    if whole < 10 { format!("{whole}.{tenths} {}", UNITS[unit]) } else { format!("{whole} {}", UNITS[unit]) }
}

/// A number with its thousands apart.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Thousandths of one CPU, for instance, in hundredths: `12.5 %`.
pub(super) fn percent(permille: u64) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

/// So many of what `noun` says in the singular: `1 session`, `2 sessions`.
pub(super) fn many(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A time span of milliseconds: `12.3 s`, `5 min 2 s`, `3 h 4 min`, `2 d 5 h`.
pub(super) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Text from elsewhere (names, error texts), fit for a terminal: control characters become `\u{…}`.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows under a head, columns as wide as their widest cell and two blanks apart.
#[derive(Debug)]
pub(super) struct Table {
    head: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[(&'static str, Align)]) -> Table {
        Table { head: head.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table's lines, each with a newline and without blanks at its end.
    pub(super) fn render(&self, indent: &str) -> String {
        let head: Vec<String> = self.head.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines = || std::iter::once(&head).chain(&self.rows);
        let width = |column: usize| lines().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = String::new();
        for row in lines() {
            let mut line = indent.to_owned();
            for ((cell, &width), (_, align)) in row.iter().zip(&widths).zip(&self.head) {
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_spans() {
        let amounts = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (10 << 20, "10 MiB")];
        for (n, text) in amounts {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(u64::MAX), "15 EiB");
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((many(1, "VM"), many(2_000, "VM")), ("1 VM".into(), "2,000 VMs".into()));
        assert_eq!((percent(5), percent(1_000)), ("0.5 %".into(), "100.0 %".into()));
        assert_eq!((span(12_345), span(302_000)), ("12.3 s".into(), "5 min 2 s".into()));
        assert_eq!((span(3_600_000 * 3 + 240_000), span(86_400_000 * 2)), ("3 h 4 min".into(), "2 d 0 h".into()));
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(plain("vm\u{1b}[2J\n"), "vm\\u{1b}[2J\\n");
    }

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right)]);
        table.row(["a".to_owned(), "1".to_owned()]);
        table.row(["longer".to_owned(), "100".to_owned()]);
        assert_eq!(table.render(" "), " NAME      N\n a         1\n longer  100\n");
    }
}
