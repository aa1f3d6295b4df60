//! BitMoD against a slow reference from its definition, its laws, and bad input.

use tensorpress_quant::{BitMod, LevelTable};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Mask, Masked, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, DynCompress, ErrorKind, Group, Node, PartKind, Registry, Storage, Target,
};

/// Sums of uniform numbers, which have tails.
fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| {
        let size = (random.next_f64() * 3.0).exp() / 20.0;
        ((random.next_f64() - 0.5) * size) as f32
    })
}

fn compress(method: BitMod, weight: &Array2<f32>) -> LevelTable {
    method.compress(weight.view(), &Calibration::none(weight.ncols())).expect("finite").node
}

/// The levels of the paper in its own units, with the special number.
fn levels(bits: u8, special: f64) -> Vec<f64> {
    let floats: &[f64] =
        if bits == 3 { &[1.0, 2.0, 4.0] } else { &[0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0] };
    let signed = floats.iter().flat_map(|level| [*level, -level]);
    signed.chain([0.0, special]).collect()
}

fn nearest(levels: &[f64], value: f64) -> f64 {
    let far = |level: &f64| (level - value).abs();
    *levels.iter().min_by(|a, b| far(a).total_cmp(&far(b)).then(a.total_cmp(b))).expect("levels")
}

#[test]
fn every_group_has_the_table_that_loses_least() {
    for (bits, specials) in [(3, [3.0, -3.0, 6.0, -6.0]), (4, [5.0, -5.0, 8.0, -8.0])] {
        let weight = random(40, 96, u64::from(bits));
        let decoded = decode(&compress(BitMod::new(bits, 16), &weight)).unwrap();
        let (mut used, mut equal) = ([0; 4], 0);
        for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
            let row = row.to_vec();
            let best: Vec<(usize, f64)> = row
                .chunks(16)
                .map(|group| {
                    let most = group.iter().fold(0f64, |most, w| most.max(f64::from(w.abs())));
                    let loss = |special: f64| {
                        let levels = levels(bits, special);
                        let top = levels.iter().fold(0f64, |top, level| top.max(level.abs()));
                        let scale = most / top;
                        let one = |w: &f32| {
                            let w = f64::from(*w);
                            (w - scale * nearest(&levels, w / scale)).powi(2)
                        };
                        (group.iter().map(one).sum::<f64>(), scale)
                    };
                    let losses = specials.map(loss);
                    let least = |a: &usize, b: &usize| losses[*a].0.total_cmp(&losses[*b].0);
                    let table = (0..4).min_by(least).expect("four");
                    (table, losses[table].1)
                })
                .collect();
            // Scales are those of tables over 8.
            let most = best.iter().fold(0f64, |most, best| most.max(8.0 * best.1));
            let unit = f64::from(DType::F16.round((most / 255.0) as f32));
            for (g, (table, scale)) in best.iter().enumerate() {
                used[*table] += 1;
                let scale = (8.0 * scale / unit).round_ties_even().clamp(1.0, 255.0) * unit / 8.0;
                let levels = levels(bits, specials[*table]);
                for c in g * 16..(g + 1) * 16 {
                    let exact = scale * nearest(&levels, f64::from(row[c]) / scale);
                    equal += usize::from((f64::from(decoded[c]) - exact).abs() < 1e-6);
                }
            }
        }
        assert!(used.iter().all(|used| *used > 0), "{used:?}");
        assert!(equal as f64 > 0.999 * weight.len() as f64, "{bits} bits: {equal}");
    }
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 0), (1, 1), (9, 1), (3, 7), (17, 33), (16, 64)]
    {
        for bits in [3, 4] {
            for group in [0, 5, 32, 1 << 20] {
                let node = compress(BitMod::new(bits, group), &random(rows, cols, 1));
                check_node(node.boxed(), &Registry::default(), 1e-4);
            }
        }
    }
    check_damage(&compress(BitMod::new(3, 8), &random(6, 20, 2)), &Registry::default());
}

#[test]
fn sizes_are_as_stated() {
    let storage = Storage::of(&compress(BitMod::default(), &random(64, 512, 3))).unwrap();
    let stated = 4.0 + 10.0 / 128.0 + 16.0 / 512.0 + 4.0 * 16.0 * 16.0 / 32_768.0;
    assert_eq!(storage.bits() as f64 / 32_768.0, stated);
    assert_eq!(storage.bytes_of(PartKind::Tables), 128);
}

#[test]
fn limits_are_right() {
    let zeros = Array2::zeros((3, 16));
    assert_eq!(decode(&compress(BitMod::default(), &zeros)).unwrap(), zeros);
    for size in [1e-44, 1e-30, 1e-6, 1e6, 1e30, 3e38] {
        let mut weight = random(4, 32, 4);
        weight.mapv_inplace(|w| w.clamp(-1.0, 1.0) * size);
        let decoded = decode(&compress(BitMod::new(4, 16), &weight)).unwrap();
        let far = (&decoded - &weight).fold(0f32, |far, d| far.max(d.abs()));
        // Scales are no smaller than normal numbers are.
        assert!(far <= if size < 1e-36 { size } else { 0.2 * size }, "{size}: {far}");
    }
}

#[test]
fn masked_weights_decode_to_zero() {
    let weight = random(8, 64, 5);
    let keep = random(8, 64, 6).mapv(|v| v > 0.0);
    let mask = Mask::from_bools(keep.view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let group = Group::single(target, Calibration::none(64));
    let node = BitMod::default().compress_group_dyn(group).unwrap().layers.remove(0).node;
    let masked = Masked::new(mask.clone(), node).unwrap();
    for ((at, w), decoded) in weight.indexed_iter().zip(&decode(&masked).unwrap()) {
        assert!(if keep[at] { (w - decoded).abs() < 0.1 } else { *decoded == 0.0 }, "{at:?}");
    }
}

#[test]
fn bad_weights_and_parameters_are_named() {
    let mut weight = random(4, 8, 7);
    let error = |bits: u8, weight: &Array2<f32>| {
        let blind = Calibration::none(8);
        BitMod::new(bits, 4).compress(weight.view(), &blind).map(drop).unwrap_err()
    };
    assert_eq!(error(5, &weight).kind(), ErrorKind::InvalidArgument);
    assert!(error(2, &weight).to_string().contains("allowed are 3 and 4"));
    weight[[2, 3]] = f32::NEG_INFINITY;
    assert_eq!(error(4, &weight).kind(), ErrorKind::Numerical);
    assert!(error(4, &weight).to_string().contains("[2, 3]"));
}

#[test]
fn threads_do_not_change_a_bit() {
    let weight = random(70, 96, 8);
    let run = |par: Par| {
        let mut group = Group::single(Target::new("w", weight.view()), Calibration::none(96));
        group.par = par;
        let node = BitMod::new(3, 32).compress_group_dyn(group).unwrap().layers.remove(0).node;
        decode(&*node).unwrap()
    };
    assert_eq!(run(Par::Seq), run(Par::Threads(2)));
}
