//! What a page shows, what it leaves out, and what it never does.

mod common;

use std::time::Instant;

use common::{curve, full, number_tokens};
use tensorpress_report::{Curve, Fact, Page, Point, Series, SeriesKind, Unit};

#[test]
fn every_piece_is_shown() {
    let html = full().html().unwrap();
    for text in [
        "<h1>A model</h1>",
        "<dt>size after</dt><dd>262.4 MB</dd>",
        "tensorpress quantize a b\n  --bits 4</code>",
        "<li>first line\nsecond line</li>",
        "KL divergence against size</h2>",
        "Bits by block</h2>",
        "Sensitivity by block</h2>",
        "Bytes by kind</h2>",
        "Fallbacks</h2>",
        "no factor\n<ul>\n<li><code>model.layers.1.mlp.up_proj</code>: gptq</li>",
        "best sum; fallback: no factor",
        "<td class=n>4.125<td class=n>1,234,567<td class=n>0.0123<td class=n>1.5e-5",
        "<td class=\"n\">150,000,000</td><td class=\"n\">4.02</td><td class=\"n\">0.0311</td>",
        "<th scope=\"col\">name</th>",
        "<th scope=row>model.layers.0.mlp.up_proj",
        "2 in all",
    ] {
        assert!(html.contains(text), "{text}\n{html}");
    }
}

#[test]
fn the_same_data_make_the_same_bytes() {
    assert_eq!(full().html().unwrap(), full().html().unwrap());
    assert_eq!(curve().svg().unwrap(), curve().svg().unwrap());
}

#[test]
fn json_makes_the_same_page() {
    let json = serde_json::to_string(&full()).unwrap();
    let read: Page = serde_json::from_str(&json).unwrap();
    assert_eq!(read, full());
    // What is optional may be missing, and NaN is null.
    let read: Page = serde_json::from_str(
        r#"{"title": "t", "units": [{"name": "w", "kind": "w", "method": "m", "bits": null, "bytes": 1}]}"#,
    )
    .unwrap();
    assert!(read.units[0].bits.is_nan());
    assert!(read.html().unwrap().contains("<th scope=row>w"));
}

#[test]
fn empty_pieces_are_left_out() {
    let html = Page::new("nothing").with_curve(Curve::default()).html().unwrap();
    for piece in ["<h2", "<svg", "<table", "<dl", "<ul", "<pre", "<details"] {
        assert!(!html.contains(piece), "{piece}");
    }
    // Columns and plots, too.
    let html = Page::new("one").with_units([Unit::new("w", "m", 4.0, 9)]).html().unwrap();
    assert!(html.contains("Bytes by kind"));
    for piece in ["Bits by block", "Sensitivity", "relative error", "why this", ">block<"] {
        assert!(!html.contains(piece), "{piece}");
    }
}

#[test]
fn it_loads_nothing() {
    let html = full().html().unwrap().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for load in ["http:", "https:", "src=", "@import", "url(", "//"] {
        // The script has comments.
        let (page, _) = html.split_once("<script>").unwrap();
        assert!(!page.contains(load), "{load}");
    }
    let (_, script) = html.split_once("<script>").unwrap();
    for load in ["http:", "https:", "src=", "fetch", "import", "XMLHttp", "eval"] {
        assert!(!script.contains(load), "{load}");
    }
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn numbers_are_short_and_sortable() {
    let shown = [
        (0.0, "0"),
        (-0.0, "0"),
        (4.0, "4"),
        (4.0199, "4.02"),
        (0.031_149, "0.03115"),
        (0.000_1, "0.0001"),
        (0.000_099_96, "1e-4"),
        (9.9996, "10"),
        (99_999.6, "100000"),
        (1_234_567.0, "1.23e6"),
        (-2.5e-9, "-2.5e-9"),
        (1e300, "1e300"),
        (f64::NAN, "–"),
    ];
    for (value, text) in shown {
        let unit = Unit::new("w", "m", 4.0, 9).with_relative_error(value);
        let html = Page::new("t").with_units([unit]).html().unwrap();
        assert!(html.contains(&format!("<td class=n>9<td class=n>{text}\n")), "{value}: {text}");
    }
}

#[test]
fn a_name_says_block_and_kind() {
    for (name, block, kind) in [
        (
            "model.layers.12.mlp.experts.3.up_proj.weight",
            Some(12),
            "model.layers.mlp.experts.up_proj.weight",
        ),
        ("lm_head.weight", None, "lm_head.weight"),
        ("blk7.w2", None, "blk7.w2"),
        ("12", Some(12), "12"),
        ("a.99999999999.b", None, "a.b"),
        ("", None, ""),
    ] {
        let unit = Unit::new(name, "m", 4.0, 9);
        assert_eq!((unit.block, unit.kind.as_str()), (block, kind), "{name}");
    }
}

#[test]
fn hostile_texts_are_text() {
    let evil = "</title></script><script>alert('&\"')</script>\n\u{0}\u{7f}\u{fffe}\u{202e}é漢🦀";
    let shown =
        "&lt;/title&gt;&lt;/script&gt;&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;";
    let unit = Unit::new(evil, evil, 4.0, 9)
        .with_block(0)
        .with_kind(evil)
        .with_why(evil)
        .with_fallback(evil)
        .with_expected_loss(1.0);
    let point = [Point::new(9, 4.0, 0.1).with_label(evil)];
    let page = Page::new(evil)
        .with_facts([Fact::new(evil, evil)])
        .with_command(evil)
        .with_notes([evil.to_owned()])
        .with_curve(Curve::new([Series::new(evil, SeriesKind::Rivals, point)]))
        .with_units([unit]);
    let html = page.html().unwrap();
    assert_eq!(html.matches("<script>").count(), 1);
    assert_eq!(html.matches("</script>").count(), 1);
    assert_eq!(html.matches("</title>").count(), 1 + html.matches("<svg").count());
    assert!(html.matches(shown).count() >= 12, "{}", html.matches(shown).count());
    assert!(html.contains("␊␀␡\u{fffd}\u{202e}é漢🦀"));
    assert!(!html.contains(['\0', '\u{7f}', '\u{fffe}']));
}

#[test]
fn what_is_no_number_is_a_dash() {
    let unit = |bits: f64, other: f64| {
        Unit::new("blocks.3.w", "m", bits, 9).with_relative_error(other).with_expected_loss(other)
    };
    let units = [unit(f64::NAN, f64::INFINITY), unit(f64::NEG_INFINITY, f64::NAN), unit(4.0, 0.5)];
    let points = [
        Point::new(0, f64::NAN, 0.1),
        Point::new(5, f64::INFINITY, f64::NAN),
        Point::new(1_000_000, 4.0, f64::INFINITY),
        Point::new(1_000_000, 4.0, 0.0),
        Point::new(1_000_000, 4.0, 0.25),
    ];
    let curve = Curve::new([Series::new("s", SeriesKind::Judged, points)]);
    let html = Page::new("t").with_units(units).with_curve(curve).html().unwrap();
    assert!(html.contains("4 points left out: no size or divergence above 0."));
    let (page, _) = html.split_once("<script>").unwrap();
    assert_eq!(number_tokens(page), Vec::<&str>::new());
    assert!(page.contains("<td class=n>–<td class=n>9<td class=n>–<td class=n>–"));
}

#[test]
fn twenty_thousand_experts_make_a_page() {
    let units: Vec<Unit> = (0..20_000u32)
        .map(|at| {
            let (block, expert, kind) =
                (at / 400, at % 400 / 3, ["gate", "up", "down"][at as usize % 3]);
            let name = format!("model.layers.{block}.mlp.experts.{expert}.{kind}_proj.weight");
            Unit::new(name, "gptq", 3.0 + f64::from(at % 7) / 7.0, 1_000_000 + u64::from(at))
                .with_relative_error(0.01)
                .with_expected_loss(1e-6 * f64::from(at + 1))
                .with_why("best sum of losses within the budget")
        })
        .collect();
    let page = Page::new("experts").with_units(units);
    let start = Instant::now();
    let html = page.html().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{} bytes in {seconds:.3} s", html.len());
    assert!(html.len() < 6_000_000, "{} bytes", html.len());
    assert!(seconds < 10.0, "{seconds} s");
    assert_eq!(html.matches("<th scope=row>").count(), 20_000);
    assert!(html.contains("20,000 in all"));
}
