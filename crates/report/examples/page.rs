//! Writes a page of made-up data: `cargo run -p tensorpress-report --example page -- page.html`.

use tensorpress_report::{Curve, Fact, Page, Point, Series, SeriesKind, Unit};

const BLOCKS: u32 = 24;

/// Kinds of matrix: name, weights, how much an error in it costs.
const KINDS: [(&str, u64, f64); 7] = [
    ("self_attn.q_proj", 802_816, 1.0),
    ("self_attn.k_proj", 114_688, 2.5),
    ("self_attn.v_proj", 114_688, 9.0),
    ("self_attn.o_proj", 802_816, 1.6),
    ("mlp.gate_proj", 4_358_144, 0.7),
    ("mlp.up_proj", 4_358_144, 0.9),
    ("mlp.down_proj", 4_358_144, 3.0),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let html = page().html()?;
    match std::env::args().nth(1) {
        Some(path) => std::fs::write(path, html)?,
        None => println!("a page of {} bytes: name a file to have it written", html.len()),
    }
    Ok(())
}

fn page() -> Page {
    let facts = [
        ("size before", "988.1 MB"),
        ("size after", "262.4 MB"),
        ("bits a weight", "4.02"),
        ("mean KL divergence", "0.0311"),
        ("same first token", "91.8 %"),
        ("seconds", "412"),
        ("peak memory", "1.9 GB"),
    ];
    Page::new("Made-up model of 494 million weights at 4 bits")
        .with_facts(facts.map(|(label, value)| Fact::new(label, value)))
        .with_curve(curve())
        .with_units(units())
        .with_notes([
            "All of this is made up: it shows what a page looks like.".to_owned(),
            "Rivals were judged on the same texts.\nTheir sizes are those of whole files."
                .to_owned(),
        ])
        .with_command(
            "tensorpress quantize MODEL OUT --bits 4 \\\n    --recipe best --report page.html",
        )
}

fn curve() -> Curve {
    let at =
        |bits: f64, divergence: f64| Point::new((61.75e6 * bits + 14e6) as u64, bits, divergence);
    let predicted: Vec<Point> = (8..=24)
        .map(|quarter| f64::from(quarter) / 4.0)
        .map(|bits| at(bits, 7.0 * (-1.36 * bits).exp()))
        .collect();
    let judged =
        [(2.0, 0.61), (2.5, 0.27), (3.0, 0.127), (3.5, 0.061), (4.02, 0.0311), (5.0, 0.0089)];
    let rivals = [
        ("Q2_K", 3.35, 0.31),
        ("IQ3_XXS", 3.06, 0.29),
        ("Q3_K_S", 3.5, 0.152),
        ("Q3_K_M", 3.91, 0.098),
        ("IQ4_XS", 4.25, 0.041),
        ("Q4_0", 4.55, 0.055),
        ("Q4_K_S", 4.58, 0.0325),
        ("Q4_K_M", 4.85, 0.0262),
        ("Q5_K_M", 5.69, 0.0083),
    ];
    Curve::new([
        Series::new("predicted", SeriesKind::Predicted, predicted),
        Series::new("as judged", SeriesKind::Judged, judged.map(|(b, d)| at(b, d))),
        Series::new(
            "types of GGUF",
            SeriesKind::Rivals,
            rivals.map(|(label, b, d)| at(b, d).with_label(label)),
        ),
    ])
}

fn units() -> Vec<Unit> {
    let embeddings = Unit::new("model.embed_tokens.weight", "round to nearest", 8.03, 136_601_600)
        .with_relative_error(0.0041)
        .with_why("shared with the head: never below 8 bits");
    let blocks = (0..BLOCKS)
        .flat_map(|block| KINDS.iter().enumerate().map(move |(at, kind)| unit(block, at, kind)));
    std::iter::once(embeddings).chain(blocks).collect()
}

fn unit(block: u32, at: usize, (kind, weights, cost): &(&str, u64, f64)) -> Unit {
    // Ends of a model matter more than its middle; a wave keeps the lines from being alike.
    let place = f64::from(block) / f64::from(BLOCKS - 1);
    let wave = 1.0 + 0.4 * (f64::from(block) * (1.1 + at as f64 / 5.0)).sin();
    let weight = cost * wave * (0.4 + 5.0 * (place - 0.55).powi(2) + 3.0 * (-8.0 * place).exp());
    let level = (3.3 + 0.75 * weight.log2()).round().clamp(2.0, 6.0);
    let bits = level + 0.14;
    let (error, loss) = (0.9 * 4f64.powf(-level), 2e-3 * weight * 4f64.powf(2.0 - level));
    let why = match level {
        ..3.0 => "the budget gains more elsewhere",
        ..5.0 => "best sum of losses within the budget",
        _ => "one bit less would cost more than any other matrix gains",
    };
    let name = format!("model.layers.{block}.{kind}.weight");
    let unit = Unit::new(name, "gptq", bits, (*weights as f64 * bits / 8.0) as u64)
        .with_relative_error(error.sqrt())
        .with_expected_loss(loss)
        .with_why(why);
    match (block, at) {
        (3, 6) | (17, 6) => {
            unit.with_fallback("no Cholesky factor at any damping: rounded to nearest")
        }
        _ => unit,
    }
}
