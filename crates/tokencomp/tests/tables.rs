//! Rows of tables stay whole or go.

use std::fmt::Write;
use std::ops::Range;

use proptest::prelude::*;
use tensorpress_tensor::Result;
use tensorpress_tokencomp::text::{Bm25, Squeeze, TokenCount, WordScore};

/// A token a word, and one for each character that belongs to none.
#[derive(Debug)]
struct Words;

impl TokenCount for Words {
    fn count(&self, text: &str) -> Result<usize> {
        let marks = text.chars().filter(|c| matches!(c, '|' | ',' | ';' | '\t')).count();
        Ok(text.split_whitespace().count() + marks)
    }
}

/// Finds words with many different letters worth keeping.
#[derive(Debug)]
struct Letters;

impl WordScore for Letters {
    fn score(&self, text: &str, words: &[Range<usize>]) -> Result<Vec<f32>> {
        let score = |word: &Range<usize>| {
            let mut bytes = text[word.clone()].as_bytes().to_vec();
            bytes.sort_unstable();
            bytes.dedup();
            bytes.len() as f32
        };
        Ok(words.iter().map(score).collect())
    }
}

/// Rows of cells whose words are like no others, by kind of table.
fn table(kind: usize, rows: usize, cells: usize) -> Vec<String> {
    let cell = |row: usize, cell: usize| format!("r{row}c{cell} of{row}x{cell}");
    let row = |row: usize| {
        let of: Vec<String> = (0..cells).map(|c| cell(row, c)).collect();
        match kind {
            0 => format!("| {} |", of.join(" | ")),
            1 => of.join("|"),
            2 => of.join("\t"),
            3 => of.join(","),
            4 => of.join(";"),
            5 => of.iter().map(|c| format!("\"{c}, quoted{row}\"")).collect::<Vec<_>>().join(","),
            _ => of.iter().map(|c| format!("{c:14}")).collect::<String>().trim_end().to_owned(),
        }
    };
    (0..rows).map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn rows_are_whole_or_gone(
        kind in 0usize..7, rows in 3usize..9, cells in 2usize..5, budget in 1usize..120, scored: bool, asked: bool, indent in 0usize..3
    ) {
        let rows = table(kind, rows, cells);
        let mut text = String::from("It was said that the table below is right. Nobody asked why.\n\n");
        for row in &rows {
            writeln!(text, "{:indent$}{row}", "").unwrap();
        }
        text += "\nAfter that the meeting was closed. Everyone went home, tired but content.";
        let bm25 = Bm25::new();
        let mut squeeze = Squeeze::new(&Words).with_relevance(&bm25);
        if scored {
            squeeze = squeeze.with_words(&Letters);
        }
        let short = squeeze.squeeze(&text, asked.then_some("What is r1c1 of?"), budget).unwrap();
        prop_assert!(short.tokens <= budget);
        let mut at = 0;
        for row in &rows {
            let first = row.split([' ', '|', ',', ';', '\t', '"']).find(|w| !w.is_empty()).unwrap();
            match short.text.find(row.as_str()) {
                // Whole, in order, on a line of its own.
                Some(found) => {
                    prop_assert!(found >= at);
                    at = found + row.len();
                    let (before, after) = (&short.text[..found], &short.text[at..]);
                    prop_assert!(before.trim_end_matches(' ').is_empty() || before.trim_end_matches(' ').ends_with('\n'));
                    prop_assert!(after.is_empty() || after.starts_with('\n'), "{:?}", after);
                }
                None => prop_assert!(!short.text.contains(first), "{} of {:?}", first, short.text),
            }
        }
    }
}

#[test]
fn the_row_that_is_asked_for_stays() {
    for kind in 0..7 {
        let rows = table(kind, 8, 3);
        let bm25 = Bm25::new();
        let squeeze = Squeeze::new(&Words).with_relevance(&bm25).with_words(&Letters);
        let budget = Words.count(&rows[5]).unwrap();
        let text = rows.join("\n");
        let short = squeeze.squeeze(&text, Some("what of r5c1?"), budget).unwrap();
        assert_eq!(short.text, rows[5], "kind {kind}");
    }
}
