//! What forms cost and lose on the keys, values and queries of real models; the figures of `docs/methods`.

use std::sync::Arc;

use ndarray::{Array3, s};
use tensorpress_kvcache::page::{Kvtc, KvtcConfig};
use tensorpress_kvcache::store::{
    AquaKv, ChannelShrink, Gear, HadamardInt, KvQuant, Levels, MatryoshkaProj, MiniCache, Norm,
    PqCache, XKv, ZipCache,
};
use tensorpress_kvcache::{
    Axis, Caches, Causal, Int, JointForm, KvShape, KvStore, Layer, Rope, StoreForm,
};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, Scratch, ndarray};

fn open(name: &str) -> Option<Checkpoint> {
    let path = data::find(&format!("golden/kv/{name}.safetensors"))?;
    Some(Checkpoint::open(path).expect("a golden file"))
}

/// Golden arrays are [heads, tokens, dim]; ours are [tokens, heads, dim].
fn tokens_first(file: &Checkpoint, name: &str) -> Array3<f32> {
    let shape = file.shape(name).expect("a tensor of the file").to_vec();
    let [heads, tokens, dim] = shape[shape.len() - 3..] else { panic!("three axes") };
    let tensor = file.tensor(name).expect("a tensor of the file");
    let mut out = vec![0.0; tensor.bytes().len() / 4];
    DType::F32.read_f32(tensor.bytes(), &mut out).expect("f32");
    let x = Array3::from_shape_vec((heads, tokens, dim), out).expect("as the shape says");
    x.permuted_axes([1, 0, 2]).as_standard_layout().into_owned()
}

/// The error of an output as a share of its size.
fn relative(a: &Array3<f32>, exact: &Array3<f32>) -> f64 {
    let square = |x: &Array3<f32>| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    (square(&(a - exact)) / square(exact)).sqrt()
}

/// Everything packed that can be: no window, no margin.
macro_rules! bare {
    ($form:expr) => {{
        let mut form = $form;
        (form.window, form.margin) = (0, 0);
        StoreForm::from(form)
    }};
}

fn integers(bits: u32, keys: Axis) -> StoreForm {
    let window = if keys == Axis::Channel { 32 } else { 0 };
    StoreForm::Int(Int::new(bits).with_keys(keys).with_window(window).with_margin(0))
}

/// Layer 2 of MiniLM: 300 tokens, 12 query heads, 4 heads of 32 channels; the last 44 queries over all tokens before them.
#[test]
fn attention_of_minilm() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let [k, v, q] = ["in.k_rope", "in.v", "in.q_rope"].map(|name| tokens_first(&file, name));
    let shape = KvShape::new(12, 4, 32).expect("a shape");
    let attend = |form: StoreForm, rope: bool| {
        let mut layer = Layer::new(shape, form).expect("a layer");
        if rope {
            let rope = Rope::new(32, 1e4).expect("an embedding");
            layer = layer.with_turned_keys(rope).expect("plain keys");
        }
        layer.append(k.view(), v.view()).expect("appends");
        let q = q.slice(s![256.., .., ..]);
        let mut out = Array3::zeros((44, 12, 32));
        let scratch = &mut Scratch::default();
        layer.attend(q, Causal::from(256), out.view_mut(), scratch, None).expect("attends");
        (out, 8.0 * layer.bytes() as f64 / (300 * 4 * 64) as f64)
    };
    let (exact, _) = attend(StoreForm::Float(DType::F32), false);
    let zip = |bits| ZipCache::default().with_bits(bits).with_chunk(60);
    let gear = |bits| Gear::default().with_bits(bits).with_chunk(60, 60);
    let kvq = |bits| KvQuant::default().with_bits(bits).with_fit(128, 1);
    let uniform = |bits| {
        let mut form = kvq(bits);
        form.levels = Levels::Uniform;
        form
    };
    let shrink = |keep| ChannelShrink::default().with_keep(keep, keep).with_fit(128);
    let cases: Vec<(&str, StoreForm, bool, f64)> = vec![
        ("kivi(bits=4)", integers(4, Axis::Channel), false, 0.039),
        ("kivi(bits=4, keys=token)", integers(4, Axis::Token), false, 0.051),
        ("kivi(bits=2)", integers(2, Axis::Channel), false, 0.2),
        ("kivi(bits=2, keys=token)", integers(2, Axis::Token), false, 0.28),
        ("hadamard_int", bare!(HadamardInt::default()), false, 0.05),
        ("hadamard_int(2, 2)", bare!(HadamardInt::default().with_bits(2, 2)), false, 0.29),
        ("hadamard_int(4, 2)", bare!(HadamardInt::default().with_bits(4, 2)), false, 0.16),
        ("zipcache(bits=4)", bare!(zip(4)), false, 0.045),
        ("zipcache(bits=2)", bare!(zip(2)), false, 0.24),
        (
            "zipcache(bits=2), released code's values",
            bare!(zip(2).with_values(Axis::Channel, Norm::Mean)),
            false,
            0.25,
        ),
        (
            "zipcache(bits=2), no norms",
            bare!(zip(2).with_values(Axis::Token, Norm::One)),
            false,
            0.24,
        ),
        ("gear(bits=4)", bare!(gear(4)), false, 0.033),
        ("gear(bits=2)", bare!(gear(2)), false, 0.18),
        ("gear(bits=2, rank=0)", bare!(gear(2).with_rank(0)), false, 0.2),
        (
            "gear(bits=2, rank=0, sparsity=0)",
            bare!(gear(2).with_rank(0).with_sparsity(0.0)),
            false,
            0.24,
        ),
        ("kvquant(bits=4)", bare!(kvq(4)), false, 0.04),
        ("kvquant(bits=3)", bare!(kvq(3)), false, 0.083),
        ("kvquant(bits=3), plain keys", bare!(kvq(3)), true, 0.075),
        ("kvquant(bits=3, levels=uniform)", bare!(uniform(3)), false, 0.091),
        ("kvquant(bits=2)", bare!(kvq(2)), false, 0.17),
        ("kvquant(bits=2, norm=true)", bare!(kvq(2).with_norm(true)), false, 0.16),
        (
            "pq_cache(sub=2, bits=6)",
            bare!(PqCache::default().with_codes(2, 6).with_fit(256)),
            false,
            0.11,
        ),
        (
            "pq_cache(sub=4, bits=8)",
            bare!(PqCache::default().with_codes(4, 8).with_fit(256)),
            false,
            0.14,
        ),
        ("channel_shrink(0.75), plain keys", bare!(shrink(0.75)), true, 0.24),
        ("channel_shrink(0.5), rotated keys", bare!(shrink(0.5)), false, 0.42),
        ("channel_shrink(0.5), plain keys", bare!(shrink(0.5)), true, 0.36),
        ("channel_shrink(0.5, bits=4), plain keys", bare!(shrink(0.5).with_bits(4)), true, 0.36),
        (
            "matryoshka_proj(0.95), plain keys",
            bare!(MatryoshkaProj::default().with_energy(0.95, 0.95).with_fit(128)),
            true,
            0.26,
        ),
    ];
    for (name, form, rope, most) in cases {
        let (out, bits) = attend(form, rope);
        let error = relative(&out, &exact);
        println!("| `{name}` | {bits:.2} | {error:.4} |");
        assert!(error < most, "{name}: {error}");
    }
}

/// Keys before rotary embedding and values of MiniLM's layer, fitted on 200 tokens and measured on 100.
#[test]
fn pages_for_the_disk_of_minilm() {
    let Some(file) = open("kvpress_gqa12x4_minilm_l2") else { return };
    let [k, v] = ["in.k_prerope", "in.v"].map(|name| tokens_first(&file, name));
    let (first, rest) = (s![..200, .., ..], s![200.., .., ..]);
    let exact = [&k, &v].map(|x| x.slice(rest).to_owned());
    for (bits, most) in [(1.0, 0.51), (2.0, 0.31), (3.0, 0.18), (4.0, 0.12)] {
        let config = KvtcConfig::default().with_bits(bits, bits);
        let codec = Kvtc::fit(k.slice(first), v.slice(first), config).expect("fits");
        let page = codec.encode(k.slice(rest), v.slice(rest)).expect("encodes");
        let (keys, values) = codec.decode(&page).expect("decodes");
        let held = 8.0 * page.len() as f64 / (100 * 4 * 64) as f64;
        let errors = [relative(&keys, &exact[0]), relative(&values, &exact[1])];
        println!("| {bits} | {held:.2} | {:.3} | {:.3} |", errors[0], errors[1]);
        assert!(errors.iter().all(|e| *e < most), "{bits}: {errors:?}");
    }
}

/// All five layers of stories260k: 256 tokens, 8 query heads, 4 heads of 8 channels; the last 32 queries.
#[test]
fn attention_of_stories() {
    let Some(file) = open("causal_stories260k") else { return };
    let shape = KvShape::new(8, 4, 8).expect("a shape");
    let rope = Rope::new(8, 1e4).expect("an embedding");
    let states: Vec<[Array3<f32>; 3]> = (0..5)
        .map(|l| ["k_rope", "v", "q_rope"].map(|name| tokens_first(&file, &format!("l{l}.{name}"))))
        .collect();
    let attend = |mut caches: Caches| {
        let mut all = Vec::new();
        for range in [0..224, 224..256] {
            all.clear();
            for (l, states) in states.iter().enumerate() {
                let [k, v, q] = states.each_ref().map(|x| x.slice(s![range.clone(), .., ..]));
                caches.append(l, k, v).expect("appends");
                let mut out = Array3::zeros((range.len(), 8, 8));
                let scratch = &mut Scratch::default();
                caches.attend(l, q, None, None, out.view_mut(), scratch).expect("attends");
                all.push(out);
            }
        }
        let views: Vec<_> = all.iter().map(|out| out.view()).collect();
        let all = ndarray::concatenate(ndarray::Axis(0), &views).expect("of one shape");
        (all, 8.0 * caches.bytes() as f64 / (5 * 256 * 4 * 16) as f64)
    };
    let joint =
        |form: Arc<dyn JointForm>| Caches::joint(form, &[shape; 5], Some(&rope)).expect("caches");
    let recipe = |line: &str| {
        let recipe: tensorpress_kvcache::KvRecipe = line.parse().expect("a recipe");
        recipe.with_rope(rope.clone()).together(&[shape; 5]).expect("caches")
    };
    let (exact, _) = attend(recipe("f32"));
    macro_rules! bare {
        ($form:expr) => {{
            let mut form = $form;
            (form.window, form.margin) = (0, 0);
            joint(Arc::new(form))
        }};
    }
    let mini = MiniCache::default().with_chunk(32).with_first(1);
    let xkv = XKv::default().with_chunk(128).with_group(5);
    let aqua = AquaKv::default().with_chunk(112);
    let cases: Vec<(&str, Caches, f64)> = vec![
        ("f16", recipe("f16"), 0.0021),
        ("minicache(first=1)", bare!(mini), 1.4),
        ("minicache(first=1, share=0.2)", bare!(mini.with_unmerged(Default::default(), 0.2)), 1.3),
        (
            "minicache(first=1, unmerged=nearest)",
            bare!(mini.with_unmerged(tensorpress_kvcache::store::Unmerged::Nearest, 0.05)),
            1.4,
        ),
        ("xkv(keys=1, values=1.5)", bare!(xkv.with_coordinates(1.0, 1.5)), 0.026),
        ("xkv(keys=2, values=3)", bare!(xkv.with_coordinates(2.0, 3.0)), 0.0059),
        ("aqua_kv(bits=2)", bare!(aqua), 0.58),
        ("aqua_kv(bits=3)", bare!(aqua.with_bits(3, 4)), 0.25),
        ("aqua_kv(bits=3, together=true)", bare!(aqua.with_bits(3, 4).with_together(true)), 0.26),
        (
            "aqua_kv(bits=3, ridge=1e6)",
            bare!({
                let mut a = aqua.with_bits(3, 4);
                a.ridge = 1e6;
                a
            }),
            0.73,
        ),
    ];
    for (name, caches, most) in cases {
        let (out, bits) = attend(caches);
        let error = relative(&out, &exact);
        println!("| `{name}` | {bits:.2} | {error:.4} |");
        assert!(error < most, "{name}: {error}");
    }
}
