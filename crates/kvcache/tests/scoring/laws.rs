//! What layers say about themselves goes into files and comes back; batches, threads and drafts change nothing.

use std::collections::BTreeMap;

use ndarray::{Array3, s};
use tensorpress_kvcache::{
    Bias, Cache, Causal, KvRecipe, KvShape, KvStore, Layer, Scoring, StoreForm, widen,
};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::half::{bf16, f16};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, Result, Scratch, ndarray};

use crate::{N, attend, bias, each, filled, forms, noise, scorings, shapes, thin, tokens};

/// The store's file and its description.
fn written(store: &dyn KvStore) -> (Vec<u8>, serde_json::Value) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kv.safetensors");
    write_shard(&path, &BTreeMap::new(), &mut |sink| store.parts("kv", sink)).expect("writes");
    let json = serde_json::from_str(&store.describe().to_string()).expect("JSON");
    (std::fs::read(&path).expect("reads"), json)
}

fn read(bytes: &[u8], json: &serde_json::Value) -> Result<Layer> {
    Layer::read(json, "kv", &Checkpoint::from_bytes("kv", bytes.to_vec())?)
}

/// Attention is alike, to the bit.
fn alike(a: &dyn KvStore, b: &dyn KvStore, what: &str) {
    let q = noise(2, a.shape().heads, a.shape().head_dim, 8);
    let causal = Causal::from(a.len() - 2);
    let bits = |s| attend(s, &q, causal, None).0.mapv(f32::to_bits);
    assert_eq!(bits(a), bits(b), "{what}");
}

#[test]
fn layers_come_back_from_files() {
    each(|shape, form, scoring, _, _, what| {
        let mut layer = filled(shape, form.clone(), scoring, N);
        thin(&mut layer);
        let (bytes, json) = written(&layer);
        let plain = *scoring == Scoring::default() && shape.value_dim == shape.head_dim;
        assert_eq!(json["kind"], if plain { "kv.layer.v1" } else { "kv.layer.v2" }, "{what}");
        let back = read(&bytes, &json).expect(what);
        assert_eq!((back.scoring(), back.shape()), (scoring, shape), "{what}");
        assert_eq!(back.describe(), layer.describe(), "{what}");
        alike(&layer, &back, what);
    });
}

#[test]
fn values_in_keys_come_back_from_files() {
    for form in forms() {
        let shape = shapes()[1];
        let layer = Layer::new(shape, form.clone()).and_then(Layer::with_values_in_keys);
        let mut layer = layer.expect("a layer");
        let k = noise(N, shape.kv_heads, shape.head_dim, 1);
        layer.append(k.view(), k.slice(s![.., .., ..shape.value_dim])).expect("appends");
        thin(&mut layer);
        let (bytes, json) = written(&layer);
        let mut back = read(&bytes, &json).expect("reads");
        assert_eq!(back.describe(), layer.describe(), "{form:?}");
        alike(&layer, &back, &format!("{form:?}"));
        let k = noise(40, shape.kv_heads, shape.head_dim, 2);
        for layer in [&mut layer, &mut back] {
            layer.append(k.view(), k.slice(s![.., .., ..shape.value_dim])).expect("appends");
        }
        alike(&layer, &back, &format!("{form:?}"));
    }
}

#[test]
fn hostile_descriptions_are_refused() {
    let scoring = scorings(4).pop().expect("all of it");
    let layer = filled(shapes()[1], forms()[0].clone(), &scoring, N);
    let (bytes, json) = written(&layer);
    for (pointer, value) in [
        ("/kind", "kv.layer.v1".into()),
        ("/kind", "kv.layer.v9".into()),
        ("/value_dim", 0.into()),
        ("/value_dim", 17.into()),
        ("/value_dim", (1u64 << 39).into()),
        ("/values_in_keys", true.into()),
        ("/values_in_keys", 1.into()),
        ("/scoring", 1.into()),
        ("/scoring/scale", (-1).into()),
        ("/scoring/softcap", 0.into()),
        ("/scoring/chunk", 0.into()),
        ("/scoring/sinks", serde_json::json!([1.0])),
        ("/scoring/slopes", serde_json::json!([1.0, 2.0, 3.0, 1e300])),
    ] {
        let mut json = json.clone();
        *json.pointer_mut(pointer).expect(pointer) = value.clone();
        let error = read(&bytes, &json).map(drop).expect_err(pointer);
        let kinds = [ErrorKind::Corruption, ErrorKind::Version, ErrorKind::InsufficientData];
        assert!(kinds.contains(&error.kind()), "{pointer} = {value}: {error}");
    }
}

/// Layers and caches of files that were written before there was any of this.
#[test]
fn files_written_before_still_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/kv");
    let Ok(files) = std::fs::read_dir(folder) else { return };
    let mut checked = 0;
    for file in files {
        let path = file.expect("a file").path();
        let file = Checkpoint::open(&path).expect("a seed");
        let text = file.metadata().next().and_then(|metadata| metadata.get("kv")).expect("JSON");
        let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let again = match json["kind"].as_str() {
            Some("kv.layer.v1") => Layer::read(&json, "kv", &file).expect("reads").describe(),
            Some("kv.cache.v1") => Cache::read(&json, "kv", &file).expect("reads").describe(),
            _ => continue,
        };
        assert_eq!(again, json, "{}", path.display());
        checked += 1;
    }
    println!("{checked} caches of before read and described alike");
    assert!(checked > 5, "{checked}");
}

#[test]
fn threads_share_the_heads_of_a_long_cache() {
    let shape = KvShape::new(8, 4, 64).and_then(|s| s.with_value_dim(80)).expect("a shape");
    for form in forms() {
        let layer = filled(shape, form.clone(), &scorings(8).pop().expect("all of it"), 2100);
        let q = noise(2, 8, 64, 9);
        let causal = Causal::from(2098);
        let values = noise(8, 2, 2100, 10);
        let attend = |par| {
            let mut out = Array3::zeros((2, 8, 80));
            let bias = Some(Bias { values: values.view(), from: 0 });
            let scratch = &mut Scratch::new(par);
            layer
                .attend_with(q.view(), causal, bias, out.view_mut(), scratch, None)
                .expect("attends");
            out
        };
        assert!(attend(Par::Seq) == attend(Par::Rayon), "{form:?}");
    }
}

/// Drafts with a mask, taken back, leave nothing: neither in what is held nor in what a score has learnt.
#[test]
fn drafts_with_a_bias_are_taken_back() {
    let shape = shapes()[1];
    for text in ["f32 | h2o(tokens=40, stride=4)", "kivi(bits=4, group=16) | snapkv(tokens=50)"] {
        let recipe: KvRecipe = text.parse().expect(text);
        let make = || {
            let cache = recipe.caches_of(1, shape).expect("caches").remove(0);
            let scoring = scorings(4).pop().expect("all of it");
            cache.with_deferred().with_scoring(scoring).expect("a scoring")
        };
        let feed = |cache: &mut Cache, from: usize, n: usize, junk: usize| {
            let rows = |x: Array3<f32>| x.slice(s![from..from + n + junk, .., ..]).to_owned();
            let ([k, v], q) = (tokens(shape, N, 1), noise(N, 4, shape.head_dim, 2));
            let (k, v, q) = (rows(k), rows(v), rows(q));
            cache.append(k.view(), v.view()).expect("appends");
            let mask = bias(4, N, 3).expect("a mask").rows(from..from + n + junk);
            let mut out = Array3::zeros((n + junk, 4, shape.value_dim));
            let scratch = &mut Scratch::default();
            cache
                .attend_with(q.view(), None, Some(mask.view()), out.view_mut(), scratch)
                .expect("attends");
            cache.truncate(from + n).expect("drafts can go");
            cache.settle().expect("settles");
            out.slice(s![..n, .., ..]).to_owned()
        };
        let (mut drafted, mut never) = (make(), make());
        for (from, n) in [(0, 60), (60, 4), (64, 1), (65, 3)] {
            let (a, b) = (feed(&mut drafted, from, n, 5), feed(&mut never, from, n, 0));
            // More tokens at once fill windows of integers sooner: there, attention is of another rounding.
            let ints = matches!(drafted.store().form(), StoreForm::Int(_));
            assert!(ints || (&a - &b).iter().all(|e| e.abs() < 1e-5), "{text}: {from}");
            assert_eq!(drafted.describe(), never.describe(), "{text}: {from}");
        }
    }
}

#[test]
fn halves_are_taken_exactly() {
    let x = noise(5, 2, 16, 1);
    let narrow = x.mapv(f16::from_f32);
    assert_eq!(widen(narrow.view()), narrow.mapv(f32::from));
    let narrow = x.mapv(bf16::from_f32);
    assert_eq!(widen(narrow.view()), narrow.mapv(f32::from));
    let turned = narrow.view().permuted_axes([1, 0, 2]);
    assert_eq!(widen(turned), turned.mapv(f32::from), "whatever the strides");
    let form = StoreForm::Float(DType::BF16);
    let mut layer = Layer::new(KvShape::new(2, 2, 16).expect("a shape"), form).expect("a layer");
    let wide = widen(narrow.view());
    layer.append(wide.view(), wide.view()).expect("appends");
    for h in 0..2 {
        assert_eq!(layer.keys(h).mapv(bf16::from_f32), narrow.slice(s![.., h, ..]));
    }
}
