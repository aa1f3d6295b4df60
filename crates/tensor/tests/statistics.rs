//! Statistics beyond those of the first methods, a user's own, and what a caller supplies.

use std::hash::Hasher;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use tensorpress_tensor::linalg::{Par, gaussian, matmul_tn};
use tensorpress_tensor::node::{Index, Map, Rotation, Scale, Side};
use tensorpress_tensor::stats::*;
use tensorpress_tensor::{DType, Error, ErrorKind, Result, Target, Usable, half};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn product(a: &Array2<f32>, b: &Array2<f32>) -> Array2<f64> {
    a.mapv(f64::from).t().dot(&b.mapv(f64::from))
}

fn assert_close(got: &Array2<f32>, want: &Array2<f64>) {
    assert_eq!(got.dim(), want.dim());
    let scale = want.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-5 * scale));
}

struct Streams {
    x: Array2<f32>,
    original: Array2<f32>,
    y: Array2<f32>,
    routes: Array2<u32>,
}

impl Streams {
    fn new(tokens: usize) -> Self {
        let x = random(tokens, 20, 1);
        let original = &x + &(random(tokens, 20, 2) * 0.1);
        let routes = Array2::from_shape_fn((tokens, 2), |(t, k)| ((t * 7 + k * 3) % 5) as u32);
        Self { x, original, y: random(tokens, 9, 3), routes }
    }

    fn feed(&self, collector: &mut Collector, rows: std::ops::Range<usize>, par: Par) {
        let rows = s![rows, ..];
        let batch = Batch::new(self.x.slice(rows))
            .with_original(self.original.slice(rows))
            .with_output(self.y.slice(rows))
            .with_routes(self.routes.slice(rows));
        collector.update_all(&batch, par);
    }
}

fn all() -> Needs {
    Needs::of::<CrossGram>()
        | Needs::of::<OutputGram>()
        | Needs::of::<TokenNorms>()
        | Needs::of::<RouteCounts>()
}

#[test]
fn new_statistics_stream_merge_and_keep_their_bytes() {
    let streams = Streams::new(700);
    let collect = |cuts: &[usize], par| {
        let mut collector = Collector::new(20, all(), 0);
        for cut in cuts.windows(2) {
            streams.feed(&mut collector, cut[0]..cut[1], par);
        }
        collector
    };
    let whole = collect(&[0, 700], Par::Seq).finish();
    assert_close(whole.get::<CrossGram>().unwrap(), &product(&streams.x, &streams.original));
    assert_close(whole.get::<OutputGram>().unwrap(), &product(&streams.y, &streams.y));
    let norms = whole.get::<TokenNorms>().unwrap();
    assert_eq!(norms.len(), 700);
    assert!((norms[3] - streams.x.row(3).dot(&streams.x.row(3)).sqrt()).abs() < 1e-4);
    let counts = whole.get::<RouteCounts>().unwrap();
    let seen = |e: u32| streams.routes.iter().filter(|r| **r == e).count() as u64;
    assert_eq!(counts, &(0..5).map(seen).collect::<Vec<_>>());
    for (cuts, par) in
        [(&[0, 1, 255, 256, 600, 700][..], Par::Threads(3)), (&[0, 512, 700], Par::Rayon)]
    {
        let pieces = collect(cuts, par).finish();
        assert_eq!(pieces.get::<CrossGram>().unwrap(), whole.get::<CrossGram>().unwrap());
        assert_eq!(pieces.get::<OutputGram>().unwrap(), whole.get::<OutputGram>().unwrap());
        assert_eq!(pieces.get::<TokenNorms>().unwrap(), norms);
        assert_eq!(pieces.get::<RouteCounts>().unwrap(), counts);
    }
    let mut merged = collect(&[0, 300], Par::Seq);
    merged.merge(collect(&[300, 700], Par::Seq));
    let merged = merged.finish();
    assert_close(merged.get::<CrossGram>().unwrap(), &product(&streams.x, &streams.original));
    assert_close(merged.get::<OutputGram>().unwrap(), &product(&streams.y, &streams.y));
    assert_eq!(merged.get::<TokenNorms>().unwrap(), norms);
    assert_eq!(merged.get::<RouteCounts>().unwrap(), counts);
}

#[test]
fn streams_that_are_not_there_are_missing() {
    let mut collector = Collector::new(20, all(), 0);
    collector.update(random(5, 20, 1).view(), Par::Seq);
    let calibration = collector.finish();
    let kinds = [
        calibration.get::<CrossGram>().unwrap_err().kind(),
        calibration.get::<OutputGram>().unwrap_err().kind(),
        calibration.get::<RouteCounts>().unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::MissingCalibration; 3]);
    assert!(calibration.get::<TokenNorms>().is_ok());
    assert!(all().reads(Stream::Original) && all().reads(Stream::Routes));
    assert!(!Needs::GRAM.reads(Stream::Original) && Needs::GRAM.reads(Stream::Input));
    let mut streams = Streams::new(10);
    streams.original[[4, 3]] = f32::NAN;
    let mut collector = Collector::new(20, all(), 0);
    streams.feed(&mut collector, 0..10, Par::Seq);
    let error = collector.finish().get::<CrossGram>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(
        error.message().contains("channel 3") && error.message().contains("token 4"),
        "{error}"
    );
}

#[test]
fn new_statistics_go_through_maps() {
    let streams = Streams::new(300);
    let mut collector = Collector::new(20, all(), 0);
    streams.feed(&mut collector, 0..300, Par::Seq);
    let whole = collector.finish();
    let map: Arc<dyn Map> = Arc::new(Rotation::new(20, 20, 3).unwrap());
    let mapped = whole.through(map.clone(), Side::In, Par::Seq).unwrap();
    let turn = |x: &Array2<f32>| map.inputs(x.view(), Par::Seq);
    let want = product(&turn(&streams.x), &turn(&streams.original));
    assert_close(mapped.get::<CrossGram>().unwrap(), &want);
    // Lengths stay under a rotation, and change under scales.
    assert_eq!(mapped.get::<TokenNorms>().unwrap(), whole.get::<TokenNorms>().unwrap());
    let scale: Arc<dyn Map> = Arc::new(Scale::new(vec![0.5; 20], DType::F32).unwrap());
    let scaled = whole.through(scale, Side::In, Par::Seq).unwrap();
    assert_eq!(scaled.get::<TokenNorms>().unwrap_err().kind(), ErrorKind::Numerical);
    let out: Arc<dyn Map> = Arc::new(Scale::new(vec![0.5; 9], DType::F32).unwrap());
    let behind = whole.through(out, Side::Out, Par::Seq).unwrap();
    let twice = &streams.y * 2.0;
    assert_close(behind.get::<OutputGram>().unwrap(), &product(&twice, &twice));
}

/// A user's own statistic: how many entries are negative.
#[derive(Debug, Clone)]
struct Negatives(u64);

impl Statistic for Negatives {
    type Value = u64;
    const WHAT: &'static str = "the count of negatives";

    fn begin(_: Ask) -> Self {
        Self(0)
    }
    fn update(&mut self, batch: &Batch<'_>, _: Par) {
        self.0 += batch.input.iter().filter(|v| **v < 0.0).count() as u64;
    }
    fn merge(&mut self, other: Self) {
        self.0 += other.0;
    }
    fn finish(self) -> Result<u64> {
        Ok(self.0)
    }
    fn through(_: &Arc<u64>, _: &Via<'_>) -> Usable<Arc<u64>> {
        Usable::no("signs do not go through maps")
    }
}

#[test]
fn a_statistic_of_ones_own_needs_no_list() {
    let x = random(50, 4, 8);
    let needs = Needs::of::<Negatives>() | Needs::GRAM;
    let mut collector = Collector::new(4, needs, 0);
    x.axis_chunks_iter(Axis(0), 7).for_each(|x| collector.update(x, Par::Seq));
    let mut calibration = collector.finish();
    let count = x.iter().filter(|v| **v < 0.0).count() as u64;
    assert_eq!(calibration.get::<Negatives>().unwrap(), &count);
    let map = Arc::new(Rotation::new(4, 4, 1).unwrap());
    let mapped = calibration.through(map, Side::In, Par::Seq).unwrap();
    assert_eq!(mapped.get::<Negatives>().unwrap_err().kind(), ErrorKind::Numerical);
    assert_eq!(calibration.take::<Negatives>().unwrap(), count);
    assert_eq!(calibration.take::<Negatives>().unwrap_err().kind(), ErrorKind::MissingCalibration);
}

#[test]
fn clones_share_and_the_last_holder_takes_without_a_copy() {
    let mut calibration = Calibration::of(random(9, 6, 1).view());
    let clone = calibration.clone();
    let at = clone.gram().unwrap().as_ptr();
    assert_eq!(calibration.gram().unwrap().as_ptr(), at, "shared");
    let copy = calibration.take_gram().unwrap();
    assert!(copy.as_ptr() != at && copy == *clone.gram().unwrap());
    let mut last = clone;
    assert_eq!(last.take_gram().unwrap().as_ptr(), at, "its own memory");
}

#[test]
fn calibration_of_views_and_slices() {
    let x = random(6, 4, 2);
    let wide = Calibration::of(x.view());
    let bf16 = x.mapv(half::bf16::from_f32);
    let narrow = Calibration::of(bf16.view());
    assert_eq!(narrow.samples().unwrap(), &bf16.mapv(half::bf16::to_f32));
    let f16 = x.mapv(half::f16::from_f32);
    let slice = Calibration::of_slice(f16.as_slice().unwrap(), 4).unwrap();
    assert_eq!((slice.tokens(), slice.channels()), (6, 4));
    assert_eq!(wide.moments().unwrap().tokens(), 6);
    let kind = |r: Result<Calibration>| r.unwrap_err().kind();
    assert_eq!(kind(Calibration::of_slice(&[1.0f32; 7], 4)), ErrorKind::ShapeMismatch);
    assert_eq!(kind(Calibration::of_slice::<f32>(&[], 0)), ErrorKind::InvalidArgument);
    let transposed = Calibration::of(x.t());
    assert_eq!(transposed.channels(), 6);
    let nan = Calibration::of(ArrayView2::from_shape((1, 2), &[1.0, f32::NAN]).unwrap());
    assert_eq!(nan.gram().unwrap_err().kind(), ErrorKind::Numerical);
}

/// Gradients of one matrix, and no others.
#[derive(Debug)]
struct Gradients(Array2<f32>);

impl Supplied for Gradients {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        match (supply, tensor) {
            (Supply::GRADIENT, "w") => Ok(Some(self.0.clone())),
            (Supply::FISHER, "w") => Ok(Some(self.0.mapv(|g| g * g))),
            (Supply::GRADIENT, "broken") => Err(Error::insufficient("no more")),
            _ => Ok(None),
        }
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        self.0.iter().for_each(|g| hash.write_u32(g.to_bits()));
        Ok(())
    }
}

#[test]
fn a_caller_supplies_gradients() {
    let (weight, gradient) = (random(6, 8, 1), random(6, 8, 2));
    let calibration = Calibration::none(8).with_supplied(Arc::new(Gradients(gradient.clone())));
    let target = Target::new("w", weight.view());
    let get = |c: &Calibration, supply| c.supplied(supply, &target, Par::Seq);
    assert_eq!(get(&calibration, Supply::GRADIENT).unwrap(), gradient);
    assert_eq!(get(&calibration, Supply::FISHER).unwrap(), gradient.mapv(|g| g * g));
    let own = Supply::new("curvature", Order::Second);
    assert_eq!(get(&calibration, own).unwrap_err().kind(), ErrorKind::MissingCalibration);
    let error = get(&Calibration::none(8), Supply::GRADIENT).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::MissingCalibration, Some("w")));
    let broken = Target::new("broken", weight.view());
    let error = calibration.supplied(Supply::GRADIENT, &broken, Par::Seq).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InsufficientData);

    // L(A T) changes with A as <dL/dW, dA T>: through any map, D Tᵀ.
    let map: Arc<dyn Map> = Arc::new(Rotation::new(8, 8, 1).unwrap());
    let mapped = calibration.through(map.clone(), Side::In, Par::Seq).unwrap();
    let got = get(&mapped, Supply::GRADIENT).unwrap();
    let step = random(6, 8, 3);
    let mut outer = Array2::zeros((6, 8));
    map.apply(step.view(), outer.view_mut());
    let (inside, outside) = ((&got * &step).sum(), (&gradient * &outer).sum());
    assert!((inside - outside).abs() < 1e-4, "{inside} {outside}");
    assert_eq!(get(&mapped, Supply::FISHER).unwrap_err().kind(), ErrorKind::Numerical);
    let scale: Arc<dyn Map> = Arc::new(Scale::new(vec![0.5; 8], DType::F32).unwrap());
    let scaled = calibration.through(scale, Side::In, Par::Seq).unwrap();
    assert_eq!(get(&scaled, Supply::FISHER).unwrap(), gradient.mapv(|g| g * g * 0.25));
    let needs = Needs::GRAM | Needs::supplied(Supply::FISHER);
    assert_eq!(needs.of_caller(), [Supply::FISHER]);
    assert!(Needs::supplied(Supply::FISHER).is_none());
}

/// Knows what errors in outputs cost.
#[derive(Debug)]
struct OfOutputs(Array2<f32>);

impl Supplied for OfOutputs {
    fn of_weights(&self, supply: Supply, _: &str) -> Result<Option<Array2<f32>>> {
        Ok((supply == Supply::OUTPUT_FISHER).then(|| self.0.clone()))
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        self.0.iter().for_each(|g| hash.write_u32(g.to_bits()));
        Ok(())
    }
}

/// With W = Tᵀ A the outputs of A have the gradients T g: whatever the map, the mean of their squares is T G Tᵀ.
#[test]
fn what_outputs_cost_goes_through_maps() {
    let (out, inp, tokens) = (6, 4, 50);
    let weight = random(out, inp, 1);
    let gradients = random(tokens, out, 2);
    let mut fisher = Array2::zeros((out, out));
    matmul_tn(gradients.view(), gradients.view(), fisher.view_mut(), false, Par::Seq);
    let diagonal = fisher.diag().to_owned().insert_axis(Axis(0));
    let target = Target::new("w", weight.view());
    let get = |c: &Calibration| c.supplied(Supply::OUTPUT_FISHER, &target, Par::Seq);
    let whole = Calibration::none(inp).with_supplied(Arc::new(OfOutputs(fisher.clone())));
    let narrow = Calibration::none(inp).with_supplied(Arc::new(OfOutputs(diagonal.clone())));
    assert_eq!((get(&whole).unwrap(), get(&narrow).unwrap()), (fisher.clone(), diagonal.clone()));

    let rotation = || -> Arc<dyn Map> { Arc::new(Rotation::new(out, out, 1).unwrap()) };
    let mapped = get(&whole.through(rotation(), Side::Out, Par::Seq).unwrap()).unwrap();
    let mut inner = Array2::zeros((tokens, out));
    rotation().apply_transposed(gradients.view(), inner.view_mut());
    let mut expected = Array2::<f32>::zeros((out, out));
    matmul_tn(inner.view(), inner.view(), expected.view_mut(), false, Par::Seq);
    for ((at, a), b) in mapped.indexed_iter().zip(&expected) {
        assert!((a - b).abs() < 1e-4, "{at:?}: {a} {b}");
        assert_eq!(*a, mapped[[at.1, at.0]]);
    }
    let mixed = get(&narrow.through(rotation(), Side::Out, Par::Seq).unwrap()).unwrap_err();
    assert_eq!((mixed.kind(), mixed.tensor()), (ErrorKind::Numerical, Some("w")));
    // Maps on inputs change nothing.
    let turn: Arc<dyn Map> = Arc::new(Rotation::new(inp, inp, 1).unwrap());
    assert_eq!(get(&whole.through(turn, Side::In, Par::Seq).unwrap()).unwrap(), fisher);

    let scale: Arc<dyn Map> = Arc::new(Scale::new(vec![0.5; out], DType::F32).unwrap());
    let scaled = narrow.through(scale.clone(), Side::Out, Par::Seq).unwrap();
    assert_eq!(get(&scaled).unwrap(), diagonal.mapv(|g| g * 0.25));
    let scaled = whole.through(scale, Side::Out, Par::Seq).unwrap();
    assert_eq!(get(&scaled).unwrap(), fisher.mapv(|g| g * 0.25));
    let order = [3u32, 0, 5, 1, 4, 2];
    let moved: Arc<dyn Map> = Arc::new(Index::new(order.into(), out).unwrap());
    let moved = get(&narrow.through(moved, Side::Out, Par::Seq).unwrap()).unwrap();
    assert!(order.iter().zip(&moved).all(|(from, g)| *g == diagonal[[0, *from as usize]]));

    let wrong = Calibration::none(inp).with_supplied(Arc::new(OfOutputs(random(out, inp, 1))));
    assert_eq!(get(&wrong).unwrap_err().kind(), ErrorKind::ShapeMismatch);
}

/// Knows a Gram matrix for each of three groups of rows.
#[derive(Debug)]
struct OfInputs(Array2<f32>);

impl Supplied for OfInputs {
    fn of_weights(&self, supply: Supply, _: &str) -> Result<Option<Array2<f32>>> {
        Ok((supply == Supply::guided_gram(3)).then(|| self.0.clone()))
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        self.0.iter().for_each(|g| hash.write_u32(g.to_bits()));
        Ok(())
    }
}

/// With W = A T the inputs of A are T x: each group's matrix becomes that of these.
#[test]
fn weighted_gram_matrices_go_through_maps_on_inputs() {
    let (out, inp, tokens) = (7, 6, 40);
    let weight = random(out, inp, 1);
    let target = Target::new("w", weight.view());
    let supply = Supply::guided_gram(3);
    let streams: Vec<Array2<f32>> = (2..5).map(|seed| random(tokens, inp, seed)).collect();
    let stack = |streams: &[Array2<f32>]| {
        let grams: Vec<_> = streams
            .iter()
            .map(|x| Calibration::from_samples(x.clone(), Par::Seq).gram().unwrap().clone())
            .collect();
        let views: Vec<_> = grams.iter().map(|gram| gram.view()).collect();
        concatenate(Axis(0), &views).unwrap()
    };
    let supplied = Calibration::none(inp).with_supplied(Arc::new(OfInputs(stack(&streams))));
    let get = |c: &Calibration, target: &Target<'_>| c.supplied(supply, target, Par::Seq);
    assert_eq!(get(&supplied, &target).unwrap(), stack(&streams));
    let maps: [Arc<dyn Map>; 4] = [
        Arc::new(Rotation::new(inp, inp, 1).unwrap()),
        Arc::new(Scale::new(vec![0.5, 2.0, 1.0, 4.0, 0.25, 1.0], DType::F32).unwrap()),
        Arc::new(Index::new(vec![3, 0, 5, 1, 4, 2], inp).unwrap()),
        Arc::new(Index::new(vec![5, 2], inp).unwrap()),
    ];
    for map in maps {
        let inner: Vec<Array2<f32>> =
            streams.iter().map(|x| map.inputs(x.view(), Par::Seq)).collect();
        let expected = stack(&inner);
        let narrow = random(out, map.inner(), 1);
        let target = Target::new("w", narrow.view());
        let mapped = supplied.through(map.clone(), Side::In, Par::Seq).unwrap();
        let mapped = get(&mapped, &target).unwrap();
        assert_eq!(mapped.dim(), expected.dim());
        for ((at, a), b) in mapped.indexed_iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{map:?} at {at:?}: {a} {b}");
        }
    }
    // What the groups are of changes with the outputs.
    let turned: Arc<dyn Map> = Arc::new(Index::new((0..7).rev().collect(), out).unwrap());
    let behind = supplied.through(turned, Side::Out, Par::Seq).unwrap();
    let refused = get(&behind, &target).unwrap_err();
    assert_eq!((refused.kind(), refused.tensor()), (ErrorKind::Numerical, Some("w")));
    // Of other groups, or of other inputs.
    let other = supplied.supplied(Supply::guided_gram(2), &target, Par::Seq).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::MissingCalibration);
    let few = random(2, inp, 1);
    let wrong = get(&supplied, &Target::new("few", few.view())).unwrap_err();
    assert_eq!((wrong.kind(), wrong.tensor()), (ErrorKind::ShapeMismatch, Some("few")));
}

#[test]
fn rows_are_cut_into_groups_as_even_as_can_be() {
    let cut =
        |groups: usize, out: usize| -> Vec<_> { Supply::guided_gram(groups).rows(out).collect() };
    assert_eq!(cut(4, 10), [0..2, 2..5, 5..7, 7..10]);
    assert_eq!(cut(4, 3), [0..1, 1..2, 2..3]);
    for (groups, out) in [(1, 5), (4, 0)] {
        let cut = cut(groups, out);
        assert_eq!((cut.len(), cut[0].clone()), (1, 0..out));
    }
    for (groups, out) in [(3, 100), (64, 65), (7, 7)] {
        let cut = cut(groups, out);
        assert_eq!(cut.len(), groups);
        let sizes = cut.iter().map(ExactSizeIterator::len);
        assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start) && cut[0].start == 0);
        assert_eq!(cut[groups - 1].end, out);
    }
}
