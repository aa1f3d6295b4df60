//! Rows of tables, whose words mean nothing apart.

use std::ops::Range;

/// How a row is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cells {
    /// By upright strokes: Markdown, the boxes of terminals.
    Bars,
    /// By so many tabs.
    Tabs(usize),
    /// By so many commas or semicolons.
    Separated(char, usize),
    /// By two spaces and more.
    Columns,
}

impl Cells {
    /// Lines in a row that make a table: one alone may be anything.
    fn least(self) -> usize {
        match self {
            Self::Bars | Self::Tabs(_) => 2,
            Self::Separated(..) | Self::Columns => 3,
        }
    }
}

/// The rows of the tables of a text, each a line without the space around it.
///
/// A table is a run of lines that are divided alike: by bars, by as many tabs, by as many commas or semicolons (those
/// in quotes do not count), or by gaps of two spaces and more.
pub(super) fn rows(text: &str) -> Vec<Range<usize>> {
    let mut lines: Vec<(Range<usize>, Option<Cells>)> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let body = line.trim();
        let start = at + (line.len() - line.trim_start().len());
        lines.push((start..start + body.len(), cells(body)));
        at += line.len();
    }
    let mut found = Vec::new();
    for run in lines.chunk_by(|(_, a), (_, b)| a == b) {
        if run[0].1.is_some_and(|cells| run.len() >= cells.least()) {
            found.extend(run.iter().map(|(bytes, _)| bytes.clone()));
        }
    }
    found
}

/// How a line would be divided as a row.
fn cells(line: &str) -> Option<Cells> {
    let tabs = line.matches('\t').count();
    if line.contains(['|', '│']) || is_rule(line) {
        Some(Cells::Bars)
    } else if tabs > 0 {
        Some(Cells::Tabs(tabs))
    } else {
        let separated = [',', ';'].into_iter().find_map(|by| separated(line, by));
        separated.or_else(|| has_columns(line).then_some(Cells::Columns))
    }
}

/// A line between two rows: `+----+----+`.
fn is_rule(line: &str) -> bool {
    const PARTS: &str = "+-=: ─┼┬┴├┤┌┐└┘═╪";
    line.contains(['+', '┼', '┬', '┴', '╪']) && line.chars().all(|c| PARTS.contains(c))
}

/// Separators outside quotes. Where a space follows one, as in prose, there are several and few words between them.
fn separated(line: &str, by: char) -> Option<Cells> {
    const WORDS: usize = 3;
    let (mut quoted, mut count, mut loose) = (false, 0, false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        quoted ^= c == '"';
        if c == by && !quoted {
            count += 1;
            loose |= chars.peek().is_some_and(|next| next.is_whitespace());
        }
    }
    let short = |field: &str| field.split_whitespace().count() <= WORDS;
    let is_row = if loose { count > 1 && line.split(by).all(short) } else { count > 0 };
    is_row.then_some(Cells::Separated(by, count))
}

/// A gap of two spaces that no sentence ends before.
fn has_columns(line: &str) -> bool {
    let ends = |before: &str| before.trim_end().ends_with(['.', '!', '?', ':', ';', ',']);
    line.match_indices("  ").any(|(at, _)| !ends(&line[..at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<&str> {
        rows(text).into_iter().map(|bytes| &text[bytes]).collect()
    }

    #[test]
    fn rows_of_all_kinds() {
        let kinds = [
            "| a | b c |\n|---|-----|\n| 1 | 2 3 |",
            "a | b\n--- | ---\n1 | 2. And",
            "+---+---+\n| a | b |\n+---+---+",
            "a\tb c\td\n1\t2 3\t4",
            "name,age,city\nLi Na,34,\"Oslo, Norway\"\nTom,5,Rome",
            "name, age\tx\nLi, 5\ty",
            "one, two, three\n1, 2, 3\n4, 5, 6 and 7",
            "a;b\n1;2\n3;4",
            "Name      Age  City\nLi Na      34  Oslo\nTom   5  Rome",
        ];
        for table in kinds {
            let lines: Vec<&str> = table.lines().collect();
            assert_eq!(found(table), lines);
            let around = format!("Some words before.\n\n  {table}  \r\n\nAnd, after it, more.\n");
            assert_eq!(found(&around), lines, "{around}");
        }
    }

    #[test]
    fn prose_is_no_table() {
        let prose = [
            "It rained, and then it stopped.\nThey came, late as ever, to us.\nNobody knew, it seems, why.",
            "One end.  Two spaces follow it.\nAnother.  As typists do.\nA third.  And so on.",
            "a | b alone",
            "x,y\nz,w\nonly two",
            "",
            "\n\n\n",
            "-----\n-----\n",
        ];
        for text in prose {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }
}
