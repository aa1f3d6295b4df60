//! What caches cost a real model: divergence, recall and bytes, recipe by recipe.

use std::process::Command;

use super::{json, judge, program};
use crate::Outcome;

/// Tokens read at once before any is judged, tokens judged, and how many are read at a time.
const PREFIX: usize = 512;
const JUDGED: usize = 2048;
const STEP: usize = 16;

/// Passages of the recall test: tokens of one, and how many.
const PASSAGE: usize = 512;
const PASSAGES: usize = 2;

/// Stores, by the bits of a code or what comes near them.
const STORES: &[&str] = &[
    "f32",
    "f16",
    "kivi(bits=8)",
    "hadamard_int(key_bits=8, value_bits=8)",
    "zipcache(bits=8)",
    "kivi(bits=4)",
    "hadamard_int",
    "hadamard_int(group=16, value_group=64, margin=0)",
    "zipcache(bits=4)",
    "gear(bits=4)",
    "kvquant(bits=4, outliers=0)",
    "kvquant(bits=4)",
    "pq_cache(sub=2, bits=8)",
    "minicache(bits=4)",
    "aqua_kv(bits=4)",
    "gear(bits=3)",
    "kvquant(bits=3)",
    "aqua_kv(bits=3)",
    "hadamard_int(key_bits=4, value_bits=2)",
    "kivi(bits=2)",
    "hadamard_int(key_bits=2, value_bits=2)",
    "gear(bits=2)",
    "kvquant(bits=2, norm=true)",
    "pq_cache(sub=4, bits=8)",
    "aqua_kv(bits=2)",
    "mustafar(sparsity=0.5)",
    "mustafar(sparsity=0.7)",
    "minicache",
    "xkv(group=3, keys=0.5, values=0.5)",
    "channel_shrink(keys=0.5, values=0.75)",
    "matryoshka_proj(keys=0.5, values=0.75)",
    "zipcache(bits=4) | salient(keep=0.4) | demote(bits=2)",
];

/// Policies; each keeps a fifth, and half.
const POLICIES: &[&str] = &[
    "random(KEEP)",
    "streaming(KEEP)",
    "h2o(KEEP)",
    "snapkv(KEEP)",
    "snapkv(KEEP) | adakv",
    "pyramidkv(KEEP)",
    "tova(KEEP)",
    "knorm(KEEP)",
    "keydiff(KEEP)",
    "expected_attention(KEEP)",
    "expected_attention(KEEP) | adakv",
    "lagkv(KEEP)",
    "cur(KEEP)",
    "capkv(KEEP)",
    "finch(KEEP)",
    "compactor(KEEP)",
    "criticalkv(KEEP)",
    "criticalkv(KEEP) | adakv",
    "snapkv(KEEP) | chunkkv",
    "kvzip(KEEP)",
    "kvzip(KEEP, plus=true)",
    "salient(KEEP)",
    "compresskv(KEEP)",
    "uncomp(KEEP)",
    "zeromerge(KEEP)",
    "kvmerger(KEEP)",
    "ems(KEEP)",
    "razor_attention(KEEP)",
    "lacache(KEEP)",
];

/// Prints the table of a model; of all recipes, or of those that hold one of `only`.
pub fn caches(model: &str, only: &[&str]) -> Outcome {
    let program = program()?;
    let judge = judge(model)?;
    let kept = |keep: f64| POLICIES.iter().map(move |p| p.replace("KEEP", &format!("keep={keep}")));
    let all = STORES.iter().map(|s| (*s).to_owned()).chain(kept(0.5)).chain(kept(0.2));
    println!("| recipe | bytes a token | KLD | top-1 | recall |\n|---|---|---|---|---|");
    for recipe in all.filter(|r| only.is_empty() || only.iter().any(|o| r.contains(o))) {
        let mut eval = Command::new(&program);
        eval.arg("eval").arg(&judge.model).arg("--reference").arg(&judge.model);
        eval.arg("--text").arg(&judge.text).args(["--kv", &recipe, "--json", "--bos", "always"]);
        let number = |n: usize| n.to_string();
        eval.args(["--kv-prefix", &number(PREFIX), "--kv-step", &number(STEP)]);
        eval.args(["--kv-passage", &number(PASSAGE), "--kv-passages", &number(PASSAGES)]);
        eval.args(["--max-segments", "1", "--max-tokens", &number(PREFIX + JUDGED)]);
        let shown = recipe.replace('|', "\\|");
        // One that fails is a line of the table, and not its end.
        let found = match json(&mut eval) {
            Ok(found) => found,
            Err(why) => {
                println!("| `{shown}` | {why} | | | |");
                continue;
            }
        };
        let of = |key: &str| found[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "| `{shown}` | {:.0} | {:.4} | {:.3} | {:.3} |",
            of("kv_bytes_per_token"),
            of("kld_mean"),
            of("top1_agreement"),
            of("kv_recall")
        );
    }
    Ok(())
}
