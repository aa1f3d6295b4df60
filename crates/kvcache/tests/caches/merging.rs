//! Slots that stand for several tokens.

use std::sync::Arc;

use ndarray::{Array2, s};
use tensorpress_kvcache::{
    Action, Budget, Cache, Causal, Held, KvRegistry, KvStore, Layer, LayerAt, Merge, Merged,
    StoreForm, policy,
};
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, Result, Scratch, Storage, ndarray};

use super::{HEADS, KV_HEADS, file, shape, states};

/// Every slot that goes is added to the next kept one before it, by the mean weighted by tokens.
#[derive(Debug, Clone)]
struct Before;

impl Merge for Before {
    fn id(&self) -> &'static str {
        "before"
    }

    fn merge(&self, held: Held<'_>, head: usize, keep: &[usize]) -> Result<Merged> {
        let (keys, values) = held.store.decode(head);
        let weights = held.store.weights(head);
        let mut merged = Merged::keep(keep, &keys, &values, &weights);
        for slot in 0..weights.len() {
            let at = keep.partition_point(|kept| *kept <= slot);
            if at == 0 || keep[at - 1] == slot {
                continue;
            }
            let (mine, theirs) = (merged.weights[at - 1], weights[slot]);
            let share = theirs / (mine + theirs);
            for (all, from) in [(&mut merged.keys, &keys), (&mut merged.values, &values)] {
                let mut row = all.row_mut(at - 1);
                row.zip_mut_with(&from.row(slot), |to, x| *to += share * (x - *to));
            }
            merged.weights[at - 1] += theirs;
            merged.into[slot] = Some(at - 1);
        }
        Ok(merged)
    }
}

fn cache(form: StoreForm, tokens: usize) -> Cache {
    let layer = Layer::new(shape(), form).expect("a layer");
    let policy = policy::h2o(0.0, Budget::Tokens(tokens)).with_protected(4, 8).with_stride(1);
    let policy = policy.with_action(Action::Merge(Arc::new(Before)));
    Cache::new(layer).with_policy(policy, LayerAt { index: 0, of: 1 }).expect("a policy")
}

fn fill(cache: &mut Cache, tokens: std::ops::Range<usize>) {
    let [k, v, q] = states(0, 400).map(|x| x.slice(s![tokens.clone(), .., ..]).to_owned());
    let mut out = q.clone();
    cache.append(k.view(), v.view()).expect("appends");
    cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default()).expect("attends");
}

#[test]
fn a_slot_of_w_tokens_weighs_as_w_equal_ones() {
    for form in [StoreForm::Float(DType::F32), StoreForm::Float(DType::F16)] {
        let mut cache = cache(form, 30);
        fill(&mut cache, 0..100);
        (100..140).for_each(|t| fill(&mut cache, t..t + 1));
        let store = cache.store();
        let [_, _, q] = states(7, 3);
        let mut out = q.clone();
        let causal = Causal::from(137);
        store
            .attend(q.view(), causal, out.view_mut(), &mut Scratch::default(), None)
            .expect("attends");
        for head in 0..HEADS {
            let kv = head / (HEADS / KV_HEADS);
            let ((keys, values), weights) = (store.decode(kv), store.weights(kv));
            let positions = store.positions(kv);
            assert_eq!(weights.len(), 30);
            // Nothing was lost: the first tokens always stay, so every token went into one before it.
            assert_eq!(weights.iter().sum::<f32>(), 140.0);
            for row in 0..3 {
                let query = q.slice(s![row, head, ..]);
                let seen: Vec<usize> = (0..30).filter(|s| positions[*s] <= 137 + row).collect();
                let score = |slot: &usize| {
                    let dot: f64 =
                        query.iter().zip(keys.row(*slot)).map(|(a, b)| f64::from(a * b)).sum();
                    (dot / 4.0).exp() * f64::from(weights[*slot])
                };
                let sum: f64 = seen.iter().map(score).sum();
                for c in 0..q.dim().2 {
                    let mixed: f64 = seen
                        .iter()
                        .map(|slot| score(slot) / sum * f64::from(values[[*slot, c]]))
                        .sum();
                    let got = f64::from(out[[row, head, c]]);
                    assert!((got - mixed).abs() < 1e-5, "{got} against {mixed}");
                }
            }
        }
    }
}

#[test]
fn attention_received_goes_with_the_tokens() {
    let mut cache = cache(StoreForm::Float(DType::F32), 30);
    fill(&mut cache, 0..100);
    let (_, statistics) = cache.policy().expect("a policy");
    // Each of 100 queries of 2 heads gave 1 in all.
    for head in 0..KV_HEADS {
        let sum: f32 = statistics.mass(head, 30).iter().sum();
        assert!((sum - 200.0).abs() < 1e-3, "{sum}");
    }
}

#[test]
fn merged_caches_go_on_from_files_and_back_to_lengths() {
    let mut cache = cache(StoreForm::Float(DType::F16), 30);
    fill(&mut cache, 0..90);
    let error = cache.truncate(80).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let mut parts = Storage::default();
    cache.store().parts("kv", &mut parts).expect("counts");
    assert_eq!(parts.bytes(), cache.bytes(), "bytes written = bytes claimed");
    let bytes = file(&|sink| cache.parts("kv", sink));
    let file = Checkpoint::from_bytes("kv", bytes).expect("a file");
    let registry = KvRegistry::default().with_merge("before", |_| Ok(Arc::new(Before)));
    let mut back = Cache::read_with(&cache.describe(), "kv", &file, &registry).expect("reads");
    for t in 90..130 {
        fill(&mut cache, t..t + 1);
        fill(&mut back, t..t + 1);
    }
    for head in 0..KV_HEADS {
        assert_eq!(back.store().decode(head), cache.store().decode(head));
        assert_eq!(back.store().weights(head), cache.store().weights(head));
    }
    assert!(Cache::read(&cache.describe(), "kv", &file).is_err());
    cache.truncate(0).expect("empty");
    fill(&mut cache, 0..20);
    assert!(cache.store().weights(0).iter().all(|w| *w == 1.0));
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let mut layer = Layer::new(shape(), StoreForm::Float(DType::F32)).expect("a layer");
    let [k, v, _] = states(0, 5);
    layer.append(k.view(), v.view()).expect("appends");
    let good = |layer: &Layer, head: usize| {
        let (keys, values) = layer.decode(head);
        Merged::keep(&[0, 3], &keys, &values, &[1.0; 5])
    };
    let both: Vec<Merged> = (0..KV_HEADS).map(|head| good(&layer, head)).collect();
    type Damage = Box<dyn Fn(&mut Merged)>;
    let bad: Vec<Damage> = vec![
        Box::new(|m| m.slots = vec![3, 0]),
        Box::new(|m| m.slots = vec![0, 9]),
        Box::new(|m| m.keys = Array2::zeros((2, 3))),
        Box::new(|m| m.weights[1] = 0.0),
        Box::new(|m| m.weights[0] = f32::NAN),
        Box::new(|m| m.keys[[0, 0]] = f32::INFINITY),
        Box::new(|m| m.into = vec![Some(2); 5]),
        Box::new(|m| m.into = vec![None; 4]),
    ];
    for damage in bad {
        let mut merged = both.clone();
        damage(&mut merged[1]);
        layer.merge(&merged).unwrap_err();
        assert_eq!(layer.held(0), 5, "as it was");
    }
    layer.merge(&both[..1]).unwrap_err();
    layer.merge(&both).expect("merges");
    assert_eq!((layer.held(0), layer.positions(1)), (2, vec![0, 3]));
}
