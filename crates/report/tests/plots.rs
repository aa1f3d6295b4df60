//! Plots: read by another's XML parser, within their frame, with ticks that say where they are.

mod common;

use common::{curve, full, number_tokens, texts};
use proptest::prelude::*;
use tensorpress_report::{Across, Curve, Page, Point, Series, SeriesKind, Unit};

fn one(point: Point) -> Curve {
    Curve::new([Series::new("s", SeriesKind::Judged, [point])])
}

#[test]
fn a_curve_shows_its_axes_its_legend_and_labels_of_rivals() {
    let shown = texts(&curve().svg().unwrap().unwrap());
    for text in [
        "size in MB (10⁶ bytes)",
        "mean KL divergence (log)",
        "predicted",
        "as judged",
        "rivals",
        "Q4_0",
        "0.1",
        "0.01",
        "100",
        "200",
    ] {
        assert!(shown.iter().any(|s| s == text), "{text}: {shown:?}");
    }
    let shown = texts(&curve().with_across(Across::Bits).svg().unwrap().unwrap());
    for text in ["bits a weight", "3.0", "5.0"] {
        assert!(shown.iter().any(|s| s == text), "{text}: {shown:?}");
    }
}

#[test]
fn nothing_to_draw_is_no_plot() {
    assert_eq!(Curve::default().svg().unwrap(), None);
    assert_eq!(Curve::new([Series::new("s", SeriesKind::Judged, [])]).svg().unwrap(), None);
    assert_eq!(one(Point::new(5, 4.0, f64::NAN)).svg().unwrap(), None);
    assert_eq!(one(Point::new(5, f64::NAN, 0.1)).with_across(Across::Bits).svg().unwrap(), None);
    let page = Page::new("t").with_units([Unit::new("w", "m", 4.0, 9)]);
    assert_eq!(page.bits_svg().unwrap(), None);
    assert_eq!(page.sensitivity_svg().unwrap(), None);
}

#[test]
fn one_point_lies_between_ticks() {
    for divergence in [1e-300, 1e-9, 0.03, 0.5, 1.0, 7e5, 1e300] {
        for bytes in [1, 999, 262_400_000, u64::MAX] {
            let svg = one(Point::new(bytes, 4.0, divergence)).svg().unwrap().unwrap();
            let shown = texts(&svg);
            // Two a side at least, beside the names of the axes and of the line.
            assert!(shown.len() >= 7, "{bytes} {divergence}: {shown:?}");
            let different: std::collections::BTreeSet<&String> = shown.iter().collect();
            assert_eq!(different.len(), shown.len(), "{bytes} {divergence}: {shown:?}");
        }
    }
}

#[test]
fn a_label_without_room_is_counted() {
    let crowd: Vec<Point> =
        (0..200).map(|at| Point::new(100_000_000 + at, 4.0, 0.1).with_label("crowded")).collect();
    let svg = Curve::new([Series::new("s", SeriesKind::Rivals, crowd)]).svg().unwrap().unwrap();
    let shown = texts(&svg);
    let labels = shown.iter().filter(|s| *s == "crowded").count();
    let note = format!("{} labels left out for want of room.", 200 - labels);
    assert!(labels > 0 && shown.contains(&note), "{labels}: {shown:?}");
}

#[test]
fn kinds_have_lines_under_their_short_names() {
    let page = full();
    assert!(texts(&page.bits_svg().unwrap().unwrap()).contains(&"model.layers.mlp.up_proj".into()));
    let units: Vec<Unit> = (0..15)
        .map(|kind| {
            Unit::new(format!("model.layers.0.k{kind}.weight"), "m", 4.0, 100 - kind)
                .with_expected_loss(0.0)
        })
        .collect();
    let page = Page::new("t").with_units(units);
    let shown = texts(&page.bits_svg().unwrap().unwrap());
    assert!(shown.contains(&"k0".into()) && shown.contains(&"k11".into()), "{shown:?}");
    assert!(!shown.contains(&"k12".into()));
    assert!(shown.contains(&"3 kinds left out: those of the fewest bytes.".into()), "{shown:?}");
    // A loss of 0 is nothing to a logarithm.
    assert_eq!(page.sensitivity_svg().unwrap(), None);
}

/// Contrast of two colours by WCAG 2.
fn contrast(one: [u8; 3], other: [u8; 3]) -> f64 {
    let light = |colour: [u8; 3]| {
        let [r, g, b] = colour.map(|c| {
            let c = f64::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05
    };
    let (one, other) = (light(one), light(other));
    one.max(other) / one.min(other)
}

/// The colours that follow `name:` in a style, but those of lines and boxes.
fn colours<'a>(css: &'a str, names: &'a [&str]) -> impl Iterator<Item = (&'a str, [u8; 3])> {
    names.iter().map(move |name| {
        let (_, rest) = css.split_once(name).unwrap_or_else(|| panic!("{name}: {css}"));
        let digits: String = rest[1..].chars().take_while(char::is_ascii_hexdigit).collect();
        let full =
            if digits.len() == 3 { digits.chars().flat_map(|c| [c, c]).collect() } else { digits };
        let at = |at: usize| u8::from_str_radix(&full[at..at + 2], 16).unwrap();
        (*name, [at(0), at(2), at(4)])
    })
}

#[test]
fn colours_stand_out_in_light_and_dark() {
    let html = full().html().unwrap();
    let (_, css) = html.split_once("<style>").unwrap();
    let (plot, page) = css.split_once(":root{").unwrap();
    let lines =
        [".tp{color:", "--c0:", "--c1:", "--c2:", "--c3:", "--c4:", "--c5:", "--c6:", "--c7:"];
    let texts = ["--fg:", "--soft:", "--bar:"];
    let dark = "@media screen and (prefers-color-scheme:dark)";
    let ((light_plot, dark_plot), (light_page, dark_page)) =
        (plot.split_once(dark).unwrap(), page.split_once(dark).unwrap());
    for (plot, page) in [(light_plot, light_page), (dark_plot, dark_page)] {
        for (_, ground) in colours(page, &["--bg:", "--box:"]) {
            for (name, colour) in colours(plot, &lines).chain(colours(page, &texts)) {
                let contrast = contrast(colour, ground);
                assert!(contrast >= 4.5, "{name} {contrast}");
            }
        }
    }
}

fn numbers() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        1e-4..10.0f64,
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(0.0),
        Just(f64::MAX),
        Just(f64::MIN_POSITIVE),
        Just(5e-324),
    ]
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[<>&\"'\\x00-\\x20\\x7f-\\xa0.0-9]{0,40}", Just(String::new())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_data_make_a_page_and_well_formed_plots(
        points in prop::collection::vec((any::<u64>(), numbers(), numbers(), hostile()), 0..12),
        units in prop::collection::vec((hostile(), any::<Option<u32>>(), hostile(), numbers(), any::<u64>(), numbers()), 0..12),
        bits in any::<bool>(),
        title in hostile(),
    ) {
        let points: Vec<Point> = points
            .into_iter()
            .map(|(bytes, bits, divergence, label)| Point::new(bytes, bits, divergence).with_label(label))
            .collect();
        let kinds = [SeriesKind::Predicted, SeriesKind::Judged, SeriesKind::Rivals];
        let curve = Curve::new(kinds.map(|kind| Series::new(&title, kind, points.clone())));
        let curve = curve.with_across(if bits { Across::Bits } else { Across::Megabytes });
        let units: Vec<Unit> = units
            .into_iter()
            .map(|(name, block, kind, bits, bytes, loss)| {
                Unit::new(name, "m", bits, bytes).with_block(block).with_kind(kind).with_expected_loss(loss)
            })
            .collect();
        let page = Page::new(title).with_units(units).with_curve(curve.clone());
        for svg in [curve.svg().unwrap(), page.bits_svg().unwrap(), page.sensitivity_svg().unwrap()].into_iter().flatten() {
            texts(&svg);
            inside(&svg);
        }
        let html = page.html().unwrap();
        prop_assert_eq!(html.matches("<script>").count(), 1);
        // Every tag opened is one of ours.
        for (at, _) in html.match_indices('<') {
            let next = html[at + 1..].chars().next().unwrap();
            prop_assert!(next.is_ascii_alphabetic() || "/! ".contains(next), "{}", &html[at..]);
        }
        let json = serde_json::to_string(&page).unwrap();
        let read: Page = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(read.units.len(), page.units.len());
    }
}

/// Every coordinate is a number within the frame.
fn inside(svg: &str) {
    let document = roxmltree::Document::parse(svg).unwrap();
    let frame: Vec<f64> = document
        .root_element()
        .attribute("viewBox")
        .unwrap()
        .split(' ')
        .map(|n| n.parse().unwrap())
        .collect();
    for node in document.descendants() {
        let pairs = [("x", "y"), ("x1", "y1"), ("x2", "y2"), ("cx", "cy")];
        let mut places: Vec<(String, String)> = pairs
            .iter()
            .filter_map(|(x, y)| {
                Some((node.attribute(*x)?.to_owned(), node.attribute(*y)?.to_owned()))
            })
            .collect();
        for pair in node.attribute("points").unwrap_or_default().split_whitespace() {
            let (x, y) = pair.split_once(',').unwrap();
            places.push((x.to_owned(), y.to_owned()));
        }
        for (x, y) in places {
            assert!(number_tokens(&x).is_empty() && number_tokens(&y).is_empty());
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!(
                (0.0..=frame[2]).contains(&x) && (0.0..=frame[3]).contains(&y),
                "{x} {y}: {svg}"
            );
        }
    }
}
