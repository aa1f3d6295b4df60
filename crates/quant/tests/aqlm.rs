//! AQLM: the official beam search from its own start, and quality from ours.

use tensorpress_quant::{AdditiveCodes, Aqlm};
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{Mask, decode, to_bytes};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::{Golden, Layer};
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Compress, DType, DynCompress, ErrorKind, Group, Node, Registry, Storage, Target, Tensor,
};

/// A tensor of any rank, its first axes as rows.
fn values(golden: &Golden, name: &str) -> Vec<f32> {
    golden.file.tensor(name).expect("a tensor").to_matrix().expect("numbers").into_iter().collect()
}

fn bytes(golden: &Golden, name: &str) -> Vec<u16> {
    let tensor = golden.file.tensor(name).expect("a tensor");
    tensor.bytes().iter().map(|code| u16::from(*code)).collect()
}

/// The official state with these codes.
fn state(golden: &Golden, codes: &str, prefix: &str) -> AdditiveCodes {
    let number = |key: &str| golden.param(key).as_u64().expect("a number") as usize;
    let (books, size, cols) = (number("num_codebooks"), number("in_group_size"), 384);
    let scales = values(golden, &format!("{prefix}scales"));
    let codes = bytes(golden, codes);
    let codebooks = values(golden, &format!("{prefix}codebooks"));
    AdditiveCodes {
        cols,
        bits: number("nbits_per_codebook") as u8,
        books,
        codebooks: Array2::from_shape_vec((codebooks.len() / size, size), codebooks).unwrap(),
        codes: Array2::from_shape_vec((scales.len(), codes.len() / scales.len()), codes).unwrap(),
        scales,
    }
}

#[test]
fn beams_are_those_of_the_official_code() {
    let Some(files) = Golden::all("aqlm") else { return };
    for golden in &files {
        let start = state(golden, "codes_init", "");
        let rows = start.scales.len();
        let weight = golden.layer.weight.slice(s![..rows, ..]);
        let gram = golden.layer.gram.mapv(|v| f64::from(v) / 1024.0);
        let figure = |key: &str| golden.figure(key).expect("a figure");
        let loss = |codes: &AdditiveCodes| codes.loss(weight, gram.view(), Par::Seq) / rows as f64;
        assert!((loss(&start) / figure("init_loss") - 1.0).abs() < 1e-4, "{}", golden.name);
        for beam in [1, 4] {
            let name = format!("codes_beam{beam}");
            if !golden.file.contains(&name) {
                continue;
            }
            let mut ours = start.clone();
            ours.search(weight, gram.view(), beam, Par::Seq);
            let official = bytes(golden, &name);
            let equal = ours.codes.iter().zip(&official).filter(|(a, b)| a == b).count();
            let equal = equal as f64 / official.len() as f64;
            let (got, stated) = (loss(&ours), figure(&format!("beam{beam}_loss")));
            println!(
                "{} beam {beam}: codes equal {equal:.6}, loss {got:.6} ({stated:.6})",
                golden.name
            );
            assert!(equal >= 0.998, "{}: {equal}", golden.name);
            assert!((got / stated - 1.0).abs() < 1e-3, "{}: {got}, {stated}", golden.name);
            let mut fitted = ours.clone();
            fitted.fit(weight, gram.view(), Par::Seq);
            println!("  fitted: loss {:.6}", loss(&fitted));
            assert!(loss(&fitted) < got);
        }
    }
    println!("golden files checked: aqlm {}", files.len());
    assert!(files.len() >= 3, "golden vectors are missing");
}

/// K-means no worse than the official one, and the whole no worse than all of its epochs.
#[test]
fn it_is_as_good_as_the_official_code_from_the_start_on() {
    let Some(files) = Golden::all("aqlm") else { return };
    for golden in &files {
        let official = state(golden, "codes_init", "");
        let rows = official.scales.len();
        let weight = golden.layer.weight.slice(s![..rows, ..]).to_owned();
        let plain = AdditiveCodes::start(weight.view(), official.books, 8, 8, 1, Par::Seq);
        let layer = Layer { weight: weight.clone(), ..golden.layer.clone() };
        let error =
            |q: &Array2<f32>| (&weight - q).iter().map(|d| f64::from(*d).powi(2)).sum::<f64>();
        let (ours, theirs) = (error(&plain.decode()), error(&official.decode()));
        assert!(ours < 1.1 * theirs, "{}: k-means {ours}, {theirs}", golden.name);
        let stated = golden.figure("output_rel_err").expect("a figure");
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1024).unwrap();
        let made = Aqlm::new(official.books, 8).compress(weight.view(), &calibration).unwrap();
        let ours = layer.output_error(decode(&made.node).unwrap().view());
        println!("{}: output error {ours:.6} (official {stated:.6})", golden.name);
        assert!(ours < 1.02 * stated, "{}: {ours}, {stated}", golden.name);
    }
}

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn inputs(cols: usize, seed: u64) -> Calibration {
    Calibration::from_samples(random(3 * cols + 9, cols, seed), Par::Seq)
}

#[test]
fn nodes_obey_the_laws_and_are_as_large_as_stated() {
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (5, 1), (9, 37), (20, 64)] {
        for (books, bits, size) in [(1, 4, 8), (2, 3, 5), (3, 1, 1), (1, 9, 4)] {
            let method = Aqlm::new(books, bits).with_size(size).with_rounds(2).with_beam(2);
            let made = method.compress(random(rows, cols, 1).view(), &inputs(cols, 2)).unwrap();
            assert!(decode(&made.node).unwrap().iter().all(|w| w.is_finite()));
            let codes = rows * (cols.div_ceil(size) * books * usize::from(bits)).div_ceil(8) * 8;
            let floats = rows + ((books * size) << bits);
            let bits = codes + 16 * floats;
            assert_eq!(Storage::of(&made.node).unwrap().bits(), bits as u64);
            check_node(made.node.boxed(), &Registry::default(), 1e-4);
        }
    }
    let made = Aqlm::new(2, 3).compress(random(6, 20, 3).view(), &inputs(20, 4)).unwrap();
    check_damage(&made.node, &Registry::default());
}

#[test]
fn bad_statistics_are_told_and_bad_numbers_refused() {
    let mut weight = random(12, 16, 5);
    let method = Aqlm::new(1, 5);
    let zeros = (Array2::zeros((9, 16)), "zero");
    let nan = (Array2::from_elem((9, 16), f32::NAN), "NaN");
    for (samples, reason) in [(Array2::zeros((0, 16)), "no calibration token"), zeros, nan] {
        let calibration = Calibration::from_samples(samples, Par::Seq);
        let made = method.compress(weight.view(), &calibration).unwrap();
        let told = made.fallback.unwrap();
        assert!(told.contains(reason) && told.contains("error of the weights"), "{told}");
        assert!(decode(&made.node).unwrap().iter().all(|w| w.is_finite()));
    }
    // Nothing but zeros; constant rows; dead inputs; huge and tiny weights.
    let mut x = random(60, 16, 6);
    x.column_mut(3).fill(0.0);
    let dead = Calibration::from_samples(x, Par::Seq);
    for (case, w) in [
        Array2::zeros((12, 16)),
        Array2::from_shape_fn((12, 16), |(r, _)| r as f32 - 5.0),
        weight.mapv(|w| w * 1e30),
        weight.mapv(|w| w * 1e-30),
    ]
    .into_iter()
    .enumerate()
    {
        let made = method.compress(w.view(), &dead).unwrap();
        let decoded = decode(&made.node).unwrap();
        assert!(decoded.iter().all(|w| w.is_finite()), "case {case}");
        assert!(case != 0 || decoded.iter().all(|w| *w == 0.0));
    }
    let kind = |method: Aqlm| method.compress(weight.view(), &inputs(16, 7)).unwrap_err().kind();
    for bad in [
        Aqlm::new(0, 8),
        Aqlm::new(1, 0),
        Aqlm::new(1, 13),
        method.with_size(0),
        method.with_beam(0),
        method.with_rounds(1 << 20),
        method.with_floats(DType::U8),
    ] {
        assert_eq!(kind(bad), ErrorKind::InvalidArgument, "{bad:?}");
    }
    let mask = Mask::from_bools(Array2::from_elem((12, 16), true).view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let refused = method.compress_group_dyn(Group::single(target, inputs(16, 8))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    weight[[2, 3]] = f32::NAN;
    let error = method.compress(weight.view(), &inputs(16, 9)).unwrap_err();
    assert!(error.kind() == ErrorKind::Numerical && error.to_string().contains("[2, 3]"));
}

#[test]
fn threads_do_not_change_a_bit() {
    let (weight, samples) = (random(40, 64, 10), random(200, 64, 11));
    let run = |par: Par| {
        let calibration = Calibration::from_samples(samples.clone(), par);
        let mut group = Group::single(Target::new("w", weight.view()), calibration);
        group.par = par;
        let made = Aqlm::new(2, 4).compress_group(group).unwrap();
        to_bytes(&made.layers[0].node).unwrap()
    };
    assert!(run(Par::Seq) == run(Par::Rayon));
}
