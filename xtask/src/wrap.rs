//! Lines of docs: paragraphs and list items are wrapped at 120 columns; tables, code and headings stay.

use std::path::{Path, PathBuf};

use crate::{Outcome, root};

const COLUMNS: usize = 120;

/// Wraps README.md and every page of docs.
pub fn run() -> Outcome {
    let mut pages = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for path in list(&folder)? {
            match path.extension().is_some_and(|e| e == "md") {
                true => pages.push(path),
                false if path.is_dir() => folders.push(path),
                false => {}
            }
        }
    }
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

fn list(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(fail)?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(fail)).collect()
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
        let marks = ["-", "*", "+", "=", "|"].contains(&word)
            || word.starts_with('#')
            || item(&format!("{word} ")).is_some();
        match words.last_mut() {
            Some(last) if marks => *last += &format!(" {word}"),
            Some(last) if last.matches('`').count() % 2 == 1 => *last += &format!(" {word}"),
            _ => words.push(word.to_owned()),
        }
    }
    words
}
