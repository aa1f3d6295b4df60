//! Paths through a trellis: the feedback against a plain reference in f64, distortion, laws, bits and bad input. The search for
//! paths is tested where it is, in the kernels.

use tensorpress_quant::{BitshiftTrellis, Qtip, Sides};
use tensorpress_tensor::kernels::{trellis_encode, trellis_values};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{Mask, PackedPlane, Transformed, as_node, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{Compress, Compressed, ErrorKind, Group, Node, Registry, Storage, Target};

type Matrix = Array2<f64>;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Inputs whose channels depend on each other and differ in size.
fn stream(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
    let raw = random(tokens, channels, seed);
    Array2::from_shape_fn((tokens, channels), |(t, c)| {
        let size = (((c * 7) % 13) as f32 / 4.0 - 1.5).exp2();
        size * (raw[[t, c]] + 0.6 * raw[[t, (c + 1) % channels]] + 0.3 * raw[[t, c / 2]])
    })
}

fn second_moments(x: &Array2<f32>) -> Matrix {
    let x = x.mapv(f64::from);
    x.t().dot(&x) / x.nrows() as f64
}

fn compress(
    method: Qtip,
    weight: &Array2<f32>,
    inputs: Option<&Array2<f32>>,
    par: Par,
) -> Compressed {
    let calibration = match inputs {
        Some(x) => Calibration::from_samples(x.clone(), Par::Seq),
        None => Calibration::none(weight.ncols()),
    };
    let mut group = Group::single(Target::new("w", weight.view()), calibration);
    group.par = par;
    group.seed = 7;
    method.compress_group(group).unwrap().layers.remove(0)
}

fn loss(node: &dyn Node, weight: &Array2<f32>, inputs: &Array2<f32>) -> f64 {
    let error = (decode(node).unwrap() - weight).mapv(f64::from);
    (error.dot(&second_moments(inputs)) * &error).sum()
}

fn plain() -> Qtip {
    Qtip::default().with_rotate(None)
}

/// A⁻¹, by elimination.
fn inverse(a: &Matrix) -> Matrix {
    let n = a.nrows();
    let (mut a, mut x) = (a.clone(), Matrix::eye(n));
    for k in 0..n {
        let pivot = a[[k, k]];
        for j in 0..n {
            a[[k, j]] /= pivot;
            x[[k, j]] /= pivot;
        }
        for i in (0..n).filter(|i| *i != k) {
            let factor = a[[i, k]];
            for j in 0..n {
                a[[i, j]] -= factor * a[[k, j]];
                x[[i, j]] -= factor * x[[k, j]];
            }
        }
    }
    x
}

/// The targets by another way than a factor: a block makes good for the errors E before it by least squares over all that is
/// still to come, min |E A[..k, ..] + F A[k.., ..]| over F, whose first columns are what is added to the block.
#[test]
fn each_block_makes_good_for_those_before() {
    let (rows, cols) = (21, 53);
    let (weight, inputs) = (random(rows, cols, 1), stream(300, cols, 2));
    let mut a = second_moments(&inputs);
    let mut diagonal = a.diag().to_vec();
    diagonal.sort_by(f64::total_cmp);
    let floor = 1e-4 * diagonal[(cols - 1) / 2];
    a.diag_mut().mapv_inplace(|v| v * 1.01 + floor);
    for bits in [1, 3, 5] {
        let made = compress(Qtip::bits(bits).with_rotate(None), &weight, Some(&inputs), Par::Seq);
        assert_eq!(made.fallback, None);
        let node = as_node::<BitshiftTrellis>(&made.node).unwrap();
        let scales = node.beside().unwrap()[0].to_vec();
        let decoded = decode(node).unwrap();
        let error = (&decoded - &weight).mapv(f64::from);
        for from in (0..cols).step_by(16) {
            let to = cols.min(from + 16);
            let rest = inverse(&a.slice(s![from.., from..]).to_owned());
            let fed = error.slice(s![.., ..from]).dot(&a.slice(s![..from, from..])).dot(&rest);
            let (mut ours, mut best) = (0.0, 0.0);
            for band in (0..rows).step_by(16) {
                let mut units = [0.0f32; 256];
                for r in band..rows.min(band + 16) {
                    for c in from..to {
                        let target = f64::from(weight[[r, c]]) - fed[[r, c - from]];
                        let step = f64::from(scales[r]) / 147.7;
                        units[(r - band) * 16 + c - from] = (target / step) as f32;
                        ours += ((f64::from(decoded[[r, c]]) - target) / step).powi(2);
                    }
                }
                let (mut codes, mut values) = ([0; 256], [0; 256]);
                trellis_encode(bits.into(), &units, &mut codes, Par::Seq);
                trellis_values(&codes, bits.into(), &mut values);
                for r in 0..rows.min(band + 16) - band {
                    for c in 0..to - from {
                        best +=
                            (f64::from(values[r * 16 + c]) - f64::from(units[r * 16 + c])).powi(2);
                    }
                }
            }
            assert!((ours / best - 1.0).abs() < 0.02, "{bits} bits at {from}: {ours} {best}");
        }
    }
}

#[test]
fn feedback_and_rotations_pay() {
    let (mut weight, inputs) = (random(64, 96, 3), stream(500, 96, 4));
    // Outliers, which fixed bits cannot follow.
    weight
        .indexed_iter_mut()
        .for_each(|((r, c), w)| *w *= if (r * 5 + c * 3) % 61 == 0 { 8.0 } else { 1.0 });
    let loss = |method: Qtip, fed: bool| {
        let made = compress(method, &weight, fed.then_some(&inputs), Par::Rayon);
        assert_eq!(made.fallback.is_none(), fed);
        loss(&*made.node, &weight, &inputs)
    };
    let energy =
        (weight.mapv(f64::from).dot(&second_moments(&inputs)) * weight.mapv(f64::from)).sum();
    for bits in [2, 3] {
        let method = Qtip::bits(bits);
        let (both, unfed) = (loss(method, true), loss(method, false));
        let unrotated = loss(method.with_rotate(None), true);
        println!(
            "{bits} bits: {} of the energy, {} unfed, {} unrotated",
            both / energy,
            unfed / energy,
            unrotated / energy
        );
        assert!(both < 0.9 * unfed && both < 0.9 * unrotated);
        assert!(loss(method.with_rotate(Some(Sides::In)), true) < unrotated);
    }
}

/// Of normal weights without statistics, what is lost is what the paths lose.
#[test]
fn distortion_of_normal_weights() {
    let weight = random(64, 64, 5) * 0.02;
    let energy: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    for (bits, bar) in [(1, 0.29), (2, 0.075), (3, 0.0195), (4, 0.0051), (6, 0.0005), (8, 0.00006)]
    {
        for method in [Qtip::bits(bits), Qtip::bits(bits).with_rotate(None)] {
            let made = compress(method, &weight, None, Par::Rayon);
            let error = decode(&*made.node).unwrap() - &weight;
            let lost = error.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>() / energy;
            println!("{bits} bits: {lost}");
            assert!(lost < bar, "{bits} bits: {lost}");
        }
    }
}

#[test]
fn bits_are_those_asked_for() {
    let made = compress(Qtip::bits(3), &random(48, 64, 6), None, Par::Seq);
    let signs = 48 + 64;
    // 48 = 4 x 12 and 64 are sides of Hadamard matrices: nothing else is stored.
    assert_eq!(Storage::of(&*made.node).unwrap().bits(), 48 * 64 * 3 + 16 + signs);
    let made = compress(plain(), &random(17, 33, 6), None, Par::Seq);
    assert_eq!(Storage::of(&*made.node).unwrap().bits(), 32 * 48 * 3 + 17 * 16);
}

#[test]
fn nodes_obey_the_laws() {
    for [rows, cols] in [[0, 8], [8, 0], [1, 1], [3, 7], [17, 33], [5, 270]] {
        let (weight, inputs) = (random(rows, cols, 8), stream(cols + 2, cols, 9));
        for bits in [1, 3, 8] {
            for rotate in [None, Some(Sides::In), Some(Sides::Out), Some(Sides::Both)] {
                if bits != 3 && matches!(rotate, Some(Sides::In | Sides::Out)) {
                    continue;
                }
                let method = Qtip::bits(bits).with_rotate(rotate);
                let made = compress(method, &weight, Some(&inputs), Par::Seq);
                assert!(decode(&*made.node).unwrap().iter().all(|w| w.is_finite()));
                check_node(made.node, &Registry::default(), 1e-4);
            }
        }
    }
    let made = compress(Qtip::bits(2), &random(18, 20, 8), None, Par::Seq);
    check_damage(&made.node, &Registry::default());
}

/// Planes that are not packed decode to the same bits.
#[test]
fn other_planes_decode_to_the_same() {
    let made = compress(plain(), &random(37, 50, 10), None, Par::Seq);
    let expected = decode(&*made.node).unwrap();
    let unpacked = made.node.map_planes(&mut |plane| {
        if plane.alphabet() != 8 {
            // Bytes of the scales.
            return Ok(plane);
        }
        let mut buffer = tensorpress_tensor::node::SymbolBuf::of(&*plane);
        let symbols = buffer.read(&*plane, 0..plane.rows())?;
        let codes: Vec<u8> = symbols.iter().map(|s| s as u8).collect();
        let cols = codes.len() / plane.rows();
        Ok(Box::new(Unpacked(PackedPlane::pack(&codes, plane.rows(), cols, 3)?)))
    });
    let unpacked = unpacked.unwrap();
    assert_eq!(unpacked.multiply(), tensorpress_tensor::node::Multiply::Decode);
    let got = decode(&*unpacked).unwrap();
    assert!(got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
    let mut part = Array2::zeros((20, 50));
    let accum = tensorpress_tensor::Accum::Add;
    unpacked.decode_rows(9..29, part.view_mut(), accum, &mut Default::default()).unwrap();
    assert_eq!(part, expected.slice(s![9..29, ..]));
}

/// A plane that does not say that it is packed.
#[derive(Debug)]
struct Unpacked(PackedPlane);

impl tensorpress_tensor::node::Plane for Unpacked {
    fn alphabet(&self) -> u32 {
        self.0.alphabet()
    }
    fn rows(&self) -> usize {
        self.0.rows()
    }
    fn len(&self, rows: std::ops::Range<usize>) -> usize {
        self.0.len(rows)
    }
    fn read(
        &self,
        rows: std::ops::Range<usize>,
        out: tensorpress_tensor::node::SymbolsMut<'_>,
    ) -> tensorpress_tensor::Result<()> {
        self.0.read(rows, out)
    }
    fn describe(&self) -> tensorpress_tensor::node::Json {
        self.0.describe()
    }
    fn parts(
        &self,
        prefix: &str,
        kind: tensorpress_tensor::PartKind,
        sink: &mut dyn tensorpress_tensor::storage::PartSink,
    ) -> tensorpress_tensor::Result<()> {
        self.0.parts(prefix, kind, sink)
    }
    fn map_inner(
        self: Box<Self>,
        _: &mut tensorpress_tensor::node::PlaneMap<'_>,
    ) -> tensorpress_tensor::Result<Box<dyn tensorpress_tensor::node::Plane>> {
        Ok(self)
    }
}

#[test]
fn threads_and_groups_change_nothing() {
    let (weight, inputs) = (random(50, 60, 11), stream(200, 60, 12));
    let one = compress(Qtip::bits(2), &weight, Some(&inputs), Par::Seq);
    let two = compress(Qtip::bits(2), &weight, Some(&inputs), Par::Threads(2));
    assert_eq!(decode(&*one.node).unwrap(), decode(&*two.node).unwrap());
    assert!(as_node::<Transformed>(&one.node).is_some());
}

#[test]
fn bad_input_is_refused_or_survived() {
    let weight = random(20, 24, 13);
    let kind = |method: Qtip, weight: &Array2<f32>| {
        let made = method.compress(weight.view(), &Calibration::none(weight.ncols()));
        made.map(|_| ()).unwrap_err().kind()
    };
    assert_eq!(kind(Qtip::bits(0), &weight), ErrorKind::InvalidArgument);
    assert_eq!(kind(Qtip::bits(9), &weight), ErrorKind::InvalidArgument);
    assert_eq!(kind(Qtip::default().with_damp(f32::NAN), &weight), ErrorKind::InvalidArgument);
    assert_eq!(kind(Qtip::default().with_damp(-1.0), &weight), ErrorKind::InvalidArgument);
    assert_eq!(kind(Qtip::default().with_block(7), &weight), ErrorKind::InvalidArgument);
    let mut odd = weight.clone();
    odd[[3, 4]] = f32::NAN;
    assert_eq!(kind(Qtip::default(), &odd), ErrorKind::Numerical);
    // Rotated, these are none of f32.
    let most = Array2::from_elem((20, 24), f32::MAX);
    assert_eq!(kind(Qtip::default(), &most), ErrorKind::Numerical);
    let made = compress(plain(), &most, None, Par::Seq);
    assert!(decode(&*made.node).unwrap().iter().all(|w| w.is_finite()));
    let mask = Mask::from_bools(Array2::from_elem((20, 24), true).view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let made = Qtip::default().compress_group(Group::single(target, Calibration::none(24)));
    assert_eq!(made.unwrap_err().kind(), ErrorKind::Unsupported);

    // Weights of all sizes, rows of zeros, constants, single columns; statistics that say nothing.
    let zeros = Array2::<f32>::zeros((20, 24));
    let mut rows = weight.clone();
    rows.row_mut(3).fill(0.0);
    rows.row_mut(5).fill(1.0);
    let cases = [
        weight.mapv(|w| w * 1e-30),
        weight.mapv(|w| w * 1e-6),
        weight.mapv(|w| w * 1e34),
        rows,
        random(20, 1, 14),
        random(1, 24, 15),
    ];
    for method in [Qtip::bits(4), Qtip::bits(4).with_rotate(None)] {
        let made = compress(method, &zeros, None, Par::Seq);
        assert!(made.fallback.unwrap().contains("without feedback"));
        assert!(decode(&*made.node).unwrap().iter().all(|w| *w == 0.0));
        for weight in &cases {
            let cols = weight.ncols();
            for inputs in [
                stream(100, cols, 16),
                Array2::zeros((5, cols)),
                Array2::from_elem((5, cols), f32::NAN),
                Array2::ones((5, cols)),
            ] {
                let made = compress(method, weight, Some(&inputs), Par::Seq);
                let decoded = decode(&*made.node).unwrap();
                assert!(decoded.iter().all(|w| w.is_finite()));
                let size =
                    |m: &Array2<f32>| m.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                assert!(size(&(decoded - weight)) < 0.5 * size(weight), "{:?}", weight.dim());
            }
        }
    }
}
