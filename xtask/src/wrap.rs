//! Lines of docs: paragraphs and list items are wrapped at 120 columns; tables, code and headings stay.

use crate::{Outcome, root, tools};

const COLUMNS: usize = 120;

/// Wraps README.md and every page of docs.
pub fn run() -> Outcome {
    let mut pages = tools::files(&root().join("docs"), "md")?;
    pages.push(root().join("README.md"));
    for page in pages {
        let fail = |e: std::io::Error| format!("{}: {e}", page.display());
        let text = std::fs::read_to_string(&page).map_err(fail)?;
        let wrapped = wrap(&text);
        if wrapped != text {
            std::fs::write(&page, &wrapped).map_err(fail)?;
        }
        let long = wrapped.lines().filter(|l| l.chars().count() > COLUMNS).count();
        if long > 0 {
            println!(
                "{}: {long} lines of tables, code or unbreakable words are longer",
                page.display()
            );
        }
    }
    Ok(())
}

/// Wraps each paragraph that has a line too long; what fits is left as its author broke it.
fn wrap(text: &str) -> String {
    let mut out = String::new();
    let mut paragraph: Vec<&str> = Vec::new();
    let mut code = false;
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        let alone = code || fence || stands_alone(line);
        if alone || item(line).is_some() {
            flush(&mut paragraph, &mut out);
        }
        if alone {
            out.push_str(line);
            out.push('\n');
        } else {
            paragraph.push(line);
            // Two spaces at the end are a break of the line.
            if line.ends_with("  ") {
                flush(&mut paragraph, &mut out);
            }
        }
        code ^= fence;
    }
    flush(&mut paragraph, &mut out);
    out
}

/// Blank lines, headings, tables, comments, quotes, and code by indentation are no paragraphs.
fn stands_alone(line: &str) -> bool {
    let bare = line.trim_start();
    bare.is_empty() || bare.starts_with(['#', '|', '<', '>']) || bare.starts_with("---")
}

/// The length of the mark and spaces before a list item's text.
fn item(line: &str) -> Option<usize> {
    let indent = line.len() - line.trim_start().len();
    let bare = &line[indent..];
    if bare.starts_with("- ") || bare.starts_with("* ") {
        return Some(indent + 2);
    }
    let digits = bare.chars().take_while(char::is_ascii_digit).count();
    (digits > 0 && bare[digits..].starts_with(". ")).then_some(indent + digits + 2)
}

/// Writes a paragraph, filled anew if a line of it is too long.
fn flush(paragraph: &mut Vec<&str>, out: &mut String) {
    let Some(first) = paragraph.first() else { return };
    if paragraph.iter().all(|line| line.chars().count() <= COLUMNS) {
        paragraph.iter().for_each(|line| *out += &format!("{line}\n"));
        paragraph.clear();
        return;
    }
    let indent = first.len() - first.trim_start().len();
    let hang = " ".repeat(item(first).unwrap_or(indent));
    let ending = if paragraph.last().is_some_and(|l| l.ends_with("  ")) { "  \n" } else { "\n" };
    let text = paragraph.join(" ");
    let mut line = first[..indent].to_owned();
    let mut empty = true;
    for word in words(&text) {
        if !empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            *out += &format!("{line}\n");
            line.clone_from(&hang);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(&word);
        empty = false;
    }
    *out += &line;
    *out += ending;
    paragraph.clear();
}

/// Words of a text; code between backquotes is not broken, nor is a line begun with what would be read as a mark.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match words.last_mut() {
            Some(last) if mark(word) || last.matches('`').count() % 2 == 1 => {
                *last += &format!(" {word}");
            }
            _ => words.push(word.to_owned()),
        }
    }
    words
}

/// Whether a line that begins with this word is no plain text.
fn mark(word: &str) -> bool {
    matches!(word, "-" | "*" | "+" | "=")
        || word.starts_with(['#', '|', '<', '>'])
        || item(&format!("{word} ")).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paragraphs_and_items_are_filled() {
        let words = |n: usize| vec!["word"; n].join(" ");
        let wrapped = wrap(&format!("{}\n{}\n\n- {}\n", words(30), words(3), words(30)));
        let expected = format!("{}\n{}\n\n- {}\n  {}\n", words(24), words(9), words(23), words(7));
        assert_eq!(wrapped, expected);
        assert_eq!(wrap(&wrapped), wrapped);
    }

    #[test]
    fn tables_code_headings_and_short_lines_stay() {
        let long = "word ".repeat(40);
        let text =
            format!("# {long}\n| {long} |\n```sh\n{long}\n```\nshort\nlines\n1. one\n2. two\n");
        assert_eq!(wrap(&text), text);
    }

    #[test]
    fn code_is_not_broken_and_no_line_begins_with_a_mark() {
        let text = format!("{} `a b c d e f g h` + 4. - | x", "word ".repeat(22).trim_end());
        let wrapped = wrap(&format!("{text}\n"));
        let expected = text.replacen(" `a", "\n`a", 1);
        assert_eq!(wrapped, format!("{expected}\n"));
    }
}
