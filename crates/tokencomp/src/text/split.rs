//! A text as sentences and words, and back.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use super::table;

/// What is kept or dropped as a whole: a word with its punctuation, a row of a table, or a code fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) bytes: Range<usize>,
    pub(crate) fence: bool,
}

/// A text cut into units, and its sentences as runs of units.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    pub(crate) units: Vec<Unit>,
    pub(crate) sentences: Vec<Range<usize>>,
}

impl<'a> Document<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let mut document = Self { text, units: Vec::new(), sentences: Vec::new() };
        let mut prose = 0;
        for fence in fences(text) {
            document.add_text(prose..fence.start);
            prose = fence.end;
            document.add_whole(fence, true);
        }
        document.add_text(prose..text.len());
        document
    }

    /// Rows of tables, and the prose between them.
    fn add_text(&mut self, bytes: Range<usize>) {
        let mut prose = bytes.start;
        for row in table::rows(&self.text[bytes.clone()]) {
            let row = bytes.start + row.start..bytes.start + row.end;
            self.add_prose(prose..row.start);
            prose = row.end;
            self.add_whole(row, false);
        }
        self.add_prose(prose..bytes.end);
    }

    /// A sentence of one unit.
    fn add_whole(&mut self, bytes: Range<usize>, fence: bool) {
        let unit = self.units.len();
        self.units.push(Unit { bytes, fence });
        self.sentences.push(unit..unit + 1);
    }

    fn add_prose(&mut self, bytes: Range<usize>) {
        for sentence in sentences(&self.text[bytes.clone()]) {
            let start = bytes.start + sentence.start;
            let first = self.units.len();
            words(&self.text[start..bytes.start + sentence.end], &mut |word| {
                let bytes = start + word.start..start + word.end;
                self.units.push(Unit { bytes, fence: false });
            });
            if self.units.len() > first {
                self.sentences.push(first..self.units.len());
            }
        }
    }

    /// The text of a sentence, without the space around it.
    pub(crate) fn sentence(&self, sentence: &Range<usize>) -> &'a str {
        &self.text[self.units[sentence.start].bytes.start..self.units[sentence.end - 1].bytes.end]
    }

    /// The kept units as a text: neighbours as they were, a gap as one newline if there was one in it, or one space.
    pub(crate) fn render(&self, kept: &[bool]) -> String {
        let mut out = String::new();
        let mut last: Option<usize> = None;
        for unit in (0..self.units.len()).filter(|u| kept[*u]) {
            let bytes = self.units[unit].bytes.clone();
            if let Some(last) = last {
                let gap = &self.text[self.units[last].bytes.end..bytes.start];
                let joins = |c: Option<char>| c.is_some_and(ideographic);
                let next = self.text[bytes.clone()].chars().next();
                out += match unit - last {
                    1 => gap,
                    _ if gap.contains('\n') => "\n",
                    _ if gap.contains(char::is_whitespace) => " ",
                    _ if joins(next) && joins(out.chars().next_back()) => "",
                    _ => " ",
                };
            }
            out += &self.text[bytes];
            last = Some(unit);
        }
        out
    }
}

/// Code fences as Markdown has them: from a line that begins with at least three backticks or tildes to one with at least
/// as many and nothing else, or to the end.
pub(super) fn fences(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut open: Option<(usize, char, usize)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let body = line.trim_end();
        let start = at + (body.len() - body.trim_start().len());
        let body = body.trim_start();
        at += line.len();
        let mark = body.chars().next().filter(|c| matches!(c, '`' | '~'));
        let length = body.chars().take_while(|c| Some(*c) == mark).count();
        match open {
            Some((from, opener, least))
                if mark == Some(opener) && length >= least && body.len() == length =>
            {
                found.push(from..start + body.len());
                open = None;
            }
            None if length >= 3 => open = mark.map(|mark| (start, mark, length)),
            _ => {}
        }
    }
    found.extend(open.map(|(from, ..)| from..text.trim_end().len()));
    found
}

/// Sentences (UAX #29), but lines that are only wrapped stay together, and so do abbreviated titles and what they title.
fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    // Of the last sentence: the piece that it ends with, and whether it has a line break. Its text is not read again.
    let (mut end, mut broken) = ("", false);
    for (start, piece) in unwrapped(text).split_sentence_bound_indices() {
        let bytes = start..start + piece.len();
        let piece = &text[bytes.clone()];
        match found.last_mut() {
            Some(last) if !may_end(end, broken) => last.end = bytes.end,
            _ => {
                found.push(bytes);
                broken = false;
            }
        }
        (end, broken) = (piece, broken || piece.contains('\n'));
    }
    found
}

/// The text with spaces for the line breaks within a paragraph, and line breaks in wide gaps, byte for byte as long.
fn unwrapped(text: &str) -> String {
    /// A line this long that is followed by another was wrapped.
    const WRAPPED: usize = 50;
    /// Spaces that no prose has between two words.
    const WIDE: usize = 64;
    let mut out = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let body = line.trim_end_matches(['\n', '\r']);
        let next = lines.peek().and_then(|next| next.chars().next());
        out += body;
        if body.len() >= WRAPPED && next.is_some_and(char::is_alphanumeric) {
            (body.len()..line.len()).for_each(|_| out.push(' '));
        } else {
            out += &line[body.len()..];
        }
    }
    // No sentence goes on behind so many spaces; and whoever looks for its end from each of them looks long.
    out.replace(&" ".repeat(WIDE), &(" ".repeat(WIDE - 1) + "\n"))
}

/// Whether a sentence may end with this piece of it: not within a word, nor after an abbreviation, unless there is a line
/// break in it.
fn may_end(piece: &str, broken: bool) -> bool {
    let outside = |c: char| c.is_whitespace() || ideographic(c);
    piece.ends_with(outside) && (broken || !abbreviated(piece))
}

fn abbreviated(piece: &str) -> bool {
    const SHORT: [&str; 14] =
        ["Mr", "Mrs", "Ms", "Dr", "Prof", "St", "No", "vs", "e.g", "i.e", "Fig", "Eq", "al", "cf"];
    let last = piece.split_whitespace().next_back().and_then(|word| word.strip_suffix('.'));
    last.map(|word| word.trim_start_matches('(')).is_some_and(|word| {
        let initial = word.chars().count() == 1 && word.chars().all(char::is_uppercase);
        initial || SHORT.contains(&word)
    })
}

/// Words: what lies between spaces. Where a script has no spaces (Han, Kana), the words of UAX #29, each with the
/// punctuation that follows.
fn words(text: &str, see: &mut dyn FnMut(Range<usize>)) {
    let mut start = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (c.is_whitespace(), start) {
            (true, Some(from)) => {
                run(text, from..at, see);
                start = None;
            }
            (false, None) => start = Some(at),
            _ => {}
        }
    }
}

fn run(text: &str, bytes: Range<usize>, see: &mut dyn FnMut(Range<usize>)) {
    let run = &text[bytes.clone()];
    if !run.contains(ideographic) {
        return see(bytes);
    }
    let mut from = bytes.start;
    for (at, piece) in run.split_word_bound_indices() {
        let at = bytes.start + at;
        if at > from && piece.contains(char::is_alphanumeric) {
            see(from..at);
            from = at;
        }
    }
    see(from..bytes.end);
}

/// A character of a script that is written without spaces, and whose characters may stand alone.
fn ideographic(c: char) -> bool {
    matches!(u32::from(c),
        0x2E80..=0x2FDF | 0x3000..=0x30FF | 0x31F0..=0x31FF | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF
        | 0xFF00..=0xFFEF | 0x20000..=0x3FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(text: &str) -> Vec<&str> {
        Document::new(text).units.iter().map(|u| &text[u.bytes.clone()]).collect()
    }

    fn parts(text: &str) -> Vec<&str> {
        let document = Document::new(text);
        document.sentences.iter().map(|s| document.sentence(s)).collect()
    }

    #[test]
    fn sentences_and_words() {
        assert_eq!(
            units("  don't cut 3.14 — or\u{a0}this. "),
            ["don't", "cut", "3.14", "—", "or", "this."]
        );
        assert_eq!(
            parts("One two. Three? \"Four!\" Five"),
            ["One two.", "Three?", "\"Four!\"", "Five"]
        );
        assert_eq!(
            parts("Dr. Bell met J. Fox. They left."),
            ["Dr. Bell met J. Fox.", "They left."]
        );
        let wrapped = "This line is long enough to have been wrapped by someone\nwho likes short lines. Next.";
        assert_eq!(parts(wrapped).len(), 2);
        assert_eq!(parts("Title\n\nBody text.\n- item"), ["Title", "Body text.", "- item"]);
        assert_eq!(units("我喜欢猫。狗 too"), ["我", "喜", "欢", "猫。", "狗", "too"]);
        assert_eq!(units("(東京)にABC"), ["(", "東", "京)", "に", "ABC"]);
        assert!(units(" \n\t").is_empty() && parts("").is_empty());
        assert_eq!(units("🦀🦀 e\u{301}te\u{301}"), ["🦀🦀", "e\u{301}te\u{301}"]);
    }

    #[test]
    fn fences_are_one_unit() {
        let text = "See:\n```rust\nlet a = 1. Then;\n```\nDone. ~~~ not one\n  ~~~~\nx\n~~~\ny";
        let fenced =
            ["See:", "```rust\nlet a = 1. Then;\n```", "Done. ~~~ not one", "~~~~\nx\n~~~\ny"];
        assert_eq!(parts(text), fenced);
        let document = Document::new(text);
        assert_eq!(document.units.iter().filter(|u| u.fence).count(), 2);
        assert_eq!(document.render(&vec![true; document.units.len()]), text);
    }

    #[test]
    fn gaps_are_one_space_or_newline() {
        let text = "a  b c\n\nd e 我喜欢 f日g";
        let document = Document::new(text);
        let all: Vec<&str> = units(text);
        let keep = |kept: &[&str]| {
            document.render(&all.iter().map(|u| kept.contains(u)).collect::<Vec<_>>())
        };
        assert_eq!(keep(&["a", "b"]), "a  b");
        assert_eq!(keep(&["a", "c"]), "a c");
        assert_eq!(keep(&["a", "e"]), "a\ne");
        assert_eq!(keep(&["我", "欢"]), "我欢");
        assert_eq!(keep(&["f", "g"]), "f g", "no new words");
        assert_eq!(keep(&[]), "");
    }
}
