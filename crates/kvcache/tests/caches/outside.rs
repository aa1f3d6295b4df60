//! Forms and budgets of other crates.

use std::sync::Arc;

use serde_json::{Value, json};
use tensorpress_kvcache::{
    Budget, Cache, Form, HeadBudget, Heads, Held, KvRecipe, KvRegistry, KvShape, KvStore, Layer,
    LayerAt, LayerBudget, Layers, Role, Rows, StoreForm, policy,
};
use tensorpress_tensor::node::PartSource;
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, Result, Scratch};

use super::{DIM, HEADS, KV_HEADS, file, shape, states};

/// f32 in even heads, f16 in odd ones of late layers.
#[derive(Debug, Clone)]
struct ByHead {
    late: bool,
}

impl ByHead {
    fn of(&self, head: usize) -> StoreForm {
        let small = self.late && head % 2 == 1;
        StoreForm::Float(if small { DType::F16 } else { DType::F32 })
    }
}

impl Form for ByHead {
    fn id(&self) -> &'static str {
        "by_head"
    }

    fn describe(&self) -> Value {
        json!({ "id": self.id(), "late": self.late })
    }

    fn check(&self, keys: usize, _: usize) -> Result<()> {
        self.of(0).check(keys)
    }

    fn at(&self, layer: LayerAt) -> Option<Arc<dyn Form>> {
        Some(Arc::new(Self { late: 2 * layer.index >= layer.of }))
    }

    fn rows(&self, role: Role, head: usize, dim: usize) -> Box<dyn Rows> {
        self.of(head).rows(role, head, dim)
    }

    fn read_rows(
        &self,
        place: (Role, usize, usize),
        json: &Value,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Box<dyn Rows>> {
        self.of(place.1).read_rows(place, json, prefix, source)
    }
}

/// All of a layer's tokens go to one head, but one of each other.
#[derive(Debug, Clone)]
struct Favourite(usize);

impl HeadBudget for Favourite {
    fn id(&self) -> &'static str {
        "favourite"
    }

    fn describe(&self) -> Value {
        json!({ "id": self.id(), "head": self.0 })
    }

    fn counts(&self, held: Held<'_>, scores: &[Vec<f32>], tokens: usize) -> Result<Vec<usize>> {
        assert_eq!(held.at, LayerAt { index: 1, of: 3 });
        let others = scores.len() - 1;
        let count = |h| if h == self.0 { tokens * scores.len() - others } else { 1 };
        Ok((0..scores.len()).map(count).collect())
    }
}

/// Twice as many in the first half.
#[derive(Debug, Clone)]
struct FirstHalf;

impl LayerBudget for FirstHalf {
    fn id(&self) -> &'static str {
        "first_half"
    }

    fn tokens(&self, layer: LayerAt, _: usize, mean: f64) -> usize {
        (mean * if 2 * layer.index < layer.of { 4.0 / 3.0 } else { 2.0 / 3.0 }) as usize
    }
}

fn fill(cache: &mut Cache, tokens: usize) {
    let [k, v, q] = states(0, tokens);
    let mut out = q.clone();
    cache.append(k.view(), v.view()).expect("appends");
    cache.attend(q.view(), None, out.view_mut(), &mut Scratch::default()).expect("attends");
}

fn registry() -> KvRegistry {
    KvRegistry::default()
        .with_form("by_head", |json| Ok(Arc::new(ByHead { late: json["late"] == true })))
        .with_head_budget("favourite", |json| {
            Ok(Arc::new(Favourite(json["head"].as_u64().expect("a head") as usize)))
        })
        .with_layer_budget("first_half", |_| Ok(Arc::new(FirstHalf)))
}

#[test]
fn forms_and_budgets_from_outside() {
    let at = LayerAt { index: 1, of: 3 };
    let form = StoreForm::own(ByHead { late: false });
    assert_eq!(form.at(LayerAt { index: 2, of: 3 }), StoreForm::own(ByHead { late: true }));
    let layer = Layer::new(shape(), StoreForm::own(ByHead { late: true })).expect("a layer");
    let mut policy = policy::knorm(Budget::Tokens(20));
    policy = policy.with_heads(Heads::Own(Arc::new(Favourite(1))));
    policy = policy.with_layers(Layers::Own(Arc::new(FirstHalf)));
    let mut cache = Cache::new(layer).with_policy(policy, at).expect("a policy");
    fill(&mut cache, 100);
    // 26 = 20 x 4/3 a head: one of the first head's, 51 of the second's.
    let held: Vec<usize> = (0..KV_HEADS).map(|h| cache.store().held(h)).collect();
    assert_eq!(held, [1, 51]);
    let (wide, small) = (DIM * 2 * 4 + 4, DIM * 2 * 2 + 4);
    assert_eq!(cache.bytes(), (wide + 51 * small) as u64);

    let bytes = file(&|sink| cache.parts("kv", sink));
    let file = Checkpoint::from_bytes("kv", bytes).expect("a file");
    let json = cache.describe();
    let back = Cache::read_with(&json, "kv", &file, &registry()).expect("reads");
    assert_eq!(back.describe(), json);
    for head in 0..KV_HEADS {
        assert_eq!(back.store().decode(head), cache.store().decode(head));
    }
    let error = Cache::read(&json, "kv", &file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("`by_head`"), "{error}");
}

#[test]
fn recipes_make_caches_of_unlike_layers() {
    let recipe: KvRecipe =
        "kivi(bits=4, group=16, residual=16) | knorm(keep=0.5)".parse().expect("a recipe");
    let wide = KvShape::new(8, 4, 32).expect("a shape");
    let caches = recipe.together(&[shape(), wide, shape()]).expect("caches");
    let shapes: Vec<_> = (0..3).map(|layer| caches.layer(layer).shape()).collect();
    assert_eq!(shapes, [shape(), wide, shape()]);
    let at: Vec<_> = (0..3).map(|layer| caches.layer(layer).at().index).collect();
    assert_eq!(at, [0, 1, 2]);
    assert_eq!(HEADS, caches.layer(2).shape().heads);
}
