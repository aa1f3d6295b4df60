//! The laws of stores, for every form.

use std::collections::BTreeMap;

use ndarray::{Array2, Array3, s};
use tensorpress_kvcache::store::{
    ChannelShrink, Gear, HadamardInt, KvQuant, MatryoshkaProj, Norm, PqCache, ZipCache,
};
use tensorpress_kvcache::{
    Axis, Bitmap, Causal, HeadSlots, Int, KvShape, KvStore, Layer, Rope, StoreForm,
};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, Scratch, ndarray};

fn forms() -> Vec<StoreForm> {
    let mut forms = vec![
        StoreForm::Float(DType::F32),
        StoreForm::Float(DType::F16),
        StoreForm::Float(DType::BF16),
    ];
    for bits in [2, 4, 8] {
        for keys in [Axis::Channel, Axis::Token] {
            forms.push(StoreForm::Int(Int::new(bits).with_keys(keys)));
        }
    }
    forms.push(StoreForm::Int(Int::new(4).with_group(48).with_window(96).with_scales(DType::F32)));
    forms.push(StoreForm::Bitmap(Bitmap::new(0.7)));
    forms.push(StoreForm::Bitmap(Bitmap::new(0.5).with_value_group(24).with_window(20)));
    forms.push(StoreForm::Bitmap(Bitmap::new(0.0).with_dtype(DType::F32).with_window(0)));
    forms.push(HadamardInt::default().with_bits(4, 2).with_sinks(0).with_centre(false).into());
    forms.push(HadamardInt::default().with_bits(8, 8).with_groups(16, 0).with_window(3).into());
    forms.push(HadamardInt::default().with_sinks(1).with_window(0).into());
    forms.push(ZipCache::default().with_chunk(16).into());
    let zip = ZipCache::default().with_bits(3).with_chunk(24).with_window(5);
    forms.push(
        zip.with_keys(Axis::Token, Norm::SqrtMean).with_values(Axis::Channel, Norm::Mean).into(),
    );
    forms.push(Gear::default().with_chunk(32, 16).into());
    forms.push(Gear::default().with_bits(2).with_chunk(24, 1 << 10).with_rank(4).into());
    forms.push(Gear::default().with_chunk(16, 8).with_rank(0).with_sparsity(0.0).into());
    forms.push(KvQuant::default().with_fit(24, 1).into());
    forms.push(
        KvQuant::default().with_bits(2).with_norm(true).with_fit(40, 3).with_window(0).into(),
    );
    forms.push(KvQuant::default().with_bits(3).with_outliers(0.0).with_fit(20, 0).into());
    forms.push(PqCache::default().with_codes(1, 3).with_fit(16).into());
    forms.push(PqCache::default().with_codes(4, 4).with_fit(33).with_window(0).into());
    forms.push(ChannelShrink::default().with_fit(20).into());
    forms.push(ChannelShrink::default().with_keep(0.3, 0.8).with_bits(4).with_fit(40).into());
    forms.push(MatryoshkaProj::default().with_fit(20).with_window(7).into());
    forms
}

/// Shapes each form can hold.
fn shapes(form: StoreForm) -> Vec<KvShape> {
    let shape = |h, k, d| KvShape::new(h, k, d).expect("a shape");
    let other = |s: KvShape, v| s.with_value_dim(v).expect("a width");
    // Values narrower and wider than keys too.
    let unlike = [other(shape(2, 2, 48), 16), other(shape(4, 1, 32), 64)];
    [shape(2, 1, 8), shape(4, 2, 32), shape(3, 3, 96), shape(1, 1, 33)]
        .into_iter()
        .chain(unlike)
        .filter(|s| Layer::new(*s, form.clone()).is_ok())
        .collect()
}

fn noise(tokens: usize, heads: usize, dim: usize, seed: u64) -> Array3<f32> {
    let mut random = SplitMix::new(seed);
    Array3::from_shape_fn((tokens, heads, dim), |(_, _, c)| {
        (random.next_f64() as f32 - 0.5) * if c % 7 == 3 { 8.0 } else { 1.0 }
    })
}

fn tokens(shape: KvShape, n: usize, seed: u64) -> (Array3<f32>, Array3<f32>) {
    (
        noise(n, shape.kv_heads, shape.head_dim, seed),
        noise(n, shape.kv_heads, shape.value_dim, seed + 1),
    )
}

fn filled(shape: KvShape, form: StoreForm, n: usize) -> Layer {
    let mut layer = Layer::new(shape, form.clone()).expect("a layer");
    let (k, v) = tokens(shape, n, 1);
    layer.append(k.view(), v.view()).expect("appends");
    layer
}

fn attend(store: &dyn KvStore, q: &Array3<f32>, causal: Causal) -> Array3<f32> {
    let mut out = Array3::from_elem((q.dim().0, q.dim().1, store.shape().value_dim), f32::NAN);
    store.attend(q.view(), causal, out.view_mut(), &mut Scratch::default(), None).expect("attends");
    out
}

/// softmax(q k^T / sqrt(d)) v in f64 over what the store decodes to.
fn reference(store: &dyn KvStore, q: &Array3<f32>, causal: Causal) -> Array3<f64> {
    let (rows, heads, dim) = q.dim();
    let (group, width) = (store.shape().group(), store.shape().value_dim);
    let mut out = Array3::zeros((rows, heads, width));
    for h in 0..heads {
        let (k, v) = store.decode(h / group);
        let positions = store.positions(h / group);
        for r in 0..rows {
            let at = causal.first + r;
            let sees = |p: usize| p <= at && causal.window.is_none_or(|w| p + w > at);
            let score = |slot: usize| {
                let dot: f64 =
                    (0..dim).map(|c| f64::from(q[[r, h, c]]) * f64::from(k[[slot, c]])).sum();
                dot / (dim as f64).sqrt()
            };
            let seen: Vec<usize> = (0..positions.len()).filter(|s| sees(positions[*s])).collect();
            let max = seen.iter().map(|s| score(*s)).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = seen.iter().map(|s| (score(*s) - max).exp()).sum();
            for s in seen {
                let w = (score(s) - max).exp() / sum;
                (0..width).for_each(|c| out[[r, h, c]] += w * f64::from(v[[s, c]]));
            }
        }
    }
    out
}

fn assert_near(a: &Array3<f32>, b: &Array3<f64>, tolerance: f64, what: &str) {
    let largest = b.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    for ((at, a), b) in a.indexed_iter().zip(b) {
        let error = (f64::from(*a) - b).abs();
        assert!(error <= tolerance * largest, "{what} at {at:?}: {a} against {b}");
    }
}

fn same(a: &dyn KvStore, b: &dyn KvStore, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for head in 0..a.shape().kv_heads {
        assert_eq!(a.positions(head), b.positions(head), "{what}");
        let bits = |m: Array2<f32>| m.mapv(f32::to_bits);
        let (x, y) = (a.decode(head), b.decode(head));
        assert_eq!(bits(x.0), bits(y.0), "{what}: keys");
        assert_eq!(bits(x.1), bits(y.1), "{what}: values");
    }
    let q = noise(1, a.shape().heads, a.shape().head_dim, 9);
    let causal = Causal::from(a.len().saturating_sub(1));
    let bits = |s| attend(s, &q, causal).mapv(f32::to_bits);
    assert_eq!(bits(a), bits(b), "{what}: attention");
}

/// Every form, at a few shapes and lengths around the borders of windows, groups and pages.
fn each(mut f: impl FnMut(KvShape, StoreForm, usize, &str)) {
    for form in forms() {
        for shape in shapes(form.clone()) {
            for n in [1, 15, 33, 64, 130, 300] {
                f(shape, form.clone(), n, &format!("{form:?} {shape:?} {n} tokens"));
            }
        }
    }
}

#[test]
fn attention_is_that_over_the_decoded_store() {
    each(|shape, form, n, what| {
        let layer = filled(shape, form.clone(), n);
        // Rotated, what is rounded of the channel that stands out is in every channel.
        let tolerance = if what.contains("HadamardInt") { 2e-3 } else { 1e-3 };
        for (rows, window) in [(1, None), (1, Some(20)), (n.min(5), None), (n.min(70), Some(40))] {
            let causal = Causal { first: n - rows, window };
            let q = noise(rows, shape.heads, shape.head_dim, 5);
            let expected = reference(&layer, &q, causal);
            assert_near(&attend(&layer, &q, causal), &expected, tolerance, what);
        }
    });
}

#[test]
fn streaming_equals_batch() {
    each(|shape, form, n, what| {
        let batch = filled(shape, form.clone(), n);
        let (k, v) = tokens(shape, n, 1);
        for step in [1, 7, 64] {
            let mut stream = Layer::new(shape, form.clone()).expect("a layer");
            for start in (0..n).step_by(step) {
                let rows = s![start..(start + step).min(n), .., ..];
                stream.append(k.slice(rows), v.slice(rows)).expect("appends");
            }
            same(&batch, &stream, what);
            assert_eq!(batch.describe(), stream.describe(), "{what}");
        }
    });
}

#[test]
fn truncate_is_as_if_never_past() {
    let mut refused = 0;
    each(|shape, form, n, what| {
        let (k, v) = tokens(shape, n + 40, 1);
        for back in [0, 1, 5, 30, 64, n] {
            let len = n.saturating_sub(back);
            let mut layer = filled(shape, form.clone(), n);
            if len != 0 && len < layer.earliest() {
                let before = filled(shape, form.clone(), n);
                assert_eq!(
                    layer.truncate(len).unwrap_err().kind(),
                    ErrorKind::Unsupported,
                    "{what}"
                );
                same(&layer, &before, what);
                refused += 1;
                continue;
            }
            layer.truncate(len).expect("truncates");
            let mut never = Layer::new(shape, form.clone()).expect("a layer");
            never.append(k.slice(s![..len, .., ..]), v.slice(s![..len, .., ..])).expect("appends");
            same(&layer, &never, what);
            let rest = s![len..n + 40, .., ..];
            layer.append(k.slice(rest), v.slice(rest)).expect("appends");
            never.append(k.slice(rest), v.slice(rest)).expect("appends");
            same(&layer, &never, what);
        }
        let mut layer = filled(shape, form.clone(), n);
        assert_eq!(layer.truncate(n + 1).unwrap_err().kind(), ErrorKind::InvalidArgument);
        // What came last can always be taken back.
        let packs = !matches!(form, StoreForm::Float(_));
        assert!(layer.earliest() <= n.saturating_sub(if packs { 32 } else { n }), "{what}");
    });
    assert!(refused > 0, "no store refused");
}

#[test]
fn forks_are_isolated_and_share_pages() {
    each(|shape, form, n, what| {
        let mut layer = filled(shape, form.clone(), n);
        let fork = layer.fork();
        let (k, v) = tokens(shape, 50, 77);
        layer.append(k.view(), v.view()).expect("appends");
        same(&*fork, &filled(shape, form.clone(), n), what);
        let mut fork = fork;
        let (k2, v2) = tokens(shape, 20, 78);
        fork.append(k2.view(), v2.view()).expect("appends");
        let mut alone = filled(shape, form.clone(), n);
        alone.append(k.view(), v.view()).expect("appends");
        same(&layer, &alone, what);
    });
}

/// The store's file and its description.
fn written(store: &dyn KvStore) -> (Vec<u8>, serde_json::Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kv.safetensors");
    let mut parts = tensorpress_tensor::Storage::default();
    store.parts("kv", &mut parts).expect("counts");
    assert_eq!(parts.bytes(), store.bytes(), "bits written = bits claimed");
    write_shard(&path, &BTreeMap::new(), &mut |sink| store.parts("kv", sink)).expect("writes");
    (std::fs::read(&path).expect("reads"), store.describe())
}

fn read(bytes: Vec<u8>, json: &serde_json::Value) -> tensorpress_tensor::Result<Layer> {
    Layer::read(json, "kv", &Checkpoint::from_bytes("kv", bytes)?)
}

/// Evicts every third token, and more of later heads.
fn thin(store: &mut dyn KvStore) {
    let keep =
        |head| (0..store.positions(head).len()).filter(move |s| s % 3 != 0 && s % (head + 5) != 0);
    let keep = HeadSlots((0..store.shape().kv_heads).map(|h| keep(h).collect()).collect());
    store.retain(&keep).expect("retains");
}

#[test]
fn read_write_is_bit_identical() {
    each(|shape, form, n, what| {
        let mut layer = filled(shape, form.clone(), n);
        for thinned in [false, true] {
            if thinned {
                thin(&mut layer);
            }
            let (bytes, json) = written(&layer);
            let json = serde_json::from_str(&json.to_string()).expect("JSON");
            let mut back = read(bytes, &json).expect(what);
            same(&layer, &back, what);
            assert_eq!(back.describe(), layer.describe(), "{what}");
            let (k, v) = tokens(shape, 70, 3);
            let mut on = layer.clone();
            on.append(k.view(), v.view()).expect("appends");
            back.append(k.view(), v.view()).expect("appends");
            same(&on, &back, what);
        }
    });
}

#[test]
fn damage_is_an_error_or_a_valid_store() {
    for form in forms() {
        let shape = shapes(form.clone())[0];
        let mut layer = filled(shape, form.clone(), 70);
        thin(&mut layer);
        let (bytes, json) = written(&layer);
        let try_read = |bytes: Vec<u8>, json: &serde_json::Value| {
            if let Ok(mut layer) = read(bytes, json) {
                let q = noise(1, layer.shape().heads, layer.shape().head_dim, 9);
                if layer.shape().kv_heads * layer.shape().head_dim < 1 << 12 && q.dim().1 < 100 {
                    attend(&layer, &q, Causal::from(layer.len()));
                    (0..layer.shape().kv_heads).for_each(|h| drop(layer.decode(h)));
                    let (k, v) = tokens(layer.shape(), 40, 3);
                    let _ = layer.append(k.view(), v.view());
                    let _ = layer.truncate(layer.earliest());
                }
            }
        };
        let step = (bytes.len() / 150).max(1);
        for at in (0..bytes.len()).step_by(step) {
            try_read(bytes[..at].to_vec(), &json);
            for bit in [0, 5] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                try_read(flipped, &json);
            }
        }
        let text = json.to_string();
        let mut refused = 0;
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut flipped = text.clone().into_bytes();
                flipped[at] ^= 1 << bit;
                if let Ok(json) = serde_json::from_slice(&flipped) {
                    refused += usize::from(read(bytes.clone(), &json).is_err());
                    try_read(bytes.clone(), &json);
                }
            }
        }
        assert!(refused > 100, "{form:?}: {refused} damaged descriptions refused");
    }
}

#[test]
fn a_refused_append_changes_nothing() {
    each(|shape, form, n, what| {
        let mut layer = filled(shape, form.clone(), n);
        let (k, v) = tokens(shape, 3, 3);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            let (mut bad_k, mut bad_v) = (k.clone(), v.clone());
            bad_k[[2, shape.kv_heads - 1, 0]] = bad;
            bad_v[[2, shape.kv_heads - 1, 0]] = bad;
            for (k, v) in [(&bad_k, &v), (&k, &bad_v)] {
                let error = layer.append(k.view(), v.view()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Numerical, "{what}");
            }
        }
        for (heads, more) in [(shape.kv_heads + 1, 0), (shape.kv_heads, 1)] {
            let wrong_k = noise(3, heads, shape.head_dim + more, 1);
            let wrong_v = noise(3, heads, shape.value_dim + more, 1);
            for (k, v) in [(&wrong_k, &v), (&k, &wrong_v)] {
                let error = layer.append(k.view(), v.view()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{what}");
            }
        }
        let short = k.slice(s![..2, .., ..]);
        assert_eq!(layer.append(short, v.view()).unwrap_err().kind(), ErrorKind::ShapeMismatch);
        let (k, v) = tokens(shape, 0, 1);
        layer.append(k.view(), v.view()).expect("no token is fine");
        same(&layer, &filled(shape, form.clone(), n), what);
    });
}

#[test]
fn eviction_keeps_what_it_says_and_frees_the_rest() {
    each(|shape, form, n, what| {
        let mut layer = filled(shape, form.clone(), n);
        let before: Vec<_> = (0..shape.kv_heads).map(|h| layer.decode(h)).collect();
        let bytes = layer.bytes();
        thin(&mut layer);
        for (h, (k, v)) in before.iter().enumerate() {
            let positions = layer.positions(h);
            assert!(positions.iter().all(|p| p % 3 != 0), "{what}");
            if matches!(form, StoreForm::Float(_)) {
                assert_eq!(layer.decode(h).0, k.select(ndarray::Axis(0), &positions), "{what}");
                assert_eq!(layer.decode(h).1, v.select(ndarray::Axis(0), &positions), "{what}");
            }
        }
        if let StoreForm::Float(_) = form {
            assert!(
                n < 64 || layer.bytes() < bytes * 3 / 4,
                "{what}: {} of {bytes}",
                layer.bytes()
            );
        }
        let q = noise(1, shape.heads, shape.head_dim, 5);
        for window in [None, Some(10)] {
            let causal = Causal { first: n - 1, window };
            assert_near(&attend(&layer, &q, causal), &reference(&layer, &q, causal), 1e-3, what);
        }
        // Positions go on where they were.
        let (k, v) = tokens(shape, 2, 8);
        layer.append(k.view(), v.view()).expect("appends");
        assert_eq!(layer.positions(0).last(), Some(&(n + 1)), "{what}");
        assert_eq!(layer.earliest().max(n), n.max(layer.earliest()), "{what}");
        if n > 1 {
            assert_eq!(layer.truncate(n - 1).unwrap_err().kind(), ErrorKind::Unsupported, "{what}");
        }
        layer.truncate(n).expect("what came after the eviction can be taken back");
        let held = layer.positions(0).len();
        let wrong = HeadSlots(vec![vec![held]; shape.kv_heads]);
        assert_eq!(layer.retain(&wrong).unwrap_err().kind(), ErrorKind::InvalidArgument, "{what}");
    });
}

#[test]
fn demoted_tokens_still_count() {
    let shape = KvShape::new(4, 2, 32).expect("a shape");
    let exact = filled(shape, StoreForm::Float(DType::F32), 200);
    let low = StoreForm::Int(Int::new(8).with_keys(Axis::Token).with_window(0).with_margin(0));
    let mut layer =
        filled(shape, StoreForm::Float(DType::F32), 200).with_low(low.clone()).expect("a low form");
    let bytes = layer.bytes();
    // Twice, so that demoted tokens do not come in the order of their positions.
    layer
        .demote(&HeadSlots(vec![(20..200).step_by(2).collect(), (100..200).collect()]))
        .expect("demotes");
    layer.demote(&HeadSlots(vec![(0..50).collect(), (10..100).collect()])).expect("demotes");
    assert!(layer.bytes() < bytes * 3 / 4);
    let q = noise(1, 4, 32, 5);
    for window in [None, Some(60)] {
        let causal = Causal { first: 199, window };
        let expected = reference(&exact, &q, causal);
        assert_near(&attend(&layer, &q, causal), &expected, 2e-2, "8 bits");
    }
    let (file, json) = written(&layer);
    let back = read(file, &json).expect("reads");
    same(&layer, &back, "two tiers");
    let plain = filled(shape, StoreForm::Float(DType::F32), 10);
    let keep = HeadSlots(vec![vec![1]; 2]);
    assert_eq!(plain.clone().demote(&keep).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn plain_keys_are_rotated_when_read() {
    let shape = KvShape::new(4, 2, 32).expect("a shape");
    let rope = Rope::new(32, 1e4).expect("an embedding");
    let (k, v) = tokens(shape, 90, 1);
    let mut rotated = k.clone();
    for ((t, _), mut row) in
        rotated.rows_mut().into_iter().enumerate().map(|(i, r)| ((i / 2, i), r))
    {
        rope.rotate(row.as_slice_mut().expect("contiguous"), t);
    }
    let form = StoreForm::Float(DType::F32);
    let mut plain =
        Layer::new(shape, form.clone()).expect("a layer").with_plain_keys(rope).expect("same size");
    let mut usual = Layer::new(shape, form.clone()).expect("a layer");
    plain.append(k.view(), v.view()).expect("appends");
    usual.append(rotated.view(), v.view()).expect("appends");
    let keep = HeadSlots(vec![(3..80).collect(), (10..90).collect()]);
    for store in [&mut plain, &mut usual] {
        store.retain(&keep).expect("retains");
    }
    let q = noise(2, 4, 32, 5);
    let expected = reference(&usual, &q, Causal::from(88));
    assert_near(&attend(&plain, &q, Causal::from(88)), &expected, 1e-5, "rotated");
    let (file, json) = written(&plain);
    same(&plain, &read(file, &json).expect("reads"), "plain keys");
}

#[test]
fn impossible_stores_are_refused() {
    for (heads, kv, dim) in [(0, 1, 8), (3, 2, 8), (2, 0, 8), (2, 2, 0)] {
        assert_eq!(KvShape::new(heads, kv, dim).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    let shape = KvShape::new(2, 1, 32).expect("a shape");
    let int = Int::new;
    for form in [
        StoreForm::Int(int(3)),
        StoreForm::Int(int(4).with_group(20)),
        StoreForm::Int(int(4).with_window(0)),
        StoreForm::Int(int(4).with_window(33)),
        StoreForm::Float(DType::I8),
        StoreForm::Bitmap(Bitmap::new(1.0)),
        StoreForm::Bitmap(Bitmap::new(0.5).with_value_group(0)),
        StoreForm::Bitmap(Bitmap::new(f64::NAN)),
    ] {
        assert_eq!(
            Layer::new(shape, form.clone()).unwrap_err().kind(),
            ErrorKind::InvalidArgument,
            "{form:?}"
        );
    }
}

#[test]
fn threads_share_the_heads_of_a_long_cache() {
    let shape = KvShape::new(8, 4, 64).expect("a shape");
    for form in forms().into_iter().filter(|form| form.check(shape.head_dim).is_ok()) {
        let layer = filled(shape, form.clone(), 2100);
        let q = noise(2, shape.heads, shape.head_dim, 9);
        let attend = |par| {
            let (mut out, mut seen) = (Array3::zeros(q.dim()), Vec::new());
            let mut watch = |head: usize, token: usize, weights: &[f32]| {
                seen.push((head, token, weights.to_vec()));
            };
            let causal = Causal::from(layer.len() - 2);
            let scratch = &mut Scratch::new(par);
            layer
                .attend(q.view(), causal, out.view_mut(), scratch, Some(&mut watch))
                .expect("attends");
            (out, seen)
        };
        let (alone, shared) = (attend(Par::Seq), attend(Par::Rayon));
        assert!(alone == shared, "{form:?}");
        assert_eq!(alone.1.len(), 2 * shape.heads);
    }
}
