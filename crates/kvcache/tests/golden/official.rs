use ndarray::{Axis, s};
use tensorpress_kvcache::policy::{h2o, pyramidkv, snapkv, streaming};
use tensorpress_kvcache::score::{Accumulated, KeyNorm, Pooling, QueryWindow, Recency};
use tensorpress_kvcache::{Bitmap, Budget, KvShape, KvStore, Layer, LayerAt, Policy, StoreForm};
use tensorpress_tensor::{DType, ndarray};

use crate::{Case, ints, open, same_sets, sets, tokens_first};

/// The official SnapKV and KVCache-Factory's policies work per query head: keys are repeated.
#[test]
fn snapkv_official_sets() {
    let Some(file) = open("snapkv_official") else { return };
    let mut checked = 0;
    for layer in 0..5 {
        let k = tokens_first(&file, &format!("l{layer}.in.k_rope"));
        let q = tokens_first(&file, &format!("l{layer}.in.q_rope"));
        let k = k.select(Axis(1), &[0, 0, 1, 1, 2, 2, 3, 3]);
        let case = Case { v: k.clone(), k, q };
        let budget = Budget::Tokens(80);
        let window = case.scores(QueryWindow::new(16, 5));
        let max = QueryWindow::new(16, 5).with_pooling(Pooling::Max);
        let mut received = case.scores(Accumulated::default());
        received.iter_mut().for_each(|s| s[200 - 16..].fill(f32::INFINITY));
        // Factory's StreamingLLM keeps 64 sinks and its window of 16.
        let cases = [
            ("snapkv_official_avgpool_w16_cap80", snapkv(16, 5, budget), window.clone()),
            ("snapkv_official_maxpool_w16_cap80", Policy::new(max, budget), case.scores(max)),
            ("factory_H2OKVCluster", h2o(0.0, budget).with_protected(0, 16), received),
            ("factory_PyramidKVCluster", pyramidkv(16, 20.0, budget), window),
            ("factory_L2NormCluster", Policy::new(KeyNorm, budget), case.scores(KeyNorm)),
            ("factory_StreamingLLMKVCluster", streaming(64, budget), case.scores(Recency)),
        ];
        for (name, policy, scores) in cases {
            let theirs = sets(&ints(&file, &format!("l{layer}.{name}.kept_order")), 8);
            let mine = case.kept(policy, LayerAt { index: layer, of: 5 });
            same_sets(&mine, &theirs, &scores, &format!("{name}, layer {layer}"));
            checked += 1;
        }
    }
    println!("snapkv: 1 file, {checked} kept sets equal");
}

#[test]
fn mustafar() {
    let Some(file) = open("mustafar") else { return };
    let mut checked = 0;
    let (k, v) = (tokens_first(&file, "in.k"), tokens_first(&file, "in.v"));
    for sparsity in [0.3, 0.5, 0.7] {
        let form = Bitmap::new(sparsity).with_dtype(DType::F32).with_window(0);
        let by_channel = StoreForm::Bitmap(form.with_value_group(32));
        let form = StoreForm::Bitmap(form);
        let mut layer =
            Layer::new(KvShape::new(4, 4, 32).expect("a shape"), form).expect("a layer");
        layer.append(k.view(), v.view()).expect("appends");
        let mut grouped = Layer::new(layer.shape(), by_channel).expect("a layer");
        grouped.append(k.view(), v.view()).expect("appends");
        for (name, layer, is_key) in [
            ("key_pertoken", &layer, true),
            ("val_pertoken", &layer, false),
            ("val_perchannel_g32", &grouped, false),
        ] {
            let theirs = tokens_first(&file, &format!("{name}_s{sparsity}"));
            for h in 0..4 {
                let (keys, values) = layer.decode(h);
                assert_eq!(
                    if is_key { keys } else { values },
                    theirs.slice(s![.., h, ..]),
                    "{name} {sparsity}"
                );
            }
            checked += 1;
        }
    }
    println!("mustafar: 1 file, {checked} tensors equal");
}
