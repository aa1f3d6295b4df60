//! Words as BERT's tokenizers see them: what lies between spaces and punctuation marks, each of which is a word of its own.

use std::ops::Range;

use super::split::{Document, Unit, fences};

impl<'a> Document<'a> {
    /// A text cut into code fences and such words; line breaks are words too where `breaks` says so.
    pub(super) fn of_marks(text: &'a str, breaks: bool) -> Self {
        let mut document = Self { text, units: Vec::new(), sentences: Vec::new() };
        let mut prose = 0;
        for fence in fences(text) {
            document.add_marks(prose..fence.start, breaks);
            prose = fence.end;
            document.units.push(Unit { bytes: fence, fence: true });
        }
        document.add_marks(prose..text.len(), breaks);
        document
    }

    fn add_marks(&mut self, bytes: Range<usize>, breaks: bool) {
        let mut start = None;
        let text = &self.text[bytes.clone()];
        let mut add = |from: usize, to: usize| {
            let bytes = bytes.start + from..bytes.start + to;
            self.units.push(Unit { bytes, fence: false });
        };
        for (at, c) in text.char_indices() {
            let alone = is_alone(c) || (breaks && c == '\n');
            if alone || c.is_whitespace() {
                if let Some(from) = start.take() {
                    add(from, at);
                }
            } else if start.is_none() {
                start = Some(at);
            }
            if alone {
                add(at, at + c.len_utf8());
            }
        }
        if let Some(from) = start {
            add(from, text.len());
        }
    }
}

/// A punctuation mark, in ASCII any sign, or a Han character.
fn is_alone(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(u32::from(c),
            0xA1 | 0xA7 | 0xAB | 0xB6 | 0xB7 | 0xBB | 0xBF | 0x2010..=0x2027 | 0x2030..=0x205E | 0x3001..=0x3003
            | 0x3008..=0x3011 | 0x3014..=0x301F | 0xFF01..=0xFF0F | 0xFF1A..=0xFF20 | 0xFF3B..=0xFF3D
            | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_words() {
        let words = |text: &'static str, breaks| -> Vec<&str> {
            let document = Document::of_marks(text, breaks);
            document.units.iter().map(|u| &text[u.bytes.clone()]).collect()
        };
        assert_eq!(
            words(" high-res, \"3.14\"\n naïve€", false),
            ["high", "-", "res", ",", "\"", "3", ".", "14", "\"", "naïve€"]
        );
        assert_eq!(words("a\n\nb", true), ["a", "\n", "\n", "b"]);
        assert_eq!(words("我喜欢cats。", false), ["我", "喜", "欢", "cats", "。"]);
        assert_eq!(
            words("See:\n```\nx = 1;\n```\nDone.", false)[2..],
            ["```\nx = 1;\n```", "Done", "."]
        );
        assert!(words(" \n", false).is_empty());
    }
}
