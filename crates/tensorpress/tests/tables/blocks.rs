//! Blocks of ggml on a small story model: ggml's rounding, with importance, and filled by feedback.
//!
//! With `TENSORPRESS_WRITE_TABLES=1` all types are measured, else a few; the rows printed are those of
//! docs/methods/ggml.md.

use tensorpress::formats::ggml::Fill;
use tensorpress_tensor::testing::data;

use crate::protocol::measure;

#[test]
#[ignore = "a minute and more: cargo xtask more tables"]
fn feedback_beats_importance() {
    let Some(folder) = data::find("data/models/stories3m") else { return };
    let Some(texts) = data::find("data/text") else { return };
    let whole = std::env::var_os("TENSORPRESS_WRITE_TABLES").is_some();
    let names = Fill::TYPES.map(|ty| ty.name());
    let few = ["Q4_0", "Q3_K", "Q4_K", "MXFP4"];
    let names: Vec<_> = names.into_iter().filter(|name| whole || few.contains(name)).collect();
    let line = |name: &str, by: &str| format!("ggml(type={name}, rounding={by})");
    let ways = ["nearest", "importance", "feedback"];
    let lines: Vec<_> = names.iter().flat_map(|name| ways.map(|by| line(name, by))).collect();
    let rows = measure(&folder, &texts, &lines);
    let mut wrong = Vec::new();
    for name in names {
        let [nearest, important, fed] = ways.map(|by| &rows[&line(name, by)]);
        let kld = [nearest, important, fed].map(|row| row.judgement.kld_mean.expect("a reference"));
        let size = fed.size.bits_per_weight;
        assert_eq!(nearest.size.matrices, fed.size.matrices, "{name}");
        let [nearest, important, fed] = kld;
        println!(
            "| {name} | {size:.3} | {nearest:.4} | {important:.4} | {fed:.4} | {:.2} |",
            fed / important
        );
        // Below this all are noise.
        if fed > important.max(1e-3) {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "feedback loses for {wrong:?}");
}
