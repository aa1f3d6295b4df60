//! Source code as functions, told by brackets and indentation alone.

use std::ops::Range;

/// Lines that belong together: a function, a type, a run of imports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CodeChunk {
    /// Its lines, from 0.
    pub lines: Range<usize>,
    /// Lines at its beginning, up to where its body opens; all of them where it has none.
    pub signature: usize,
}

impl CodeChunk {
    /// Whether there is more than a signature.
    pub(super) fn has_body(&self) -> bool {
        self.signature < self.lines.len()
    }

    /// The text of the chunk, given the bytes of all lines.
    pub(super) fn text<'a>(&self, text: &'a str, lines: &[Range<usize>]) -> &'a str {
        &text[lines[self.lines.start].start..lines[self.lines.end - 1].end]
    }
}

/// The bytes of each line, its break included.
pub(super) fn lines(text: &str) -> Vec<Range<usize>> {
    let mut at = 0;
    let of = |line: &str| {
        at += line.len();
        at - line.len()..at
    };
    text.split_inclusive('\n').map(of).collect()
}

/// Cuts source code into chunks, for languages whose blocks are in brackets (Rust, C, Go, JavaScript) or indented (Python).
///
/// A chunk begins at a line that is not indented, opens no new level inside brackets, and neither closes something nor
/// follows an attribute, decorator or comment, which belong to what comes after. Chunks without a body that follow each other,
/// such as imports, are one. Brackets in texts and comments count like others.
#[must_use]
pub fn code_chunks(text: &str) -> Vec<CodeChunk> {
    let lines: Vec<&str> = text.lines().collect();
    let mut starts: Vec<usize> = Vec::new();
    let (mut depth, mut leads) = (0i64, false);
    for (at, line) in lines.iter().enumerate() {
        let body = line.trim();
        let top = depth <= 0 && !body.is_empty() && !line.starts_with([' ', '\t']);
        if top && !body.starts_with(['}', ')', ']', '{']) {
            if !leads {
                starts.push(at);
            }
            leads = ["#[", "@", "//", "/*", "* ", "# "].iter().any(|lead| body.starts_with(lead));
        }
        depth += bracket_balance(body);
    }
    if starts.first() != Some(&0) && !lines.is_empty() {
        starts.insert(0, 0);
    }
    let ends = starts.iter().skip(1).copied().chain([lines.len()]);
    joined(starts.iter().copied().zip(ends).map(|(start, end)| CodeChunk {
        lines: start..end,
        signature: signature(&lines[start..end]),
    }))
}

/// Chunks without a body that follow each other become one.
pub(super) fn joined(all: impl Iterator<Item = CodeChunk>) -> Vec<CodeChunk> {
    let mut chunks: Vec<CodeChunk> = Vec::new();
    for chunk in all {
        match chunks.last_mut() {
            Some(last) if !last.has_body() && !chunk.has_body() => {
                last.lines.end = chunk.lines.end;
                last.signature = last.lines.len();
            }
            _ => chunks.push(chunk),
        }
    }
    chunks
}

fn bracket_balance(line: &str) -> i64 {
    let of = |c| match c {
        '{' | '(' | '[' => 1,
        '}' | ')' | ']' => -1,
        _ => 0,
    };
    line.chars().map(of).sum()
}

/// Lines up to the one that ends in what opens a body.
fn signature(lines: &[&str]) -> usize {
    let opens = |line: &&str| line.trim_end().ends_with(['{', ':']);
    lines.iter().position(opens).map_or(lines.len(), |at| at + 1)
}
