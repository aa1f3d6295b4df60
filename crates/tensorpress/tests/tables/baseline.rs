//! The baseline table: compresses the small story models by every row's recipe and judges them by its protocol.
//!
//! Calibration is the default: 64 windows of 255 tokens after BOS, from the first 120,000 characters. Judged are the
//! first 60 stories, each alone after BOS, its first 400 tokens. Figures of the table are an independent
//! implementation's; each must be met within 3 %.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress::model::Judgement;
use tensorpress_tensor::testing::data;

/// Method, bits, and the mean KL divergence to reach.
type Row = (&'static str, usize, f64);

const STORIES260K: &[Row] = &[
    ("rtn", 4, 0.0790),
    ("rtn-mse", 4, 0.0730),
    ("gptq", 4, 0.0518),
    ("gptq-mse", 4, 0.0493),
    ("rtn", 3, 0.5539),
    ("rtn-mse", 3, 0.4309),
    ("gptq", 3, 0.3635),
    ("gptq-mse", 3, 0.2931),
    ("rtn", 2, 4.4829),
    ("rtn-mse", 2, 2.9049),
    ("gptq", 2, 3.6635),
    ("gptq-mse", 2, 2.1232),
    ("awq", 4, 0.0751),
    ("awq-mse", 4, 0.0704),
    ("awq", 3, 0.4826),
    ("awq-mse", 3, 0.3963),
];

const STORIES3M: &[Row] = &[
    ("rtn", 4, 0.2378),
    ("rtn-mse", 4, 0.2307),
    ("gptq", 4, 0.1284),
    ("gptq-mse", 4, 0.1214),
    ("rtn", 3, 1.3374),
    ("rtn-mse", 3, 1.0109),
    ("gptq", 3, 0.7392),
    ("gptq-mse", 3, 0.5869),
    ("rtn", 2, 8.3565),
    ("rtn-mse", 2, 4.9572),
    ("gptq", 2, 5.6579),
    ("gptq-mse", 2, 2.5236),
    ("awq", 4, 0.1875),
    ("awq-mse", 4, 0.1734),
    ("awq", 3, 1.0976),
    ("awq-mse", 3, 0.8972),
];

/// The figures of the table may be missed by this factor.
const TOLERANCE: f64 = 1.03;

fn recipe(method: &str, bits: usize, group: usize) -> String {
    match method.strip_suffix("-mse") {
        Some(method) => format!("{method}(bits={bits}, group={group}, clip=mse)"),
        None => format!("{method}(bits={bits}, group={group})"),
    }
}

type Figures = BTreeMap<(&'static str, usize), (Judgement, f64)>;

/// Compresses and judges every row; the figures of the unchanged model are checked on the way.
fn measure(folder: &Path, texts: &Path, group: usize, rows: &[Row], perplexity: f64) -> Figures {
    let lines: Vec<String> = rows.iter().map(|(m, bits, _)| recipe(m, *bits, group)).collect();
    let mut measured = crate::protocol::measure(folder, texts, &lines);
    let one = |((method, bits, _), line): (&Row, &String)| {
        let row = measured.remove(line).expect("measured");
        let unchanged = row.judgement.reference_perplexity.expect("a reference");
        assert!((unchanged - perplexity).abs() < 2e-3, "unchanged perplexity {unchanged}");
        ((*method, *bits), (row.judgement, row.size.bits_per_weight))
    };
    rows.iter().zip(&lines).map(one).collect()
}

/// Prints the table, and gives the rows that miss their figure.
fn compare(model: &str, group: usize, rows: &[Row], figures: &Figures) -> Vec<String> {
    let mut missed = Vec::new();
    println!(
        "| model | bits | group | method | bits/weight | mean KLD | table | ratio | perplexity | top-1 |"
    );
    for (method, bits, expected) in rows {
        let (judgement, bits_per_weight) = &figures[&(*method, *bits)];
        let kld = judgement.kld_mean.expect("a reference");
        let line = format!(
            "| {model} | {bits} | {group} | {method} | {bits_per_weight:.3} | {kld:.4} | {expected:.4} | {:.3} | \
             {:.3} | {:.3} |",
            kld / expected,
            judgement.perplexity,
            judgement.top1_agreement.expect("a reference"),
        );
        println!("{line}");
        if kld > TOLERANCE * expected {
            missed.push(line);
        }
    }
    missed
}

/// What must hold between methods at the same bits and group.
fn check_order(model: &str, figures: &Figures, peers: [(&str, f64); 2]) {
    let kld = |method, bits| figures[&(method, bits)].0.kld_mean.expect("a reference");
    for bits in [4, 3] {
        let (gptq, rtn) = (kld("gptq-mse", bits), kld("rtn-mse", bits));
        assert!(gptq <= 0.72 * rtn, "{model}, {bits} bits: gptq {gptq}, rtn {rtn}");
        for (awq, rtn) in [("awq", "rtn"), ("awq-mse", "rtn-mse")] {
            let bpw = |method| figures[&(method, bits)].1;
            println!(
                "{model}, {bits} bits: {awq} {:.4} at {:.3} bits, {rtn} {:.4} at {:.3} bits",
                kld(awq, bits),
                bpw(awq),
                kld(rtn, bits),
                bpw(rtn)
            );
            assert!(kld(awq, bits) < kld(rtn, bits), "{model}, {bits} bits: {awq}");
        }
    }
    for (peer, theirs) in peers {
        let (ours, bits) = (kld("gptq-mse", 4), figures[&("gptq-mse", 4)].1);
        println!("{model}: gptq-mse {ours:.4} at {bits:.3} bits, {peer} {theirs:.4}");
        assert!(ours < theirs && bits <= 5.0, "{model}: {peer}");
    }
}

fn baseline(model: &str, group: usize, rows: &[Row], perplexity: f64, peers: [(&str, f64); 2]) {
    let Some(folder) = data::find(&format!("data/models/{model}")) else { return };
    let Some(texts) = data::find("data/text") else { return };
    let figures = measure(&folder, &texts, group, rows, perplexity);
    let missed = compare(model, group, rows, &figures);
    assert!(missed.is_empty(), "rows that miss the table:\n{}", missed.join("\n"));
    check_order(model, &figures, peers);
}

#[test]
fn stories260k() {
    baseline("stories260k", 32, STORIES260K, 3.621, [("Q4_0", 0.0901), ("Q4_1", 0.0736)]);
}

#[test]
#[ignore = "a minute and more: cargo xtask more tables"]
fn stories3m() {
    baseline("stories3m", 64, STORIES3M, 3.490, [("Q4_0", 0.2006), ("Q4_1", 0.1817)]);
}
