//! Source code as functions, told by syntax trees.

use tree_sitter::{Language, Node, Parser, Tree};

use super::chunk::{CodeChunk, joined};

/// A language whose syntax is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeLanguage {
    /// Rust.
    Rust,
    /// Python.
    Python,
    /// JavaScript.
    JavaScript,
    /// Go.
    Go,
    /// C.
    C,
}

impl CodeLanguage {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rust, Self::Python, Self::JavaScript, Self::Go, Self::C];

    fn grammar(self) -> Language {
        match self {
            Self::Rust => tree_sitter_rust::LANGUAGE,
            Self::Python => tree_sitter_python::LANGUAGE,
            Self::JavaScript => tree_sitter_javascript::LANGUAGE,
            Self::Go => tree_sitter_go::LANGUAGE,
            Self::C => tree_sitter_c::LANGUAGE,
        }
        .into()
    }

    fn parse(self, text: &str) -> Tree {
        let mut parser = Parser::new();
        parser.set_language(&self.grammar()).expect("grammars of the parser's version");
        parser.parse(text, None).expect("a language is set, and nothing stops it")
    }

    /// The language in which a text has no error of syntax, if there is one; where there are several, that in which it has the
    /// most functions and types, and of equals the first of [`CodeLanguage::ALL`].
    #[must_use]
    pub fn guess(text: &str) -> Option<Self> {
        let mut best: Option<(usize, Self)> = None;
        for language in Self::ALL {
            let tree = language.parse(text);
            if tree.root_node().has_error() {
                continue;
            }
            let bodies = cut(text, &tree).iter().filter(|chunk| chunk.has_body()).count();
            if best.is_none_or(|(most, _)| bodies > most) {
                best = Some((bodies, language));
            }
        }
        best.map(|(_, language)| language)
    }
}

/// Cuts source code into chunks by its syntax tree: functions, methods, types and closures with a name, each with the comments,
/// attributes and decorators before it. What holds functions (`impl`, `mod`, `class`) is a chunk up to the first of them. Chunks
/// without a body that follow each other, such as imports, are one. Brackets in texts and comments mislead nobody, and where
/// the syntax is wrong the cuts are as good as the parser's guess.
///
/// ```
/// use tensorpress_tokencomp::text::{CodeLanguage, syntax_chunks};
///
/// let text = "impl Mill {\n    fn turn(&self) {\n        spin();\n    }\n\n    fn stop(&self) {\n        halt();\n    }\n}\n";
/// assert_eq!(CodeLanguage::guess(text), Some(CodeLanguage::Rust));
/// let lines: Vec<_> = syntax_chunks(text, CodeLanguage::Rust).into_iter().map(|c| c.lines).collect();
/// assert_eq!(lines, [0..1, 1..5, 5..9]);
/// ```
#[must_use]
pub fn syntax_chunks(text: &str, language: CodeLanguage) -> Vec<CodeChunk> {
    cut(text, &language.parse(text))
}

fn cut(text: &str, tree: &Tree) -> Vec<CodeChunk> {
    let lines = text.lines().count();
    if lines == 0 {
        return Vec::new();
    }
    let mut items = Vec::new();
    collect(tree.root_node(), &mut items);
    let mut starts: Vec<(usize, Option<usize>)> = Vec::new();
    for item in items {
        match starts.last() {
            // What stands on a line with something else belongs to it.
            Some((start, _)) if item.start <= *start => {}
            _ => starts.push((item.start, item.opens)),
        }
    }
    match starts.first_mut() {
        Some((start, _)) => *start = 0,
        None => starts.push((0, None)),
    }
    let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([lines]);
    let chunk = |((start, opens), end): (&(usize, Option<usize>), usize)| CodeChunk {
        lines: *start..end,
        signature: opens.map_or(end, |opens| opens + 1).clamp(start + 1, end) - start,
    };
    joined(starts.iter().zip(ends).map(chunk))
}

/// Something that begins on a line.
struct Item {
    start: usize,
    /// The line where its body opens.
    opens: Option<usize>,
}

/// The items of a file, or of what holds functions, in order. What else there is in the latter belongs to what comes before.
fn collect(parent: Node<'_>, items: &mut Vec<Item>) {
    let (mut leads, whole) = (None, parent.parent().is_none());
    let mut cursor = parent.walk();
    for node in parent.named_children(&mut cursor) {
        let row = node.start_position().row;
        if is_lead(node) {
            leads.get_or_insert(row);
            continue;
        }
        let start = leads.take().unwrap_or(row);
        let Some(body) = body(node) else {
            items.extend(whole.then_some(Item { start, opens: None }));
            continue;
        };
        items.push(Item { start, opens: Some(opens(body)) });
        if holds_functions(node, body) {
            collect(body, items);
        }
    }
    if let Some(start) = leads.filter(|_| whole) {
        items.push(Item { start, opens: None });
    }
}

/// What belongs to what comes after.
fn is_lead(node: Node<'_>) -> bool {
    matches!(
        node.kind(),
        "comment" | "line_comment" | "block_comment" | "attribute_item" | "decorator"
    )
}

/// Where the body of a function or a type is, if the node is one, wrapped or not.
fn body(node: Node<'_>) -> Option<Node<'_>> {
    // Loops and branches are no functions.
    if node.kind().ends_with("_statement") && node.kind() != "export_statement" {
        return None;
    }
    if let Some(body) = node.child_by_field_name("body") {
        return Some(body);
    }
    let inner = match node.kind() {
        "decorated_definition" => node.child_by_field_name("definition"),
        "export_statement" => node.child_by_field_name("declaration"),
        "lexical_declaration" | "variable_declaration" => node.named_child(0),
        "variable_declarator" => node.child_by_field_name("value").filter(|value| {
            matches!(value.kind(), "arrow_function" | "function_expression" | "class")
        }),
        "type_declaration" => node.named_child(0),
        "type_spec" => {
            let kind = node.child_by_field_name("type")?;
            return kind.named_child(0).filter(|_| kind.kind() == "struct_type");
        }
        "declaration" | "type_definition" => node.child_by_field_name("type"),
        _ => None,
    };
    body(inner?)
}

/// The line where a body opens: of its bracket, or of what stands before it.
fn opens(body: Node<'_>) -> usize {
    if body.child(0).is_some_and(|first| first.kind() == "{") {
        return body.start_position().row;
    }
    let mut before = body.prev_sibling();
    while let Some(comment) = before.filter(|node| is_lead(*node)) {
        before = comment.prev_sibling();
    }
    before.map_or(body.start_position().row, |before| before.end_position().row)
}

/// Whether there are functions right inside.
fn holds_functions(node: Node<'_>, inside: Node<'_>) -> bool {
    let kinds = ["impl_item", "trait_item", "mod_item", "class_definition", "class_declaration"];
    let wrapped = ["decorated_definition", "export_statement"];
    let mut cursor = node.walk();
    let holder = kinds.contains(&node.kind())
        || wrapped.contains(&node.kind())
            && node.named_children(&mut cursor).any(|child| kinds.contains(&child.kind()));
    let mut cursor = inside.walk();
    holder && inside.named_children(&mut cursor).any(|child| body(child).is_some())
}
