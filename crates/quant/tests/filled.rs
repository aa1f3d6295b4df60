//! Known tables under searched scales and filled by feedback: what bitsandbytes reads, with other numbers in it.

mod reference;

use reference::{costs, damped_gram, feed_back, inputs, output_error, random, seen};
use tensorpress_quant::{Codes, Dynamic8, Fp4, LevelTable, Nf4, optimal_scale};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Blocks, Child, KnownLevels, Mask, Masked, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{Compress, DynCompress, Group, Node, Registry, Storage, Target};

fn compress(method: &impl Compress<Node = LevelTable>, weight: &Array2<f32>) -> LevelTable {
    method.compress(weight.view(), &Calibration::none(weight.ncols())).expect("finite").node
}

fn loss(weight: &[f32], decoded: &[f32]) -> f64 {
    weight.iter().zip(decoded).map(|(w, q)| f64::from(w - q).powi(2)).sum()
}

/// No block loses more than under its largest magnitude, and the format is the same, to the byte where that can be.
#[test]
fn searched_scales_lose_less_in_the_same_format() {
    let weight = random(32, 128, 1);
    for double_quant in [false, true] {
        let nf4 = Nf4::default().with_block(32).with_double_quant(double_quant);
        let fp4 = Fp4::default().with_block(32).with_double_quant(double_quant);
        let eight = Dynamic8::default().with_block(64).with_double_quant(double_quant);
        let pairs = [
            (compress(&nf4, &weight), compress(&nf4.with_search(true), &weight)),
            (compress(&fp4, &weight), compress(&fp4.with_search(true), &weight)),
            (compress(&eight, &weight), compress(&eight.with_search(true), &weight)),
        ];
        for (plain, searched) in pairs {
            assert_eq!(plain.describe(), searched.describe());
            assert_eq!(Storage::of(&plain).unwrap(), Storage::of(&searched).unwrap());
            let [plain, searched] = [plain, searched].map(|node| decode(&node).unwrap());
            let flat = |of: &Array2<f32>| of.iter().copied().collect::<Vec<f32>>();
            let [w, plain, searched] = [&weight, &plain, &searched].map(flat);
            assert!(loss(&w, &searched) < 0.99 * loss(&w, &plain));
            let mut better = 0;
            for ((w, plain), found) in w.chunks(64).zip(plain.chunks(64)).zip(searched.chunks(64)) {
                let (plain, found) = (loss(w, plain), loss(w, found));
                // Scales that are quantised in turn may be worse for one block.
                assert!(double_quant || found <= plain * (1.0 + 1e-6));
                better += usize::from(found < 0.99 * plain);
            }
            assert!(better > 16, "{better} of 64");
        }
    }
}

#[test]
fn feedback_is_that_of_the_reference() {
    let (weight, x) = (random(6, 48, 1), inputs(200, 48, 2));
    let method = Nf4::default().with_block(16).with_double_quant(false);
    let made = method.with_codes(Codes::feedback()).compress(weight.view(), &seen(&x)).unwrap();
    assert_eq!(made.node.format().blocks(), Blocks::Flat(16));
    let decoded = decode(&made.node).unwrap();
    let gram = damped_gram(&x, 0.01);
    let costs: Vec<f32> = costs(&gram).iter().map(|c| *c as f32).collect();
    let levels = KnownLevels::Nf4.levels();
    let mut equal = 0;
    for (row, decoded) in weight.rows().into_iter().zip(decoded.rows()) {
        let row: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        let mut scale = 0.0;
        let exact = feed_back(&gram, &row, 1, |at, now| {
            if at % 16 == 0 {
                let block: Vec<f32> = now[..16].iter().map(|v| *v as f32).collect();
                scale = f64::from(optimal_scale(levels, &block, Some(&costs[at..at + 16])));
            }
            let far = |level: &&f32| (f64::from(**level) - now[0] / scale).abs();
            let nearest = levels.iter().min_by(|a, b| far(a).total_cmp(&far(b))).unwrap();
            vec![scale * f64::from(*nearest)]
        });
        equal +=
            exact.iter().zip(decoded).filter(|(a, b)| (*a - f64::from(**b)).abs() < 1e-4).count();
    }
    assert!(equal as f64 >= 0.99 * weight.len() as f64, "{equal} of {}", weight.len());
}

#[test]
fn feedback_loses_less_of_the_outputs() {
    let (weight, x) = (random(40, 128, 3), inputs(400, 128, 4));
    let gram = damped_gram(&x, 0.01);
    let error = |method: &dyn DynCompress| {
        let group = Group::single(Target::new("w", weight.view()), seen(&x));
        let made = method.compress_group_dyn(group).unwrap().layers.remove(0);
        assert!(made.fallback.is_none());
        output_error(&gram, &weight, &decode(&*made.node).unwrap())
    };
    for double_quant in [false, true] {
        let nf4 = Nf4::default().with_double_quant(double_quant);
        let fp4 = Fp4::default().with_double_quant(double_quant);
        let gains = [
            error(&nf4.with_codes(Codes::feedback())) / error(&nf4.with_search(true)),
            error(&fp4.with_codes(Codes::feedback())) / error(&fp4.with_search(true)),
        ];
        assert!(gains.iter().all(|gain| *gain < 0.7), "{gains:?}");
    }
}

#[test]
fn nodes_obey_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (9, 1), (3, 7), (17, 33), (16, 64)] {
        let (weight, x) = (random(rows, cols, 1), inputs(40, cols, 2));
        for block in [1, 5, 16, 1 << 20] {
            for double_quant in [false, true] {
                let method = Nf4::default().with_block(block).with_double_quant(double_quant);
                let searched = compress(&method.with_search(true), &weight);
                check_node(searched.boxed(), &Registry::default(), 1e-4);
                let fed = method.with_codes(Codes::feedback());
                let made = fed.compress(weight.view(), &seen(&x)).unwrap().node;
                // Blocks that do not divide rows end with them.
                let flat = cols % block == 0;
                assert_eq!(matches!(made.format().blocks(), Blocks::Flat(_)), flat);
                let Child::Node(scales) = made.child(1) else { panic!("scales are a node") };
                let count = if flat { rows * cols / block } else { rows * cols.div_ceil(block) };
                assert_eq!(scales.shape().iter().product::<usize>(), count);
                check_node(made.boxed(), &Registry::default(), 1e-4);
            }
        }
    }
    let fed = Fp4::default().with_block(8).with_codes(Codes::feedback());
    let made = fed.compress(random(6, 20, 2).view(), &seen(&inputs(40, 20, 3))).unwrap();
    check_damage(&made.node, &Registry::default());
}

#[test]
fn limits_are_right() {
    let zeros = Array2::zeros((3, 16));
    assert_eq!(decode(&compress(&Nf4::default().with_search(true), &zeros)).unwrap(), zeros);
    for size in [1e-44f32, 1e-30, 1e-6, 1e6, 1e30, 3e38] {
        let weight = random(4, 64, 4).mapv(|w| w.clamp(-1.0, 1.0) * size);
        let method = Nf4::default().with_block(16).with_double_quant(false).with_search(true);
        let decoded = decode(&compress(&method, &weight)).unwrap();
        let far = (&decoded - &weight).fold(0f32, |far, d| far.max(d.abs()));
        assert!(far <= if size < 1e-36 { size } else { 0.2 * size }, "{size}: {far}");
    }
    let fed = Nf4::default().with_codes(Codes::feedback());
    let made = fed.compress(random(4, 16, 1).view(), &Calibration::none(16)).unwrap();
    assert!(made.fallback.unwrap().contains("no calibration token"));
}

#[test]
fn masked_weights_decode_to_zero() {
    let (weight, x) = (random(8, 64, 5), inputs(100, 64, 9));
    let keep = random(8, 64, 6).mapv(|v| v > 0.0);
    let mask = Mask::from_bools(keep.view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let method = Nf4::default().with_codes(Codes::feedback());
    let made = method.compress_group_dyn(Group::single(target, seen(&x))).unwrap();
    let masked = Masked::new(mask, made.layers.into_iter().next().unwrap().node).unwrap();
    let decoded = decode(&masked).unwrap();
    assert!(decoded.indexed_iter().all(|(at, w)| keep[at] || *w == 0.0));
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, x) = (random(70, 96, 8), inputs(150, 96, 3));
    for method in [Nf4::default().with_search(true), Nf4::default().with_codes(Codes::feedback())] {
        let run = |par: Par| {
            let mut group = Group::single(Target::new("w", weight.view()), seen(&x));
            group.par = par;
            decode(&*method.compress_group_dyn(group).unwrap().layers[0].node).unwrap()
        };
        assert_eq!(run(Par::Seq), run(Par::Threads(2)));
    }
}
