//! MLA: attention over all heads' keys and values, and over the latent that they are made of.

use ndarray::{Array2, Array3, ArrayView2, s};
use tensorpress_kvcache::{Causal, HeadSlots, KvShape, KvStore, Layer, Scoring, StoreForm};
use tensorpress_tensor::{DType, ErrorKind, ndarray};

use crate::{N, attend, check, forms, noise, thin};

const HEADS: usize = 3;
const PLAIN: usize = 12;
const ROTARY: usize = 4;
const LATENT: usize = 16;
const VALUE: usize = 10;

/// A matrix of a head.
fn map(rows: usize, columns: usize, head: usize, seed: u64) -> Array2<f32> {
    noise(rows, 1, columns, seed + head as u64).index_axis_move(ndarray::Axis(1), 0)
}

#[test]
fn the_absorbed_form_is_the_expanded_one() {
    // Keys of a head: what its map makes of the latent, and channels of position that all heads share.
    let (latent, rotary) = (noise(N, 1, LATENT, 1), noise(N, 1, ROTARY, 2));
    let q = noise(N, HEADS, PLAIN + ROTARY, 3);
    let scoring = Scoring::default().with_scale(0.1);
    let (to_key, to_value) = (|h| map(PLAIN, LATENT, h, 10), |h| map(VALUE, LATENT, h, 20));

    let expanded = KvShape::new(HEADS, HEADS, PLAIN + ROTARY).and_then(|s| s.with_value_dim(VALUE));
    let expanded = expanded.expect("a shape");
    let (mut k, mut v) =
        (Array3::zeros((N, HEADS, PLAIN + ROTARY)), Array3::zeros((N, HEADS, VALUE)));
    for h in 0..HEADS {
        let latent: ArrayView2<'_, f32> = latent.slice(s![.., 0, ..]);
        k.slice_mut(s![.., h, ..PLAIN]).assign(&latent.dot(&to_key(h).t()));
        k.slice_mut(s![.., h, PLAIN..]).assign(&rotary.slice(s![.., 0, ..]));
        v.slice_mut(s![.., h, ..]).assign(&latent.dot(&to_value(h).t()));
    }
    let form = StoreForm::Float(DType::F32);
    let layer =
        |shape| Layer::new(shape, form.clone()).and_then(|l| l.with_scoring(scoring.clone()));
    let mut all_heads = layer(expanded).expect("a layer");
    all_heads.append(k.view(), v.view()).expect("appends");

    // Queries take the maps to keys, outputs those to values.
    let shape = KvShape::new(HEADS, 1, LATENT + ROTARY).and_then(|s| s.with_value_dim(LATENT));
    let shape = shape.expect("a shape");
    let keys = ndarray::concatenate(ndarray::Axis(2), &[latent.view(), rotary.view()]);
    let keys = keys.expect("of the same tokens");
    let mut absorbed = Array3::zeros((N, HEADS, LATENT + ROTARY));
    for h in 0..HEADS {
        let plain = q.slice(s![.., h, ..PLAIN]).dot(&to_key(h));
        absorbed.slice_mut(s![.., h, ..LATENT]).assign(&plain);
        absorbed.slice_mut(s![.., h, LATENT..]).assign(&q.slice(s![.., h, PLAIN..]));
    }
    let apart = layer(shape).expect("a layer");
    let within = apart.clone().with_values_in_keys().expect("values are in the keys");
    for mut held in [apart, within] {
        held.append(keys.view(), latent.view()).expect("appends");
        for causal in [Causal::from(0), Causal { first: 0, window: Some(20) }] {
            let (exact, _) = attend(&all_heads, &q, causal, None);
            let (out, _) = attend(&held, &absorbed, causal, None);
            for h in 0..HEADS {
                let out = out.slice(s![.., h, ..]).dot(&to_value(h).t());
                let error = (&out - &exact.slice(s![.., h, ..])).mapv(f32::abs);
                assert!(error.iter().all(|e| *e < 1e-4), "head {h}: {error}");
            }
        }
    }
}

fn shape() -> KvShape {
    KvShape::new(4, 2, 48).and_then(|s| s.with_value_dim(32)).expect("a shape")
}

fn filled(form: StoreForm, n: usize) -> Layer {
    let layer = Layer::new(shape(), form.clone()).expect("a layer");
    let mut layer = layer.with_values_in_keys().expect("values are in the keys");
    let k = noise(n, 2, 48, 1);
    layer.append(k.view(), k.slice(s![.., .., ..32])).expect("appends");
    layer
}

#[test]
fn values_in_keys_are_held_once() {
    for form in forms() {
        let what = format!("{form:?}");
        let mut layer = filled(form.clone(), N);
        let mut keys_alone = Layer::new(shape(), form.clone()).expect("a layer");
        keys_alone.append(noise(N, 2, 48, 1).view(), noise(N, 2, 32, 2).view()).expect("appends");
        assert!(layer.bytes() < keys_alone.bytes() * 3 / 4, "{what}");
        for step in 0..3 {
            for rows in [1, 3, 30] {
                let q = noise(rows, 4, 48, 5);
                for window in [None, Some(20)] {
                    check(&layer, &q, Causal { first: layer.len() - rows, window }, None, &what);
                }
            }
            for h in 0..2 {
                let (k, v) = layer.decode(h);
                assert_eq!(k.slice(s![.., ..32]), v, "{what}");
                assert_eq!(k, if step == 0 { keys_alone.keys(h) } else { k.clone() }, "{what}");
            }
            if step == 0 {
                thin(&mut layer);
            } else {
                let k = noise(7, 2, 48, 9);
                layer.append(k.view(), k.slice(s![.., .., ..32])).expect("appends");
                layer.truncate(N + 3).expect("what came last can go");
            }
        }
    }
}

#[test]
fn demoted_values_stay_in_the_keys() {
    let low = StoreForm::Int(tensorpress_kvcache::Int::new(8).with_group(16).with_window(0));
    let low = match low {
        StoreForm::Int(int) => StoreForm::Int(int.with_keys(tensorpress_kvcache::Axis::Token)),
        other => other,
    };
    let exact = filled(StoreForm::Float(DType::F32), N);
    let mut layer = exact.clone().with_low(low.clone()).expect("a low form");
    layer.demote(&HeadSlots(vec![(0..N).step_by(3).collect(); 2])).expect("demotes");
    let q = noise(2, 4, 48, 5);
    let (a, _) = attend(&layer, &q, Causal::from(N - 2), None);
    let (b, _) = attend(&exact, &q, Causal::from(N - 2), None);
    assert!((&a - &b).iter().all(|e| e.abs() < 0.03), "{:?}", &a - &b);
}

#[test]
fn other_values_are_refused() {
    let mut layer = filled(StoreForm::Float(DType::F16), 10);
    let (k, v) = (noise(3, 2, 48, 1), noise(3, 2, 32, 2));
    let error = layer.append(k.view(), v.view()).unwrap_err();
    assert_eq!((error.kind(), layer.len()), (ErrorKind::InvalidArgument, 10));
    let wide = KvShape::new(2, 1, 16).and_then(|s| s.with_value_dim(17)).expect("a shape");
    let form = StoreForm::Float(DType::F32);
    let error = Layer::new(wide, form.clone()).and_then(Layer::with_values_in_keys).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let error = filled(form.clone(), 3).with_values_in_keys().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let rope = tensorpress_kvcache::Rope::new(48, 1e4).expect("an embedding");
    let error = filled(form.clone(), 0).with_plain_keys(rope).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
