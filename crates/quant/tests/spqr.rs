//! SpQR against the official code, and what its nodes promise.

use tensorpress_quant::{Gptq, GridSpec, NestedAffine, Spqr};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{
    Child, Mask, Masked, Sum, SymbolBuf, Transformed, as_node, decode, to_bytes,
};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, ErrorKind, Group, Node, PartKind, Registry, Storage, Target,
};

/// The codes of a result, whatever is around them.
fn leaf(node: &dyn Node) -> &NestedAffine {
    if let Some(sum) = as_node::<Sum>(node) {
        return leaf(&*sum.terms()[0]);
    }
    match as_node::<Transformed>(node) {
        Some(permuted) => leaf(permuted.inner()),
        None => as_node(node).expect("a nested leaf"),
    }
}

fn child(node: &NestedAffine, slot: usize) -> &NestedAffine {
    match node.child(slot) {
        Child::Node(child) => as_node(&**child).expect("quantised in turn"),
        other => panic!("{other:?}"),
    }
}

fn codes(node: &NestedAffine) -> Vec<f32> {
    let mut buffer = SymbolBuf::of(node.codes());
    let codes = buffer.read(node.codes(), 0..node.shape()[0]).expect("packed");
    codes.iter().map(f32::from).collect()
}

fn outliers(node: &dyn Node) -> Option<&Masked> {
    as_node(&**as_node::<Sum>(node)?.terms().get(1)?)
}

/// Share of numbers that are equal.
fn agreement(ours: &[f32], official: &Array2<f32>) -> f64 {
    assert_eq!(ours.len(), official.len());
    let equal = ours.iter().zip(official).filter(|(a, b)| a == b).count();
    equal as f64 / ours.len() as f64
}

/// Codes, codes of scales and zero points, masks and values of outliers, and output errors.
#[test]
fn all_is_as_the_official_code_has_it() {
    let Some(files) = Golden::all("spqr") else { return };
    for golden in &files {
        let bits = |key: &str| golden.param(key).as_u64().unwrap_or(0) as u8;
        let threshold = golden.param("outlier_relative_threshold").as_f64().unwrap_or(0.0);
        let nested = bits("qq_scale_bits") > 0;
        let method = Spqr::new(bits("bits"))
            .with_group(golden.param("groupsize").as_u64().expect("a group") as usize)
            .with_statistics_bits(bits("qq_scale_bits"), bits("qq_zero_bits"))
            .with_outputs(golden.param("qq_groupsize").as_u64().expect("a group") as usize)
            .with_threshold(threshold as f32)
            .with_leave_one_out(!golden.flag("simplified_outliers"))
            .with_act_order(golden.param("permutation_order") == "act_order")
            .with_damp(golden.param("percdamp").as_f64().expect("a number") as f32)
            .with_floats(DType::F32);
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1024).unwrap();
        let made = method.compress(golden.layer.weight.view(), &calibration).unwrap();
        assert_eq!(made.fallback, None, "{}", golden.name);
        let node = leaf(&*made.node);
        let mut least = agreement(&codes(node), &golden.floats("codes"));
        for (slot, name) in [(0, "scale"), (1, "zero")] {
            let official = match name {
                "scale" => golden.floats("quant_layer_scale"),
                _ => golden.floats("quant_layer_zeros"),
            };
            if nested {
                least = least.min(agreement(&codes(child(node, slot)), &official));
            }
            for (slot, part) in [(0, "scale"), (1, "zero")] {
                let official = match nested {
                    true => golden.floats(&format!("quant_layer_{name}_qq_{part}")),
                    false => official.clone(),
                };
                let ours = match nested {
                    true => {
                        child(node, usize::from(name == "zero")).beside().unwrap()[slot].to_vec()
                    }
                    false => node.beside().unwrap()[usize::from(name == "zero")].to_vec(),
                };
                let apart =
                    ours.iter().zip(&official).filter(|(a, b)| (*a / *b - 1.0).abs() > 1e-3);
                let apart = apart.count() as f64 / ours.len() as f64;
                assert!(apart <= 0.005, "{}: {name} {part}: {apart}", golden.name);
            }
        }
        let decoded = decode(&*made.node).unwrap();
        let (mut count, mut masks, mut values) = (0.0, 1.0, 1.0);
        if golden.file.contains("outlier_mask") {
            let official = golden.floats("outlier_values");
            let mut official = official.iter();
            let ours = outliers(&*made.node).expect("outliers");
            let (mut other, mut apart) = (0.0, 0.0);
            for ((at, kept), decoded) in golden.floats("outlier_mask").indexed_iter().zip(&decoded)
            {
                other += f64::from(u8::from(ours.mask().keeps(at.0, at.1) != (*kept == 1.0)));
                if *kept == 1.0 {
                    let official = official.next().expect("a value each");
                    apart += f64::from(u8::from((decoded - official).abs() > 1e-5));
                    count += 1.0;
                }
            }
            (masks, values) = (1.0 - other / count, 1.0 - apart / count);
        } else {
            assert!(outliers(&*made.node).is_none());
        }
        let ours = golden.layer.output_error(decoded.view());
        let stated = golden.figure("output_rel_err").expect("a figure");
        println!(
            "{}: codes and codes of scales equal {least:.6}; {count} outliers, places equal {masks:.6}, values {values:.6}; error {ours:.6} (official {stated:.6})",
            golden.name
        );
        assert!(least >= 0.9995, "{}: {least}", golden.name);
        assert!(masks >= 0.999 && values >= 0.995, "{}: {masks}, {values}", golden.name);
        assert!((ours / stated - 1.0).abs() < 1e-3, "{}: {ours}, {stated}", golden.name);
    }
    println!("golden files checked: spqr {}", files.len());
    assert!(files.len() >= 4, "golden vectors are missing");
}

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    // Tails, so that there are outliers.
    Array2::from_shape_fn((rows, cols), |_| (random.next_f64() as f32 - 0.5).powi(3) * 8.0)
}

fn inputs(tokens: usize, cols: usize, seed: u64) -> Calibration {
    Calibration::from_samples(random(tokens, cols, seed), Par::Seq)
}

#[test]
fn every_composition_obeys_the_laws() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (5, 1), (1, 40), (17, 33), (40, 130)] {
        for (group, outputs) in [(16, 16), (5, 3), (1, 1), (1 << 20, 1 << 20)] {
            for (scale_bits, zero_bits) in [(3, 3), (0, 0), (8, 0), (0, 2), (1, 1)] {
                for act_order in [false, true] {
                    let method = Spqr::new(3)
                        .with_group(group)
                        .with_outputs(outputs)
                        .with_statistics_bits(scale_bits, zero_bits)
                        .with_act_order(act_order)
                        .with_floats([DType::F16, DType::BF16, DType::F32][cols % 3]);
                    let weight = random(rows, cols, 1);
                    let made = method.compress(weight.view(), &inputs(60, cols, 2)).unwrap();
                    assert!(decode(&*made.node).unwrap().iter().all(|w| w.is_finite()));
                    check_node(made.node, &Registry::default(), 1e-4);
                }
            }
        }
    }
    let made = Spqr::new(3).compress(random(20, 48, 3).view(), &inputs(100, 48, 4)).unwrap();
    assert!(outliers(&*made.node).is_some());
    check_damage(&*made.node, &Registry::default());
}

/// Under a mask nothing outside is kept, and what is inside is still swept.
#[test]
fn supports_are_kept_to() {
    let (weight, calibration) = (random(24, 64, 5), inputs(100, 64, 6));
    let mask = Mask::from_bools(random(24, 64, 7).mapv(|v| v > 0.0).view());
    for act_order in [false, true] {
        let mut target = Target::new("w", weight.view());
        target.mask = Some(&mask);
        let group = Group::single(target, calibration.clone());
        let method = Spqr::new(3).with_act_order(act_order).with_threshold(0.05);
        let node = method.compress_group(group).unwrap().layers.remove(0).node;
        assert!(outliers(&*node).is_some());
        let masked = Masked::new(mask.clone(), node).unwrap();
        for ((at, w), decoded) in weight.indexed_iter().zip(&decode(&masked).unwrap()) {
            assert!(mask.keeps(at.0, at.1) || *decoded == 0.0, "{w} at {at:?}");
        }
        check_damage(&masked, &Registry::default());
        check_node(masked.boxed(), &Registry::default(), 1e-4);
    }
}

/// 3 bits a code, 3 + 3 bits a group of 16, 4 x 16 bits of floats for 16 of these, and about 8 bits an outlier's place.
#[test]
fn sizes_are_as_stated() {
    let (rows, cols) = (64, 256);
    let (weight, calibration) = (random(rows, cols, 8), inputs(300, cols, 9));
    let weights = (rows * cols) as u64;
    let made = Spqr::new(3).with_act_order(false).with_threshold(0.0);
    let plain = made.compress(weight.view(), &calibration).unwrap().node;
    assert_eq!(Storage::of(&*plain).unwrap().bits(), weights * 3 + weights / 16 * (6 + 4));
    let with = made.with_threshold(0.2).compress(weight.view(), &calibration).unwrap().node;
    let storage = Storage::of(&*with).unwrap();
    let count = outliers(&*with).expect("outliers").mask().kept_before(rows) as u64;
    assert_eq!(storage.bytes_of(PartKind::Values), 2 * count);
    let places = storage.bytes_of(PartKind::Masks) * 8;
    let density = count as f64 / weights as f64;
    let entropy = -density * density.log2() - (1.0 - density) * (1.0 - density).log2();
    println!("{count} outliers: {places} bits of places, entropy {:.0}", entropy * weights as f64);
    assert!((places as f64) < 1.25 * entropy * weights as f64 + 64.0);
}

/// Each part of it pays: less error than GPTQ at more bits, and less with outliers than without.
#[test]
fn it_loses_less_than_gptq_at_the_same_bits() {
    let Some(files) = Golden::all("spqr") else { return };
    let layer = &files[0].layer;
    let calibration = Calibration::from_gram(layer.gram.clone(), 1024).unwrap();
    let run = |method: &dyn tensorpress_tensor::DynCompress| {
        let group = Group::single(Target::new("w", layer.weight.view()), calibration.clone());
        let node = method.compress_group_dyn(group).unwrap().layers.remove(0).node;
        let bits = Storage::of(&*node).unwrap().bits() as f64 / layer.weight.len() as f64;
        (layer.output_error(decode(&*node).unwrap().view()), bits)
    };
    let spqr = run(&Spqr::new(3));
    let gptq = run(&Gptq::new(GridSpec::new(4, 0)));
    let none = run(&Spqr::new(3).with_threshold(0.0));
    println!(
        "output error and bits: spqr {spqr:?}, without outliers {none:?}, gptq of 4 bits {gptq:?}"
    );
    assert!(spqr.1 < gptq.1 + 0.2 && spqr.0 < gptq.0 && spqr.0 < none.0);
}

#[test]
fn bad_statistics_are_told_and_bad_numbers_refused() {
    let mut weight = random(24, 32, 10);
    let method = Spqr::new(4).with_group(8);
    let blind = Calibration::from_samples(Array2::zeros((0, 32)), Par::Seq);
    let mut nan = random(50, 32, 11);
    nan[[3, 5]] = f32::NAN;
    for calibration in [
        blind,
        Calibration::from_samples(Array2::zeros((10, 32)), Par::Seq),
        Calibration::from_samples(nan, Par::Seq),
    ] {
        let made = method.compress(weight.view(), &calibration).unwrap();
        assert!(made.fallback.unwrap().contains("rounded to nearest"));
        for (w, q) in weight.iter().zip(&decode(&*made.node).unwrap()) {
            assert!((w - q).abs() < 0.15, "{w} {q}");
        }
    }
    let kind = |method: Spqr| method.compress(weight.view(), &inputs(9, 32, 1)).unwrap_err().kind();
    for bad in [
        method.with_group(0),
        method.with_outputs(0),
        method.with_damp(f32::NAN),
        method.with_threshold(-1.0),
        method.with_statistics_bits(9, 3),
        method.with_floats(DType::U8),
        Spqr::new(1),
    ] {
        assert_eq!(kind(bad), ErrorKind::InvalidArgument, "{bad:?}");
    }
    weight[[2, 3]] = f32::NAN;
    let error = method.compress(weight.view(), &inputs(9, 32, 1)).unwrap_err();
    assert!(error.kind() == ErrorKind::Numerical && error.to_string().contains("[2, 3]"));
}

/// All zeros, constant rows, rows all alike, rows of zeros among others, values far from 0, huge and tiny ones.
#[test]
fn degenerate_weights_stay_close() {
    let calibration = inputs(100, 40, 12);
    let base = random(33, 40, 13);
    let cases: Vec<(&str, Array2<f32>)> = vec![
        ("zeros", Array2::zeros((33, 40))),
        ("constant rows", Array2::from_shape_fn((33, 40), |(r, _)| r as f32 - 7.0)),
        ("rows alike", Array2::from_shape_fn((33, 40), |(_, c)| base[[0, c]])),
        (
            "zero rows",
            Array2::from_shape_fn((33, 40), |(r, c)| if r % 3 == 0 { 0.0 } else { base[[r, c]] }),
        ),
        (
            "zero columns",
            Array2::from_shape_fn((33, 40), |(r, c)| if c % 3 == 0 { 0.0 } else { base[[r, c]] }),
        ),
        ("far from 0", base.mapv(|w| 1000.0 + w)),
        ("huge", base.mapv(|w| w * 1e30)),
        ("tiny", base.mapv(|w| w * 1e-30)),
    ];
    for (name, weight) in cases {
        let largest = weight.iter().fold(0.0f32, |a, w| a.max(w.abs()));
        let made = Spqr::new(4).compress(weight.view(), &calibration).unwrap();
        let decoded = decode(&*made.node).unwrap();
        // The sum of squares, of what may have moved to columns that inputs tell little of.
        let worst = weight.iter().zip(&decoded).fold(0.0f32, |a, (w, q)| a.max((w - q).abs()));
        println!("{name}: error of at most {worst}, largest {largest}");
        assert!(worst <= 0.25 * largest, "{name}: {worst}");
        assert!(name != "zeros" || worst == 0.0);
        check_node(made.node, &Registry::default(), 1e-4);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, samples) = (random(70, 96, 14), random(200, 96, 15));
    let run = |par: Par| {
        let calibration = Calibration::from_samples(samples.clone(), par);
        let mut group = Group::single(Target::new("w", weight.view()), calibration);
        group.par = par;
        let made = Spqr::default().compress_group(group).unwrap();
        to_bytes(&*made.layers[0].node).unwrap()
    };
    assert!(run(Par::Seq) == run(Par::Rayon));
}
