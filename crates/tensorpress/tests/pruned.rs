//! Pruning on the small story models, by the protocol of the baseline table: rows reproduced or beaten, and the order
//! the papers claim.

mod protocol;

use protocol::measure;
use tensorpress_tensor::testing::data;

/// Recipe and the mean KL divergence to reach on stories260k and stories3m.
const ROWS: &[(&str, [f64; 2])] = &[
    ("magnitude(sparsity=0.5)", [2.1852, 3.1421]),
    ("wanda(sparsity=0.5)", [1.5951, 1.7839]),
    ("sparsegpt(sparsity=0.5)", [1.5891, 1.2559]),
    ("magnitude(pattern=2:4)", [3.4659, 5.1939]),
    ("wanda(pattern=2:4)", [2.8923, 3.1666]),
    ("sparsegpt(pattern=2:4)", [2.2534, 2.0779]),
];

/// Compositions without a row of their own in the table; on the smaller model.
const COMPOSED: &[&str] = &[
    "wanda(pattern=2:4) | gptq(bits=4, group=GROUP)",
    "sparsegpt(pattern=2:4) | gptq(bits=4, group=GROUP)",
    "sparsegpt(pattern=2:4) | gptq(bits=4, group=GROUP) | coded(rans)",
];

const TOLERANCE: f64 = 1.03;

fn check(model: &str, which: usize, group: usize) {
    let Some(folder) = data::find(&format!("data/models/{model}")) else { return };
    let Some(texts) = data::find("data/text") else { return };
    let composed = if which == 0 { COMPOSED } else { &[] }.iter();
    let composed = composed.map(|line| line.replace("GROUP", &group.to_string()));
    let recipes: Vec<String> =
        ROWS.iter().map(|(line, _)| (*line).to_owned()).chain(composed).collect();
    let rows = measure(&folder, &texts, &recipes);
    let kld = |line: &str| rows[line].judgement.kld_mean.expect("a reference");
    println!("| model | recipe | bits/weight | mean KLD | table | ratio | perplexity |");
    let mut missed = Vec::new();
    for line in &recipes {
        let row = &rows[line];
        let table = ROWS.iter().find(|(l, _)| l == line).map(|(_, table)| table[which]);
        let ratio = table.map(|table| kld(line) / table);
        let shown = |value: Option<f64>| value.map_or("".into(), |v| format!("{v:.4}"));
        println!(
            "| {model} | `{line}` | {:.3} | {:.4} | {} | {} | {:.3} |",
            row.bits_per_weight,
            kld(line),
            shown(table),
            shown(ratio),
            row.judgement.perplexity
        );
        missed.extend(ratio.filter(|r| *r > TOLERANCE).map(|r| format!("{line}: {r:.3}")));
    }
    assert!(missed.is_empty(), "{model}: rows that miss the table: {missed:?}");
    // Ties within 2% count on the smallest model.
    for shape in ["sparsity=0.5", "pattern=2:4"] {
        let [magnitude, wanda, sparsegpt] =
            ["magnitude", "wanda", "sparsegpt"].map(|name| kld(&format!("{name}({shape})")));
        assert!(wanda < magnitude && sparsegpt < wanda * 1.02, "{model}, {shape}");
    }
    if which > 0 {
        return;
    }
    let [plain, coded] = [1, 2].map(|i| &rows[&COMPOSED[i].replace("GROUP", &group.to_string())]);
    assert!(coded.bits_per_weight < plain.bits_per_weight, "{model}: coding saves");
    assert_eq!(coded.judgement.kld_mean, plain.judgement.kld_mean, "{model}: and changes nothing");
}

#[test]
fn stories260k() {
    check("stories260k", 0, 32);
}

#[test]
fn stories3m() {
    check("stories3m", 1, 64);
}
