//! A page of everything, and how its SVGs are read.
#![allow(dead_code, reason = "each test file uses some")]

use tensorpress_report::{Curve, Fact, Page, Point, Series, SeriesKind, Unit};

pub fn curve() -> Curve {
    let at = |megabytes: u64, bits: f64, divergence: f64| {
        Point::new(megabytes * 1_000_000, bits, divergence)
    };
    let line = [at(100, 3.0, 0.2), at(150, 4.02, 0.0311), at(200, 5.0, 0.01)];
    Curve::new([
        Series::new("predicted", SeriesKind::Predicted, line.clone()),
        Series::new("as judged", SeriesKind::Judged, line),
        Series::new("rivals", SeriesKind::Rivals, [at(160, 4.3, 0.05).with_label("Q4_0")]),
    ])
}

pub fn full() -> Page {
    let unit = |block: u32| {
        Unit::new(format!("model.layers.{block}.mlp.up_proj"), "gptq", 4.125, 1_234_567)
            .with_relative_error(0.0123)
            .with_expected_loss(1.5e-5)
            .with_why("best sum")
    };
    Page::new("A model")
        .with_facts([Fact::new("size after", "262.4 MB")])
        .with_command("tensorpress quantize a b\n  --bits 4")
        .with_notes(["first line\nsecond line".to_owned()])
        .with_curve(curve())
        .with_units([unit(0), unit(1).with_fallback("no factor")])
}

/// Words that would be numbers if they were any.
pub fn number_tokens(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| matches!(word.to_ascii_lowercase().as_str(), "nan" | "inf" | "infinity"))
        .collect()
}

/// An SVG must be XML to someone else's reader, and have a title and a label; gives its texts.
pub fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}\n{svg}"));
    let root = document.root_element();
    assert_eq!(root.tag_name().name(), "svg");
    assert_eq!(root.attribute("role"), Some("img"));
    assert!(root.attribute("aria-label").is_some_and(|label| !label.is_empty()));
    let named = |name: &'static str| {
        document.descendants().filter(move |n| n.has_tag_name(("http://www.w3.org/2000/svg", name)))
    };
    assert_eq!(named("title").count(), 1);
    let text = |node: roxmltree::Node<'_, '_>| node.text().unwrap_or_default().trim().to_owned();
    named("text").map(text).collect()
}
