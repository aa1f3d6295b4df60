//! Coded grids with feedback on stories3m, by the protocol of the baseline table: what each part of the method gains,
//! and bits that are those asked for.

use tensorpress_tensor::testing::data;

use crate::protocol::measure;

/// Recipe, bits asked for, and what KLD x 4^bits may be: about a tenth above what was measured (26.9, 25.4, 19.8, 26.6 and 17.4;
/// `gptq(bits=3, group=64, clip=mse)` has 59).
const ROWS: &[(&str, f64, f64)] = &[
    ("watersic(bits=3, columns=equal, states=0) | coded(rans)", 3.0, 29.6),
    ("watersic(bits=3, states=0) | coded(rans)", 3.0, 28.0),
    ("watersic(bits=3) | coded(rans)", 3.0, 22.9),
    ("watersic(bits=2) | coded(rans)", 2.0, 31.2),
    ("watersic(bits=4) | coded(rans)", 4.0, 20.5),
];

#[test]
#[ignore = "a minute and more: cargo xtask more tables"]
fn stories3m() {
    let Some(folder) = data::find("data/models/stories3m") else { return };
    let Some(texts) = data::find("data/text") else { return };
    let lines: Vec<String> = ROWS.iter().map(|(line, ..)| (*line).to_owned()).collect();
    let begun = std::time::Instant::now();
    let measured = measure(&folder, &texts, &lines);
    println!("{:.1} s", begun.elapsed().as_secs_f64());
    let mut figures = Vec::new();
    for (line, bits, most) in ROWS {
        let row = &measured[*line];
        let kld = row.judgement.kld_mean.expect("a reference");
        let found = row.size.bits_per_weight;
        let figure = kld * 4f64.powf(found);
        println!("{line}: {found:.3} bits, KLD {kld:.4}, KLD x 4^bits {figure:.1}");
        assert!((found - bits).abs() < 0.07, "{line}: {found} bits");
        assert!(figure < *most, "{line}: {figure}");
        figures.push(figure);
    }
    assert!(figures[1] < figures[0] && figures[2] < figures[1], "{figures:?}");
}
