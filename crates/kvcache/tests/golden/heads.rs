use tensorpress_kvcache::Ladder;
use tensorpress_kvcache::heads::matrix_entropy;
use tensorpress_tensor::ndarray::s;

use crate::{ints, near, open, tokens_first};

#[test]
fn uncomp_entropies() {
    let Some(file) = open("zipcache_diffrate_uncomp") else { return };
    let keys = tokens_first(&file, "in.k");
    let tensor = file.tensor("uncomp.entropy_per_head").expect("entropies");
    let theirs: Vec<f64> =
        tensor.bytes().as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let mine: Vec<f32> = (0..4)
        .map(|h| matrix_entropy(keys.slice(s![.., h, ..]), 0).expect("an entropy") as f32)
        .collect();
    let theirs: Vec<f32> = theirs.iter().map(|e| *e as f32).collect();
    near(&mine, &theirs, 1e-6, "entropies");
    println!("uncomp: 1 file, 4 entropies equal");
}

/// Positions after successive calls.
#[test]
fn lacache_ladders() {
    let Some(file) = open("lacache_ladder") else { return };
    let mut checked = 0;
    for (number, layers, size, sinks, shape, added) in
        [(0, 8, 64, 8, (4, 2), vec![60, 20, 30, 60]), (1, 6, 48, 4, (3, 1), vec![100, 16, 16])]
    {
        let mut ladder = Ladder::new(layers, size, sinks, shape).expect("a ladder");
        let mut held: Vec<Vec<usize>> = vec![Vec::new(); layers];
        let mut seen = 0;
        for (step, added) in added.into_iter().enumerate() {
            held.iter_mut().for_each(|held| held.extend(seen..seen + added));
            seen += added;
            let many = held[0].len();
            if let Some(slots) = ladder.step(many) {
                for (held, slots) in held.iter_mut().zip(slots) {
                    let once = Ladder::distinct(&slots, many);
                    assert_eq!(once.len(), slots.len());
                    assert!(once.is_sorted_by(|a, b| a < b) && once.last() < Some(&many));
                    *held = slots.into_iter().map(|slot| held[slot]).collect();
                }
            }
            let theirs = ints(&file, &format!("cfg{number}.step{step}.positions"));
            for (layer, theirs) in theirs.chunks(theirs.len() / layers).enumerate() {
                assert_eq!(held[layer], theirs, "{number}, step {step}, layer {layer}");
                checked += 1;
            }
        }
    }
    println!("lacache: 1 file, the positions of {checked} layers after a step equal");
}
