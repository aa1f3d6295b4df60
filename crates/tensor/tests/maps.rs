//! Maps on one side of a node: rotations of any size, bands, and groups carried through.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use tensorpress_tensor::Checkpoint;
use tensorpress_tensor::carry::{Keep, carry, carry_out};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::linalg::{Par, gaussian, hadamard_matrix};
use tensorpress_tensor::node::{
    Accum, Dense, GroupedAffine, Hadamard, Index, Json, Map, Mask, PlaneMap, Rotation, Scale, Side,
    Transformed, decode,
};
use tensorpress_tensor::stats::{Calibration, Needs, OutputGram};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, DType, Error, ErrorKind, Group, Method, Node, PartSink,
    Registry, Result, Scratch, Target,
};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// T itself, by sending unit vectors through.
fn matrix(map: &dyn Map) -> Array2<f32> {
    let mut t = Array2::zeros((map.inner(), map.outer()));
    map.apply(Array2::eye(map.inner()).view(), t.view_mut());
    t
}

fn largest_difference(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn paley_matrices_are_hadamard_matrices() {
    for order in [12usize, 20, 24, 28, 36, 44, 60, 68, 76, 84, 108, 140, 148] {
        let h = hadamard_matrix(order).unwrap_or_else(|| panic!("order {order}"));
        assert!(h.iter().all(|v| v.abs() == 1.0), "{order}");
        assert_eq!(h.dot(&h.t()), Array2::<f32>::eye(order) * order as f32, "{order}");
    }
    for none in [0, 1, 2, 3, 6, 18, 40, 92] {
        assert!(hadamard_matrix(none).is_none(), "{none}");
    }
}

#[test]
fn rotations_of_any_size_are_orthogonal() {
    for (size, block, flat) in [
        (1, 1, true),
        (2, 2, true),
        (64, 64, true),
        (576, 576, true),
        (1536, 1536, true),
        (1536, 512, true),
        (896, 896, true),
        (9, 9, false),
        (43 * 8, 43 * 8, false),
        (30, 10, false),
    ] {
        let rotation = Rotation::new(size, block, 11).unwrap();
        let t = matrix(&rotation);
        let error = largest_difference(t.dot(&t.t()).view(), Array2::eye(size).view());
        assert!(error < 3e-6, "{size}: {error}");
        if flat {
            // A Hadamard matrix: every entry of a block has one size.
            let unit = (block as f32).sqrt().recip();
            let within = |(i, j): (usize, usize)| i / block == j / block;
            let bad = t
                .indexed_iter()
                .find(|(at, v)| (v.abs() - if within(*at) { unit } else { 0.0 }).abs() > 1e-6);
            assert!(bad.is_none(), "{size}, {block}: {bad:?}");
        }
        assert_eq!(rotation, Rotation::new(size, block, 11).unwrap());
        if size > 8 {
            assert_ne!(rotation, Rotation::new(size, block, 12).unwrap());
        }
        let x = random(5, size, 1);
        let (mut there, mut back) = (Array2::zeros(x.dim()), Array2::zeros(x.dim()));
        rotation.apply(x.view(), there.view_mut());
        rotation.invert(there.view(), back.view_mut());
        assert!(largest_difference(back.view(), x.view()) < 1e-5, "{size}");
    }
    assert_eq!(Rotation::largest_block(576), 576);
    assert_eq!(Rotation::largest_block(11008), 11008);
    assert_eq!(Rotation::largest_block(2 * 4099), 2);
    let kind = |r: Result<Rotation>| r.unwrap_err().kind();
    assert_eq!(kind(Rotation::new(12, 8, 0)), ErrorKind::InvalidArgument);
    assert_eq!(kind(Rotation::new(12, 0, 0)), ErrorKind::InvalidArgument);
    assert_eq!(kind(Rotation::new(4099, 4099, 0)), ErrorKind::Unsupported);
}

/// What all channels have in common goes to all of the inner ones: signs come first on the way there.
#[test]
fn rotations_spread_what_channels_have_in_common() {
    for (size, block) in [(576, 576), (1536, 1536), (1536, 512), (896, 896), (11008, 11008)] {
        let rotation = Rotation::new(size, block, 3).unwrap();
        // As many directions as outliers had in one channel: equal entries, and the rows of T without signs among them.
        let patterns =
            [|_: usize| 1.0f32, |i| if i % 2 == 0 { 1.0 } else { -1.0 }, |i| (i % 4) as f32];
        for pattern in patterns {
            let outer = Array2::from_shape_fn((1, size), |(_, i)| pattern(i));
            let mut inner = Array2::zeros((1, size));
            rotation.apply_transposed(outer.view(), inner.view_mut());
            let mean = (outer.iter().map(|v| v * v).sum::<f32>() / size as f32).sqrt();
            let largest = inner.iter().fold(0.0f32, |most, v| most.max(v.abs())) / mean;
            assert!(largest < 6.0, "{size}, {block}: {largest} times the mean in one channel");
        }
    }
}

/// Files of before have the signs on the other side, and decode to what they did.
#[test]
fn rotations_of_older_files_are_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.safetensors");
    for (size, block) in [(24usize, 24usize), (43 * 4, 43 * 4), (64, 16)] {
        let rotation = Rotation::new(size, block, 9).unwrap();
        let new = matrix(&rotation);
        let a = random(size, 5, 4);
        let inner = Dense::from_f32(a.view(), DType::F32).unwrap().boxed();
        let node = Transformed::new(Side::Out, Arc::new(rotation), inner).unwrap();
        let tree = node.describe().to_string().replace("rotation.v2", "rotation");
        let tree: Json = serde_json::from_str(&tree).unwrap();
        write_shard(&path, &BTreeMap::new(), &mut |sink| node.parts("w", sink)).unwrap();
        let file = Checkpoint::open(&path).unwrap();
        let signs = file.tensor("w.transform").unwrap();
        let negative = |i: usize| signs.bytes()[i / 8] >> (i % 8) & 1 == 1;
        let sign = |i: usize| if negative(i) { -1.0f32 } else { 1.0 };
        // The signs of the columns are taken off, and put on the rows.
        let old = Array2::from_shape_fn((size, size), |(i, j)| sign(i) * new[[i, j]] * sign(j));
        let read = Registry::default().read(&tree, "w", &file).unwrap();
        let w = decode(&*read).unwrap();
        assert!(largest_difference(w.view(), old.t().dot(&a).view()) < 1e-5, "{size}");
        assert_eq!(read.describe(), tree, "and are written again as they are");
        let x = random(3, 5, 6);
        let mut product = Array2::zeros((3, size));
        let mut scratch = Scratch::default();
        read.matmul(x.view(), product.view_mut(), Accum::Replace, &mut scratch).unwrap();
        assert!(largest_difference(product.view(), x.dot(&w.t()).view()) < 1e-4, "{size}");
    }
}

/// A dense node that counts the rows it decodes.
#[derive(Debug)]
struct Counting {
    inner: Dense,
    decoded: Arc<AtomicUsize>,
}

impl Node for Counting {
    fn shape(&self) -> [usize; 2] {
        self.inner.shape()
    }
    fn decode_rows(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.decoded.fetch_add(rows.len(), Ordering::Relaxed);
        self.inner.decode_rows(rows, out, accum, scratch)
    }
    fn describe(&self) -> Json {
        self.inner.describe()
    }
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.inner.parts(prefix, sink)
    }
    fn map_planes(self: Box<Self>, _: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
}

#[test]
fn a_decode_decodes_each_inner_row_once() {
    let weight = random(96, 700, 3);
    let maps: Vec<Arc<dyn Map>> = vec![
        Arc::new(Rotation::new(96, 96, 1).unwrap()),
        Arc::new(Rotation::new(96, 32, 1).unwrap()),
        Arc::new(Hadamard::new(96, 32, vec![0x5a; 12]).unwrap()),
        Arc::new(Scale::new(vec![2.0; 96], DType::F32).unwrap()),
        Arc::new(Index::new((0..96).rev().collect(), 96).unwrap()),
    ];
    for map in maps {
        let decoded = Arc::new(AtomicUsize::new(0));
        let inner = Dense::from_f32(weight.view(), DType::F32).unwrap();
        let node = Counting { inner, decoded: decoded.clone() };
        let expected = matrix(&*map).t().dot(&weight);
        let node = Transformed::new(Side::Out, map, node.boxed()).unwrap();
        let w = decode(&node).unwrap();
        assert_eq!(decoded.load(Ordering::Relaxed), 96, "{node:?}");
        assert!(largest_difference(w.view(), expected.view()) < 1e-5);
    }
}

/// Bands that no cache holds are decoded in strips of columns: by kernels from packed codes, else out of the whole band.
#[test]
fn strips_of_columns_give_the_same_bits_however_cut_and_stored() {
    let (rows, cols) = (1536usize, 901usize);
    let codes: Vec<u8> = (0..rows * cols).map(|i| ((i * 2_654_435_761) >> 9) as u8 % 16).collect();
    let scales: Vec<f32> = (0..rows * cols.div_ceil(64)).map(|i| 0.1 + (i % 7) as f32).collect();
    let packed = || {
        let scales = scales.clone();
        GroupedAffine::from_codes([rows, cols], 4, 64, &codes, scales, DType::F32, &[7]).unwrap()
    };
    let plain = decode(&packed()).unwrap();
    for block in [512, 768, 1536] {
        let map: Arc<dyn Map> = Arc::new(Rotation::new(rows, block, 5).unwrap());
        let node = Transformed::new(Side::Out, map.clone(), packed().boxed()).unwrap();
        let w = decode(&node).unwrap();
        let mut expected = Array2::zeros((cols, rows));
        map.apply(plain.t().as_standard_layout().view(), expected.view_mut());
        let largest = plain.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(largest_difference(w.view(), expected.t()) < 1e-5 * largest, "{block}");
        let dense = Dense::from_f32(plain.view(), DType::F32).unwrap().boxed();
        let dense = Transformed::new(Side::Out, map, dense).unwrap();
        assert_eq!(decode(&dense).unwrap(), w, "{block}");
        for range in [0..1, 500..530, 511..1536, 512..1024] {
            let mut some = Array2::zeros((range.len(), cols));
            let mut scratch = Scratch::default();
            node.decode_rows(range.clone(), some.view_mut(), Accum::Replace, &mut scratch).unwrap();
            assert_eq!(some, w.slice(s![range, ..]), "{block}");
            let mut columns = Array2::zeros((cols, some.nrows()));
            // Rows whose values do not lie side by side.
            let first = w.nrows() - some.nrows();
            node.decode_rows(
                first..rows,
                columns.view_mut().reversed_axes(),
                Accum::Replace,
                &mut scratch,
            )
            .unwrap();
            assert_eq!(columns.t(), w.slice(s![first.., ..]), "{block}");
        }
    }
}

/// Rows of an out-side Hadamard of the first files: sums in the order of the inner rows, to the last bit.
#[test]
fn hadamards_of_old_files_sum_in_order() {
    let (size, block) = (24usize, 8usize);
    let (weight, signs) = (random(size, 10, 9), vec![0x93u8, 0x4c, 0xe1]);
    let map = Arc::new(Hadamard::new(size, block, signs.clone()).unwrap());
    let inner = Dense::from_f32(weight.view(), DType::F32).unwrap().boxed();
    let w = decode(&Transformed::new(Side::Out, map, inner).unwrap()).unwrap();
    let unit = (block as f64).sqrt().recip() as f32;
    for row in 0..size {
        for col in 0..10 {
            let mut sum = 0.0f32;
            for i in row / block * block..row / block * block + block {
                let parity = ((i % block) & (row % block)).count_ones() & 1 == 1;
                let negative = parity != (signs[i / 8] >> (i % 8) & 1 == 1);
                sum += if negative { -unit } else { unit } * weight[[i, col]];
            }
            assert_eq!(w[[row, col]].to_bits(), sum.to_bits(), "[{row}, {col}]");
        }
    }
}

#[test]
fn statistics_go_through_maps() {
    let x = random(300, 36, 5);
    let whole = Calibration::from_samples(x.clone(), Par::Seq);
    let maps: Vec<Arc<dyn Map>> = vec![
        Arc::new(Rotation::new(36, 36, 4).unwrap()),
        Arc::new(Scale::new((1..37).map(|i| i as f32 / 8.0).collect(), DType::F32).unwrap()),
        Arc::new(Index::new((0..36).rev().collect(), 36).unwrap()),
    ];
    for map in maps {
        let mapped = whole.through(map.clone(), Side::In, Par::Seq).unwrap();
        let rotated = x.dot(&matrix(&*map).t());
        let expected = Calibration::from_samples(rotated.clone(), Par::Seq);
        let (got, want) = (mapped.gram().unwrap(), expected.gram().unwrap());
        let scale = want.diag().iter().fold(0.0f32, |a, b| a.max(*b));
        assert!(largest_difference(got.view(), want.view()) < 1e-5 * scale);
        assert_eq!(got, got.t());
        assert!(largest_difference(mapped.samples().unwrap().view(), rotated.view()) < 1e-4);
        // All rows are the sample here, so even moments that do not go through are there.
        let (got, want) =
            (mapped.moments().unwrap().l2_norm(), expected.moments().unwrap().l2_norm());
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4 * b));
        let same = whole.through(map, Side::Out, Par::Seq).unwrap();
        assert_eq!(same.gram().unwrap(), whole.gram().unwrap());
    }
    let blind = Calibration::from_gram(whole.gram().unwrap().clone(), 300).unwrap();
    let other = Arc::new(Rotation::new(12, 12, 1).unwrap());
    assert_eq!(
        blind.through(other, Side::In, Par::Seq).unwrap_err().kind(),
        ErrorKind::ShapeMismatch
    );
}

/// Keeps what it gets, and says what it lost of the mean as a bias.
#[derive(Debug)]
struct Keeper;

impl Method for Keeper {
    fn id(&self) -> &'static str {
        "keeper"
    }
    fn needs(&self) -> Needs {
        Needs::GRAM
    }
}

impl Compress for Keeper {
    type Node = Dense;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Dense>> {
        let keep = |t: &Target<'_>| {
            let mut kept = Compressed::new(Dense::from_f32(t.kept_weight().view(), DType::F32)?);
            kept.bias = Some(t.weight.column(0).to_vec());
            Ok(kept)
        };
        assert!(group.calibration.gram().is_ok());
        Ok(CompressedGroup::new(group.targets.iter().map(keep).collect::<Result<_>>()?))
    }
}

#[test]
fn a_group_comes_back_as_it_went() {
    let weights = [random(20, 36, 1), random(12, 36, 2)];
    let calibration = Calibration::of(random(60, 36, 3).view());
    let targets = || vec![Target::new("a", weights[0].view()), Target::new("b", weights[1].view())];
    let group =
        || Group { targets: targets(), ..Group::single(targets()[0].clone(), calibration.clone()) };
    let map: Arc<dyn Map> = Arc::new(Rotation::new(36, 36, 1).unwrap());
    let there = carry(group(), &map, Keep::Stored, |group| Keeper.compress_group(group)).unwrap();
    for (layer, weight) in there.layers.iter().zip(&weights) {
        let back = decode(&*layer.node).unwrap();
        assert!(largest_difference(back.view(), weight.view()) < 1e-5);
    }
    let maps: Vec<Arc<dyn Map>> = vec![
        Arc::new(Rotation::new(20, 20, 1).unwrap()),
        Arc::new(Scale::new(vec![0.25; 12], DType::F32).unwrap()),
    ];
    let there = carry_out(group(), &maps, |group| Keeper.compress_group(group)).unwrap();
    for (layer, weight) in there.layers.iter().zip(&weights) {
        let back = decode(&*layer.node).unwrap();
        assert!(largest_difference(back.view(), weight.view()) < 1e-5);
        // The inner bias was column 0 of the inner weights: outside it is column 0 of the weights.
        let bias = layer.bias.as_ref().unwrap();
        assert!(bias.iter().zip(weight.column(0)).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    // Statistics of outputs belong to one matrix: of several, nobody knows whose they are.
    let known = calibration.clone().with::<OutputGram>(Array2::eye(20));
    let several = Group { calibration: known.clone(), ..group() };
    let single = Group::single(targets()[0].clone(), known);
    for (group, maps, kind) in
        [(several, &maps[..], Some(ErrorKind::Numerical)), (single, &maps[..1], None)]
    {
        carry_out(group, maps, |group| {
            let outputs = group.calibration.get::<OutputGram>();
            assert_eq!(outputs.as_ref().err().map(|e| e.kind()), kind, "{outputs:?}");
            let says = |e: &Error| e.message().contains("several matrices");
            assert!(outputs.err().is_none_or(|e| says(&e)));
            Keeper.compress_group(group)
        })
        .map(drop)
        .unwrap();
    }
    let mask = Mask::from_bools(weights[0].mapv(|v| v > 0.0).view());
    let masked = Target { mask: Some(&mask), ..Target::new("a", weights[0].view()) };
    let refused = Group::single(masked.clone(), calibration.clone());
    let error =
        carry(refused, &map, Keep::Stored, |group| Keeper.compress_group(group)).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("a")));
    let turned: Arc<dyn Map> = Arc::new(Index::new((0..36).rev().collect(), 36).unwrap());
    let moved = Group::single(masked, calibration.clone());
    let back = carry(moved, &turned, Keep::Stored, |group| {
        let moved = group.targets[0].mask.unwrap();
        assert!((0..36).all(|c| moved.keeps(3, c) == mask.keeps(3, 35 - c)));
        Keeper.compress_group(group)
    })
    .unwrap();
    assert_eq!(back.layers.len(), 1);
}
