//! Source code within a budget.

use std::collections::HashSet;

use tensorpress_tensor::Result;
use tensorpress_tokencomp::text::{LongCodeZip, Piece, TokenCount, TokenLogProbs, code_chunks};

#[derive(Debug)]
struct Words;

impl TokenCount for Words {
    fn count(&self, text: &str) -> Result<usize> {
        Ok(text.split_whitespace().count())
    }
}

/// Words that the context has are probable; `let` is a surprise.
#[derive(Debug)]
struct Repeats;

fn p(seen: &HashSet<&str>, word: &str) -> f32 {
    match word {
        _ if seen.contains(word) => 0.5,
        "let" => 0.001,
        _ => 0.1,
    }
}

impl TokenLogProbs for Repeats {
    fn log_probs(&self, context: &str, text: &str) -> Result<Vec<Piece>> {
        let at = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
        let seen: HashSet<&str> = context.split_whitespace().collect();
        Ok(text.split_whitespace().map(|w| (at(w)..at(w) + w.len(), p(&seen, w).ln())).collect())
    }
}

const RUST: &str = "use std::fs;
use std::io;

/// Reads a file.
#[must_use]
pub fn read(
    path: &str,
) -> String {
    open path now

    let lines = 3;
    parse all of them
    done
}

struct Mill {
    wheel: u8,
}

fn turn(mill: &Mill) {
    spin the wheel
    let power = 7;
    grind corn
    and wheat
}
";

#[test]
fn chunks_are_functions_in_five_languages() {
    let parts = |text: &str| {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let chunks = code_chunks(text);
        let all: Vec<String> = chunks.iter().map(|c| lines[c.lines.clone()].concat()).collect();
        assert_eq!(all.concat(), text, "nothing is lost");
        let heads = chunks.iter().zip(&all);
        heads
            .map(|(c, part)| (part.lines().next().unwrap().to_owned(), c.signature))
            .collect::<Vec<_>>()
    };
    let of = |text: &str| {
        parts(text).into_iter().map(|(head, n)| format!("{head} {n}")).collect::<Vec<_>>()
    };
    assert_eq!(
        of(RUST),
        ["use std::fs; 3", "/// Reads a file. 5", "struct Mill { 1", "fn turn(mill: &Mill) { 1"]
    );
    assert_eq!(
        of(
            "import os\nimport re\n\n@cached\ndef f(a,\n      b):\n    return a\n\nclass C:\n    x = 1\n\n    def g(self):\n        pass\n"
        ),
        ["import os 3", "@cached 3", "class C: 1"]
    );
    assert_eq!(
        of(
            "const a = 1;\nfunction f(x) {\n  return x;\n}\n\nexport const g = (y) => {\n  f(y);\n};\n"
        ),
        ["const a = 1; 1", "function f(x) { 1", "export const g = (y) => { 1"]
    );
    assert_eq!(
        of("package main\n\nimport (\n\t\"fmt\"\n)\n\nfunc main() {\n\tfmt.Println(1)\n}\n"),
        ["package main 6", "func main() { 1"]
    );
    assert_eq!(
        of("#include <stdio.h>\n\nint main(void)\n{\n  puts(\"x\");\n}\n"),
        ["#include <stdio.h> 2", "int main(void) 2"]
    );
    assert!(code_chunks("").is_empty() && code_chunks("\n\n").len() == 1);
}

#[test]
fn scores_are_differences_of_perplexity() {
    let zip = LongCodeZip::new(&Repeats, &Words);
    let found = zip.scores("grind corn fast", &["grind corn", "spin"]).unwrap();
    let ppl = |p: [f64; 3]| (-p.iter().map(|p| p.ln()).sum::<f64>() / 3.0).exp();
    let exact = [ppl([0.1; 3]) - ppl([0.5, 0.5, 0.1]), 0.0];
    for (found, exact) in found.iter().zip(exact) {
        assert!((found - exact).abs() < 1e-4, "{found} {exact}");
    }
}

#[test]
fn what_the_question_is_about_stays() {
    let zip = LongCodeZip::new(&Repeats, &Words);
    let all = Words.count(RUST).unwrap();
    let short = zip.compress(RUST, "where does it grind corn and wheat", 15).unwrap();
    assert!(short.text.contains("fn turn(mill: &Mill) {\n"), "signature: {short:?}");
    assert!(
        short.text.contains("    grind corn\n") && !short.text.contains("spin the wheel"),
        "{short:?}"
    );
    assert!(!short.text.contains("pub fn read") && short.text.contains("...\n"));
    let short = zip.compress(RUST, "parse all of path", 27).unwrap();
    assert!(short.text.contains("pub fn read(") && short.text.contains("parse all"), "{short:?}");
    for budget in 1..=all + 1 {
        let short = zip.compress(RUST, "grind corn", budget).unwrap();
        assert!(short.tokens <= budget && short.tokens == Words.count(&short.text).unwrap());
        assert_eq!(short.tokens_before, all);
        assert_eq!(short.text == RUST, budget >= all);
        // Lines are whole, in their order.
        let mut lines = RUST.lines();
        for line in short.text.lines().filter(|line| line.trim() != "...") {
            assert!(lines.any(|other| other == line), "{budget}: {line}");
        }
    }
    assert!(zip.compress(RUST, "x", 0).is_err());
    assert!(zip.clone().with_fine(0.0).is_err() && zip.clone().with_spread(2.0).is_err());
    assert!(zip.with_spike(-1.0).is_err());
}

#[cfg(feature = "code")]
mod syntax {
    use tensorpress_tokencomp::text::{CodeLanguage, LongCodeZip, code_chunks, syntax_chunks};

    use super::{Repeats, Words};

    /// The first line of each chunk, and how many lines its signature has.
    fn heads(text: &str, language: CodeLanguage) -> Vec<String> {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let chunks = syntax_chunks(text, language);
        let all: Vec<String> = chunks.iter().map(|c| lines[c.lines.clone()].concat()).collect();
        assert_eq!(all.concat(), text, "nothing is lost");
        let head = |(c, part): (&tensorpress_tokencomp::text::CodeChunk, &String)| {
            format!("{} {}", part.lines().next().unwrap().trim(), c.signature)
        };
        chunks.iter().zip(&all).map(head).collect()
    }

    const RUST: &str = "use std::fs;

/// A mill { that grinds.
#[derive(Debug)]
struct Mill {
    wheel: u8,
}

impl Mill {
    /// Turns.
    fn turn(
        &self,
    ) -> &str {
        \"{{ not a bracket\"
    }

    fn stop(&self) {
        let open = '{';
        halt(open)
    }
}

fn main() {
    run()
}
";
    const PYTHON: &str = "import os

class Mill:
    \"\"\"Grinds (corn.\"\"\"

    @property
    def power(self,
              at):
        # Comments stay: here
        return at

    def stop(self):
        return '('

@cached
def main():
    if os:
        return Mill()
";
    const JAVASCRIPT: &str = "import x from 'y';

export class Mill {
  turn(a) {
    return '}';
  }
  stop() {
    return `${a} {`;
  }
}

const go = (a) => {
  return a;
};

if (x) {
  go(1);
}
";
    const GO: &str = "package main

import \"fmt\"

type Mill struct {
\tWheel int
}

// Turn { turns.
func (m *Mill) Turn() int {
\treturn m.Wheel
}

func main() {
\tfmt.Println('}')
}
";
    const C: &str = "#include <stdio.h>
#define OPEN '{'

struct mill {
  int wheel;
};

static int turn(struct mill *m)
{
  return m->wheel == '{';
}

int main(void) {
  puts(\"(\");
}
";

    #[test]
    fn chunks_are_functions_and_methods() {
        assert_eq!(
            heads(RUST, CodeLanguage::Rust),
            [
                "use std::fs; 2",
                "/// A mill { that grinds. 3",
                "impl Mill { 1",
                "/// Turns. 4",
                "fn stop(&self) { 1",
                "fn main() { 1"
            ]
        );
        assert_eq!(
            heads(PYTHON, CodeLanguage::Python),
            ["import os 2", "class Mill: 1", "@property 3", "def stop(self): 1", "@cached 2"]
        );
        assert_eq!(
            heads(JAVASCRIPT, CodeLanguage::JavaScript),
            [
                "import x from 'y'; 3",
                "turn(a) { 1",
                "stop() { 1",
                "const go = (a) => { 1",
                "if (x) { 3"
            ]
        );
        assert_eq!(
            heads(GO, CodeLanguage::Go),
            ["package main 4", "type Mill struct { 1", "// Turn { turns. 2", "func main() { 1"]
        );
        assert_eq!(
            heads(C, CodeLanguage::C),
            [
                "#include <stdio.h> 3",
                "struct mill { 1",
                "static int turn(struct mill *m) 2",
                "int main(void) { 1"
            ]
        );
        // Brackets alone are led astray by the one in a comment.
        assert!(code_chunks(GO).len() < syntax_chunks(GO, CodeLanguage::Go).len());
        for text in ["", "\n", "x", "fn broken( {\n\n} }\n", "\u{feff}\u{0}\n\u{85}"] {
            for language in CodeLanguage::ALL {
                heads(text, language);
            }
        }
    }

    #[test]
    fn languages_are_guessed() {
        let texts = [RUST, PYTHON, JAVASCRIPT, GO, C];
        for (text, language) in texts.into_iter().zip(CodeLanguage::ALL) {
            assert_eq!(CodeLanguage::guess(text), Some(language));
        }
        assert_eq!(CodeLanguage::guess(super::RUST), None, "the other tests cut by brackets");
    }

    /// A method stays without the others of its type.
    #[test]
    fn methods_stay_alone() {
        let zip = LongCodeZip::new(&Repeats, &Words);
        for zip in [zip.clone(), zip.with_language(CodeLanguage::Rust)] {
            let short = zip.compress(RUST, "let open = '{'; halt(open)", 18).unwrap();
            assert!(short.tokens <= 18);
            assert!(short.text.contains("fn stop(&self) {\n"), "{short:?}");
            assert!(
                short.text.contains("halt(open)") && !short.text.contains("fn turn"),
                "{short:?}"
            );
        }
    }
}
