//! Every coder against the cross entropy of its model, on inputs of 1 MB.

use tensorpress_entropy::TileCoder;
use tensorpress_entropy::coder::range;
use tensorpress_entropy::model::{
    AdaptiveBytes, AdaptiveModel, Counts, Gaussian, Gaussians, Model, SymbolModels, Table,
};

const SIZE: usize = 1 << 20;

fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    })
}

/// Exponents of bf16 values that are nearly normal, as a checkpoint has them.
fn exponents() -> Vec<u8> {
    let value =
        |x: u64| (0..3).map(|k| (x >> (16 * k) & 0xffff) as f32 / 65536.0 - 0.5).sum::<f32>();
    noise(1).take(SIZE).map(|x| (value(x).to_bits() >> 23) as u8).collect()
}

/// Names and inputs of 1 MB.
fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("exponents", exponents()),
        ("uniform over 13", noise(2).take(SIZE).map(|x| (x % 13) as u8).collect()),
        ("bytes", noise(3).take(SIZE).map(|x| (x & x >> 8) as u8).collect()),
        (
            "codes of 4 bits",
            noise(4).take(SIZE).map(|x| ((x & 7) + (x >> 3 & 7)) as u8 + 1).collect(),
        ),
    ]
}

fn counts(symbols: &[u8]) -> Counts {
    let mut counts = [0; 256];
    symbols.iter().for_each(|s| counts[usize::from(*s)] += 1);
    counts
}

/// Bytes of a plane; it comes back.
fn code(coder: TileCoder, symbols: &[u8]) -> usize {
    let mut coded = Vec::new();
    coder.encode(symbols, &mut coded);
    let mut out = vec![0; symbols.len()];
    TileCoder::decode(&coded, &mut out).unwrap();
    assert!(out == symbols, "{}", coder.name());
    assert!(coded.len() <= symbols.len() + 12, "{}", coder.name());
    coded.push(0);
    assert!(TileCoder::decode(&coded, &mut out).is_err(), "{}", coder.name());
    coded.len() - 1
}

/// Bytes of symbols under a table, by range coding.
fn under(table: &Table, symbols: &[u8]) -> usize {
    let mut coded = Vec::new();
    range::encode(symbols, Model::Static(table), &mut coded).unwrap();
    let mut out = vec![0; symbols.len()];
    range::decode(&coded, Model::Static(table), &mut out).unwrap();
    assert!(out == symbols);
    coded.len()
}

#[test]
fn static_models_cost_their_cross_entropy() {
    for (name, symbols) in inputs() {
        let counts = counts(&symbols);
        for table in [Table::wide(&counts), Table::narrow(&counts)] {
            let bound = table.cost(&counts) / 8.0;
            let over = under(&table, &symbols) as f64 / bound - 1.0;
            println!("{name}, under a table: {:+.3}% over the model", 100.0 * over);
            assert!(over <= 0.001, "{name}: {:.4}%", 100.0 * over);
        }
        let table = Table::wide(&counts);
        let ideal = table.cost(&counts) / 8.0;
        for (coder, share, more) in [
            // Tables included: they take a few dozen bytes.
            (TileCoder::Rans, 1.001, 64.0),
            (TileCoder::Range, 1.001, 0.0),
            // A Huffman code's model is its lengths: powers of two.
            (TileCoder::Huffman, 1.06, 16.0),
        ] {
            let bytes = code(coder, &symbols) as f64;
            let over = 100.0 * (bytes / ideal - 1.0);
            println!("{name}, {}: {over:+.3}% over the table", coder.name());
            assert!(bytes <= ideal * share + more, "{name} {}: {over:.4}%", coder.name());
        }
    }
    // Counts that are powers of two: then the two models are one.
    let dyadic: Vec<u8> =
        noise(5).take(SIZE).map(|x| (x | 1 << 9).trailing_zeros() as u8).collect();
    let bytes = code(TileCoder::Huffman, &dyadic) as f64;
    let lengths: f64 = dyadic.iter().map(|s| f64::from((s + 1).min(9))).sum();
    assert!(bytes <= lengths / 8.0 * 1.001, "{bytes} for {}", lengths / 8.0);
}

#[test]
fn adaptive_models_learn() {
    for (name, symbols) in inputs() {
        let mut coded = Vec::new();
        range::encode(&symbols, Model::Adaptive(&mut AdaptiveBytes::new(24)), &mut coded).unwrap();
        let mut out = vec![0; symbols.len()];
        range::decode(&coded, Model::Adaptive(&mut AdaptiveBytes::new(24)), &mut out).unwrap();
        assert!(out == symbols, "{name}");
        // The model's own cross entropy, symbol by symbol.
        let mut model = AdaptiveBytes::new(24);
        let mut bits = 0.0;
        for symbol in &symbols {
            let interval = model.interval(*symbol).unwrap();
            bits += (f64::from(interval.total) / f64::from(interval.size)).log2();
            model.update(*symbol);
        }
        let over = coded.len() as f64 / (bits / 8.0) - 1.0;
        println!("{name}: {} bytes, {:+.4}% over the model", coded.len(), 100.0 * over);
        assert!(over <= 0.001, "{name}: {over}");
        let table = Table::wide(&counts(&symbols));
        assert!((coded.len() as f64) < table.cost(&counts(&symbols)) / 8.0 * 1.03, "{name}");
    }
}

#[test]
fn a_distribution_for_every_symbol() {
    let parameters: Vec<(f32, f32)> = noise(6)
        .take(SIZE)
        .map(|x| (40.0 + (x % 1700) as f32 / 10.0, 0.3 * 1.5f32.powi((x >> 20) as i32 % 10)))
        .collect();
    let symbols: Vec<u8> = parameters
        .iter()
        .zip(noise(7))
        .map(|((mean, scale), x)| {
            let normal =
                (0..6).map(|k| (x >> (8 * k) & 255) as f32 / 255.0 - 0.5).sum::<f32>() * 1.414;
            (mean + scale * normal).round() as u8
        })
        .collect();
    let models = parameters.iter().map(|(m, s)| Gaussian::new(*m, *s).unwrap()).collect();
    let models = Gaussians::new(models);
    let bits: f64 = (0..SIZE)
        .map(|i| {
            let interval = models.interval(i, symbols[i]).unwrap();
            (f64::from(interval.total) / f64::from(interval.size)).log2()
        })
        .sum();
    let mut coded = Vec::new();
    range::encode(&symbols, Model::PerSymbol(&models), &mut coded).unwrap();
    let mut out = vec![0; SIZE];
    range::decode(&coded, Model::PerSymbol(&models), &mut out).unwrap();
    assert!(out == symbols);
    let over = coded.len() as f64 / (bits / 8.0) - 1.0;
    println!("{} bytes, {:+.4}% over the model", coded.len(), 100.0 * over);
    assert!(over <= 0.001, "{over}");
    // Knowing each symbol's own distribution is worth more than one table for all.
    assert!(
        (coded.len() as f64) < 0.6 * Table::wide(&counts(&symbols)).cost(&counts(&symbols)) / 8.0
    );
}

#[test]
fn edges_and_refusals() {
    for coder in TileCoder::ALL {
        for symbols in [&[][..], &[3], &[5, 3, 5], &[0], &[0, 0], &[255, 0]] {
            code(coder, symbols);
        }
        assert!(code(coder, &[9; 1000]) <= 4, "{}", coder.name());
        for bytes in [&[][..], &[0, 2, 1], &[77, 1, 1], &[1, 0], &[6, 1, 200]] {
            assert!(TileCoder::decode(bytes, &mut [0; 3]).is_err(), "{bytes:?}");
        }
    }
    let table = Table::wide(&counts(&[3, 3, 5]));
    for symbols in [&[][..], &[3], &[5, 3, 5]] {
        under(&table, symbols);
    }
    assert!(range::encode(&[4], Model::Static(&table), &mut Vec::new()).is_err());
    // All symbols escape.
    under(&Table::default(), &[1, 2, 3, 250]);
    assert!(under(&Table::wide(&counts(&[9])), &[9; 1000]) <= 16);
    let models = Gaussians::new(Vec::new());
    assert!(range::encode(&[1], Model::PerSymbol(&models), &mut Vec::new()).is_err());
    assert!(Gaussian::new(f32::NAN, 1.0).is_err() && Gaussian::new(0.0, 0.0).is_err());
}
