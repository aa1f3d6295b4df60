//! What real models ask of attention, of every form, against plain loops in f64.

mod latent;
mod laws;
mod policies;
mod reader;
mod reference;

use ndarray::{Array3, s};
use tensorpress_kvcache::{
    Axis, Bias, Bitmap, Causal, HeadSlots, Int, KvShape, KvStore, Layer, Scoring, StoreForm,
};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{DType, Scratch, ndarray};

use reference::{Asked, OwnBias, near, reference};

const N: usize = 90;

fn forms() -> Vec<StoreForm> {
    let mut forms = [DType::F32, DType::F16, DType::BF16].map(StoreForm::Float).to_vec();
    for bits in [2, 4, 8] {
        for keys in [Axis::Channel, Axis::Token] {
            forms.push(StoreForm::Int(Int::new(bits).with_group(16).with_keys(keys)));
        }
    }
    forms.push(StoreForm::Int(Int::new(4).with_group(16).with_sliding(true).with_margin(8)));
    forms.push(StoreForm::Bitmap(Bitmap::new(0.6).with_window(20)));
    forms.push(StoreForm::Bitmap(Bitmap::new(0.5).with_value_group(24).with_window(20)));
    forms
}

/// Values narrower than keys, as wide and wider.
fn shapes() -> [KvShape; 3] {
    let shape = |h, k, d, v| KvShape::new(h, k, d).and_then(|s| s.with_value_dim(v));
    [(4, 2, 32, 32), (4, 1, 48, 16), (3, 3, 16, 64)]
        .map(|(h, k, d, v)| shape(h, k, d, v).expect("a shape"))
}

/// Each by itself, and all at once.
fn scorings(heads: usize) -> Vec<Scoring> {
    let plain = Scoring::default;
    let sinks: Vec<f32> = (0..heads).map(|h| 2.0 - h as f32).collect();
    let slopes: Vec<f32> = (0..heads).map(|h| 0.5f32.powi(h as i32)).collect();
    vec![
        plain(),
        plain().with_scale(0.31),
        plain().with_softcap(0.7),
        plain().with_chunk(32),
        plain().with_sinks(sinks.clone()),
        plain().with_slopes(slopes.clone()),
        plain()
            .with_scale(0.31)
            .with_softcap(2.0)
            .with_chunk(50)
            .with_sinks(sinks)
            .with_slopes(slopes),
    ]
}

fn noise(tokens: usize, heads: usize, dim: usize, seed: u64) -> Array3<f32> {
    let mut random = SplitMix::new(seed);
    Array3::from_shape_fn((tokens, heads, dim), |_| 3.0 * (random.next_f64() as f32 - 0.5))
}

/// A bias of every second scoring, the same for all heads or not; a fifth of it hides.
fn bias(heads: usize, tokens: usize, seed: usize) -> Option<OwnBias> {
    if seed.is_multiple_of(2) {
        return None;
    }
    let (heads, from, columns) = (if seed % 4 == 1 { 1 } else { heads }, 7 * seed, N - 9 * seed);
    let hide = |v: f32| if v < -0.9 { f32::NEG_INFINITY } else { v };
    Some(OwnBias { values: noise(heads, tokens, columns, seed as u64).mapv(hide), from })
}

fn tokens(shape: KvShape, n: usize, seed: u64) -> [Array3<f32>; 2] {
    [
        noise(n, shape.kv_heads, shape.head_dim, seed),
        noise(n, shape.kv_heads, shape.value_dim, seed + 1),
    ]
}

fn filled(shape: KvShape, form: StoreForm, scoring: &Scoring, n: usize) -> Layer {
    let layer = Layer::new(shape, form.clone()).expect("a layer");
    let mut layer = layer.with_scoring(scoring.clone()).expect("a scoring");
    let [k, v] = tokens(shape, n, 1);
    layer.append(k.view(), v.view()).expect("appends");
    layer
}

/// Attention, and the sum of the weights of every query.
fn attend(
    store: &dyn KvStore,
    q: &Array3<f32>,
    causal: Causal,
    bias: Option<&OwnBias>,
) -> (Array3<f32>, Vec<(usize, usize, f64)>) {
    let shape = store.shape();
    let mut out = Array3::from_elem((q.dim().0, shape.heads, shape.value_dim), f32::NAN);
    let mut sums = Vec::new();
    let mut watch = |head: usize, row: usize, weights: &[f32]| {
        sums.push((head, row, weights.iter().map(|w| f64::from(*w)).sum()));
    };
    let bias = bias.map(OwnBias::view);
    let scratch = &mut Scratch::default();
    store
        .attend_with(q.view(), causal, bias, out.view_mut(), scratch, Some(&mut watch))
        .expect("attends");
    (out, sums)
}

/// The store's attention is that of plain loops over what it decodes to.
fn check(store: &dyn KvStore, q: &Array3<f32>, causal: Causal, bias: Option<&OwnBias>, what: &str) {
    let asked = Asked { heads: store.shape().heads, scoring: store.scoring(), causal, bias };
    let (exact, shares) = reference(store, q, asked);
    let (out, sums) = attend(store, q, causal, bias);
    near(&out, &exact, 2e-3, what);
    assert_eq!(sums.len(), q.dim().0 * q.dim().1, "{what}");
    for (head, row, sum) in sums {
        let share = shares[[row, head]];
        assert!((sum - share).abs() < 2e-3, "{what}: weights of {head} sum to {sum}, not {share}");
    }
}

/// Every form, shape and scoring, with windows or without.
fn each(mut f: impl FnMut(KvShape, StoreForm, &Scoring, Option<usize>, Option<OwnBias>, &str)) {
    for form in forms() {
        for shape in shapes() {
            for (i, scoring) in scorings(shape.heads).iter().enumerate() {
                for window in [None, Some(25)] {
                    let seed = i + usize::from(window.is_some());
                    let what = format!("{form:?} {shape:?} {scoring:?} {window:?}, bias {seed}");
                    f(shape, form.clone(), scoring, window, bias(shape.heads, N, seed), &what);
                }
            }
        }
    }
}

/// Evicts every third token, and more of later heads.
fn thin(store: &mut dyn KvStore) {
    let keep =
        |head| (0..store.positions(head).len()).filter(move |s| s % 3 != 0 && s % (head + 5) != 0);
    let keep = HeadSlots((0..store.shape().kv_heads).map(|h| keep(h).collect()).collect());
    store.retain(&keep).expect("retains");
}

#[test]
fn a_prompt_at_once() {
    each(|shape, form, scoring, window, bias, what| {
        let layer = filled(shape, form.clone(), scoring, N);
        let q = noise(N, shape.heads, shape.head_dim, 5);
        check(&layer, &q, Causal { first: 0, window }, bias.as_ref(), what);
    });
}

#[test]
fn token_by_token() {
    each(|shape, form, scoring, window, bias, what| {
        let mut layer = filled(shape, form.clone(), scoring, 0);
        let [k, v] = tokens(shape, N, 1);
        let q = noise(N, shape.heads, shape.head_dim, 5);
        for t in 0..N {
            let rows = s![t..t + 1, .., ..];
            layer.append(k.slice(rows), v.slice(rows)).expect("appends");
            if t % 7 == 0 || t + 1 == N {
                let bias = bias.as_ref().map(|b| b.rows(t..t + 1));
                let q = q.slice(rows).to_owned();
                check(&layer, &q, Causal { first: t, window }, bias.as_ref(), what);
            }
        }
    });
}

#[test]
fn after_eviction_going_back_and_forks() {
    each(|shape, form, scoring, window, bias, what| {
        let mut layer = filled(shape, form.clone(), scoring, N - 10);
        thin(&mut layer);
        let q = noise(4, shape.heads, shape.head_dim, 6);
        let rows = |first: usize| bias.as_ref().map(|b| b.rows(first..first + 4));
        let ask = |store: &dyn KvStore, what: &str| {
            let first = store.len() - 4;
            check(store, &q, Causal { first, window }, rows(first).as_ref(), what);
        };
        ask(&layer, what);
        let [k, v] = tokens(shape, 10, 3);
        let fork = layer.fork();
        layer.append(k.view(), v.view()).expect("appends");
        ask(&layer, what);
        assert_eq!(fork.scoring(), scoring, "{what}");
        ask(&*fork, what);
        layer.truncate(N - 5).expect("what came since the eviction can go");
        ask(&layer, what);
    });
}

#[test]
fn over_two_tiers() {
    let low = StoreForm::Int(Int::new(8).with_group(16).with_keys(Axis::Token).with_window(0));
    for shape in shapes() {
        for (i, scoring) in scorings(shape.heads).iter().enumerate() {
            let exact = filled(shape, StoreForm::Float(DType::F32), scoring, N);
            let mut layer = exact.clone().with_low(low.clone()).expect("a low form");
            for from in [40, 0] {
                let keep = |h| (from..layer.held(h)).step_by(2).collect();
                let keep = HeadSlots((0..shape.kv_heads).map(keep).collect());
                layer.demote(&keep).expect("demotes");
            }
            for window in [None, Some(30)] {
                let q = noise(5, shape.heads, shape.head_dim, 5);
                let causal = Causal { first: N - 5, window };
                let bias = bias(shape.heads, 5, i);
                let bias = bias.as_ref();
                let asked = Asked { heads: shape.heads, scoring, causal, bias };
                let (exact, _) = reference(&exact, &q, asked);
                let (out, _) = attend(&layer, &q, causal, bias);
                near(&out, &exact, 3e-2, &format!("{shape:?} {scoring:?} {window:?}"));
            }
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let shape = shapes()[0];
    for scoring in scorings(shape.heads) {
        let layer = filled(shape, StoreForm::Float(DType::F32), &scoring, 20);
        let q = noise(2, shape.heads, shape.head_dim, 5);
        let values = Array3::from_elem((1, 2, 20), f32::NEG_INFINITY);
        let hidden = OwnBias { values, from: 0 };
        let (out, sums) = attend(&layer, &q, Causal::from(18), Some(&hidden));
        assert!(out.iter().all(|v| *v == 0.0), "{scoring:?}");
        assert!(sums.iter().all(|(_, _, sum)| *sum == 0.0), "{scoring:?}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    use tensorpress_tensor::ErrorKind::{InvalidArgument, Numerical, ShapeMismatch};
    let shape = shapes()[0];
    let plain = Scoring::default;
    for (scoring, kind) in [
        (plain().with_scale(0.0), InvalidArgument),
        (plain().with_scale(f32::NAN), InvalidArgument),
        (plain().with_softcap(-1.0), InvalidArgument),
        (plain().with_softcap(f32::INFINITY), InvalidArgument),
        (plain().with_chunk(0), InvalidArgument),
        (plain().with_sinks(vec![0.0; 3]), ShapeMismatch),
        (plain().with_sinks(vec![f32::NEG_INFINITY; 4]), InvalidArgument),
        (plain().with_slopes(vec![0.0; 5]), ShapeMismatch),
        (plain().with_slopes(vec![f32::NAN; 4]), InvalidArgument),
    ] {
        let layer = Layer::new(shape, StoreForm::Float(DType::F32)).expect("a layer");
        let error = layer.with_scoring(scoring.clone()).unwrap_err();
        assert_eq!(error.kind(), kind, "{scoring:?}");
    }
    assert_eq!(shape.with_value_dim(0).unwrap_err().kind(), InvalidArgument);
    let layer = filled(shape, StoreForm::Float(DType::F32), &plain(), 20);
    let q = noise(2, shape.heads, shape.head_dim, 5);
    let mut out = q.clone();
    for (dim, value, kind) in [
        ((2, 2, 20), 0.0, ShapeMismatch),
        ((1, 3, 20), 0.0, ShapeMismatch),
        ((0, 2, 20), 0.0, ShapeMismatch),
        ((1, 2, 20), f32::NAN, Numerical),
        ((4, 2, 20), f32::INFINITY, Numerical),
    ] {
        let values = Array3::from_elem(dim, value);
        let bias = Some(Bias { values: values.view(), from: 0 });
        let (causal, scratch) = (Causal::from(18), &mut Scratch::default());
        let error = layer.attend_with(q.view(), causal, bias, out.view_mut(), scratch, None);
        assert_eq!(error.unwrap_err().kind(), kind, "{dim:?} of {value}");
    }
}
