//! Pruning, low rank and their compositions on the small story models, by the protocol of the baseline table: rows
//! reproduced or beaten, the orders the papers claim, and every byte, with and without coding.
//!
//! `TENSORPRESS_WRITE_TABLES=1` (as `cargo xtask tables` sets it) writes docs/benchmarks/composition.md anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::protocol::{Row, Size, compress, measure};
use rayon::prelude::*;
use tensorpress::prelude::*;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::testing::data;

/// Recipe (G stands for the group) and the mean KL divergence to reach on stories260k and stories3m, if the table has it.
const ROWS: &[(&str, Option<[f64; 2]>)] = &[
    ("gptq(bits=4, group=G, clip=mse)", Some([0.0493, 0.1214])),
    (GPTQ, Some([0.2931, 0.5869])),
    ("magnitude(sparsity=0.5)", Some([2.1852, 3.1421])),
    ("wanda(sparsity=0.5)", Some([1.5951, 1.7839])),
    ("sparsegpt(sparsity=0.5)", Some([1.5891, 1.2559])),
    ("magnitude(pattern=2:4)", Some([3.4659, 5.1939])),
    ("wanda(pattern=2:4)", Some([2.8923, 3.1666])),
    ("sparsegpt(pattern=2:4)", Some([2.2534, 2.0779])),
    (FLAP, None),
    ("flap(sparsity=0.2)", None),
    ("flap(sparsity=0.2) | gptq(bits=4, group=G, clip=mse)", None),
    ("svd(ratio=0.2)", Some([3.8861, 6.7072])),
    ("svd_llm(ratio=0.2)", Some([2.0911, 1.8903])),
    ("svd(ratio=0.4)", Some([5.6025, 8.4804])),
    ("svd_llm(ratio=0.4)", Some([3.1801, 2.6547])),
    ("feature_mimicking(ratio=0.2)", None),
    ("svd_llm(ratio=0.2, gptq(bits=8, group=G))", None),
    ("gptq(bits=3, group=G, clip=mse) | residual(eora(rank=8))", Some([0.1668, 0.4094])),
    (EORA, Some([0.0963, 0.3593])),
    ("gptq(bits=3, group=G, clip=mse) | residual(eora(rank=16, rtn(bits=8, group=G)))", None),
    ("wanda(pattern=2:4) | gptq(bits=4, group=G)", None),
    (SPARSE, None),
    ("sparsegpt(pattern=2:4, bits=4, group=G)", Some([2.1916, 2.1740])),
    (SPARSE_EORA, None),
];

/// A plain folder: at 20% no head of these models can go, so it keeps more than 80%.
const FLAP: &str = "flap(sparsity=0.2, uniform=true)";
const GPTQ: &str = "gptq(bits=3, group=G, clip=mse)";
const EORA: &str = "gptq(bits=3, group=G, clip=mse) | residual(eora(rank=16))";
const SPARSE: &str = "sparsegpt(pattern=2:4) | gptq(bits=4, group=G)";
const SPARSE_EORA: &str =
    "sparsegpt(pattern=2:4) | gptq(bits=4, group=G) | residual(eora(rank=16))";

/// Better first: the order the papers claim.
const ORDERS: &[(&str, &str)] = &[
    ("sparsegpt(sparsity=0.5)", "wanda(sparsity=0.5)"),
    ("wanda(sparsity=0.5)", "magnitude(sparsity=0.5)"),
    ("sparsegpt(pattern=2:4)", "wanda(pattern=2:4)"),
    ("wanda(pattern=2:4)", "magnitude(pattern=2:4)"),
    ("svd_llm(ratio=0.2)", "svd(ratio=0.2)"),
    ("svd_llm(ratio=0.4)", "svd(ratio=0.4)"),
    (EORA, GPTQ),
    (SPARSE_EORA, SPARSE),
];

/// No row may be more than this times the table's.
const TOLERANCE: f64 = 1.03;
/// Ties on the smallest model count.
const TIES: [f64; 2] = [1.02, 1.0];

struct Table {
    text: String,
    missed: Vec<String>,
}

/// Coding costs as much time as all the rest: unless the page is `whole`, only rows with a figure to reach are measured,
/// and not coded.
fn table(model: &str, which: usize, group: usize, whole: bool) -> Option<Table> {
    let folder = &data::find(&format!("data/models/{model}"))?;
    let texts = &data::find("data/text")?;
    let named = |line: &str| line.replace("=G", &format!("={group}"));
    let chosen: Vec<_> = ROWS.iter().filter(|(_, wanted)| whole || wanted.is_some()).collect();
    let lines: Vec<String> = chosen.iter().map(|(line, _)| named(line)).collect();
    let rows = measure(folder, texts, &lines);
    let codings = match whole {
        true => coded(folder, texts, &lines),
        false => BTreeMap::new(),
    };
    let source = Source::open(folder, &registry()).expect("a model");
    let mut table = Table { text: String::new(), missed: Vec::new() };
    let text = &mut table.text;
    writeln!(text, "\n## {model}, groups of {group}\n").unwrap();
    writeln!(text, "| recipe | bits/weight | matrices, bytes | files, bytes | coded: bits/weight | matrices | files | KLD | table | ratio | perplexity | top-1 |").unwrap();
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|---|---|").unwrap();
    text.push_str(&dense(&source));
    for (line, wanted) in chosen {
        let line = named(line);
        let (row, coded) = (&rows[&line], codings.get(&line));
        let kld = kld(row);
        let ratio = wanted.map(|table| kld / table[which]);
        let shown = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => String::new(),
        };
        let sizes = |size: &Size| {
            format!("{:.3} | {} | {}", size.bits_per_weight, size.matrices, size.files)
        };
        writeln!(
            text,
            "| `{}` | {} | {} | {kld:.4} | {} | {} | {:.3} | {:.3} |",
            line.replace('|', "\\|"),
            sizes(&row.size),
            coded.map_or_else(|| " | | ".into(), sizes),
            shown(wanted.map(|table| table[which]), 4),
            shown(ratio, 3),
            row.judgement.perplexity,
            row.judgement.top1_agreement.expect("a reference"),
        )
        .unwrap();
        let missed = ratio.filter(|ratio| *ratio > TOLERANCE);
        table.missed.extend(missed.map(|ratio| format!("{model}, {line}: {ratio:.3}")));
        if coded.is_some_and(|coded| coded.matrices > row.size.matrices) {
            table.missed.push(format!("{model}, {line}: coding makes it larger"));
        }
    }
    for (better, worse) in ORDERS {
        let [Some(better), Some(worse)] =
            [better, worse].map(|line| Some((kld(rows.get(&named(line))?), line)))
        else {
            continue;
        };
        if better.0 >= worse.0 * TIES[which] {
            table.missed.push(format!("{model}: {better:?} is no better than {worse:?}"));
        }
    }
    Some(table)
}

fn kld(row: &Row) -> f64 {
    row.judgement.kld_mean.expect("a reference")
}

/// How large each recipe's result is once it is coded, which must not change a bit of any matrix. What has no compressed
/// matrices is packed.
fn coded(folder: &Path, texts: &Path, lines: &[String]) -> BTreeMap<String, Size> {
    let source = Source::open(folder, &registry()).expect("a model");
    let calibration = crate::protocol::calibration(texts);
    let one = |line: &String| {
        let out = tempfile::tempdir().expect("a folder");
        let plain = compress(&source, line, &calibration, &out.path().join("plain"));
        if plain.trees().is_empty() {
            let size = Size { files: packed(&plain), ..Size::of(&plain, &source) };
            return (line.clone(), size);
        }
        let coded = format!("{line} | coded(rans)");
        let coded = compress(&source, &coded, &calibration, &out.path().join("coded"));
        for name in plain.trees().keys() {
            let [a, b] = [&plain, &coded].map(|m| decode(&*m.weight(name).unwrap()).unwrap());
            assert!(a == b, "{line}: coding changes {name}");
        }
        (line.clone(), Size::of(&coded, &source))
    };
    lines.par_iter().map(one).collect()
}

/// Bytes of a model's files of weights as one packed file.
fn packed(source: &Source) -> u64 {
    let files = source.checkpoint().files().map(|path| {
        let bytes = std::fs::read(path).expect("a file of weights");
        (path.file_name().expect("a name").to_string_lossy().into_owned(), bytes.into())
    });
    Packer::new().pack_bytes(files.collect(), true).expect("packs").len() as u64
}

/// The row of the model as it is; coded, it is a packed file.
fn dense(source: &Source) -> String {
    let size = Size::of(source, source);
    format!(
        "| dense | {:.3} | {} | {} | | | {} | 0 | | | | 1 |\n",
        size.bits_per_weight,
        size.matrices,
        size.files,
        packed(source)
    )
}

pub(crate) fn writes() -> bool {
    std::env::var_os("TENSORPRESS_WRITE_TABLES").is_some()
}

const MARK: &str = "<!-- below: written by `cargo xtask tables` -->\n";

#[test]
fn compositions_of_the_smaller_model() {
    let Some(table) = table("stories260k", 0, 32, false) else { return };
    print!("{}", table.text);
    assert!(table.missed.is_empty(), "{:#?}", table.missed);
}

#[test]
#[ignore = "the whole page, minutes: cargo xtask tables"]
fn compositions() {
    let mut text = String::new();
    let mut missed = Vec::new();
    for (which, (model, group)) in [("stories260k", 32), ("stories3m", 64)].into_iter().enumerate()
    {
        let Some(table) = table(model, which, group, true) else { return };
        print!("{}", table.text);
        text += &table.text;
        missed.extend(table.missed);
    }
    if writes() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks/composition.md");
        let page = std::fs::read_to_string(&path).expect("the page");
        let at = page.find(MARK).expect("its mark") + MARK.len();
        std::fs::write(&path, format!("{}{text}", &page[..at])).expect("written");
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
