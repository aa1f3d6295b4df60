//! Who reads the descriptions of caches: scores, merging rules, budgets and forms by name, this crate's and one's own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use crate::budget::{HeadBudget, LayerBudget};
use crate::merge::{self, Merge};
use crate::score::{self, Score};
use crate::spread;
use crate::store::{self, Form, JointForm};

/// Makes something from its description.
pub type Describes<T> = Arc<dyn Fn(&Json) -> Result<Arc<T>> + Send + Sync>;

/// Readers of descriptions, by the `id` in them. The default has those of this crate.
///
/// ```
/// use std::sync::Arc;
/// use tensorpress_kvcache::{Held, KvRegistry, Score};
///
/// /// Later tokens matter more, those at even positions most.
/// #[derive(Debug)]
/// struct Even;
/// impl Score for Even {
///     fn id(&self) -> &'static str {
///         "even"
///     }
///     fn score(&self, held: Held<'_>) -> tensorpress_tensor::Result<Vec<Vec<f32>>> {
///         let of = |head| held.store.positions(head).iter().map(|p| f32::from(p % 2 == 0)).collect();
///         Ok((0..held.store.shape().kv_heads).map(of).collect())
///     }
/// }
/// // `Cache::read_with` now reads caches whose policy has this score.
/// let registry = KvRegistry::default().with_score("even", |_| Ok(Arc::new(Even)));
/// # let _ = registry;
/// ```
#[derive(Clone)]
pub struct KvRegistry {
    scores: BTreeMap<&'static str, Describes<dyn Score>>,
    merges: BTreeMap<&'static str, Describes<dyn Merge>>,
    heads: BTreeMap<&'static str, Describes<dyn HeadBudget>>,
    layers: BTreeMap<&'static str, Describes<dyn LayerBudget>>,
    forms: BTreeMap<&'static str, Describes<dyn Form>>,
    joint: BTreeMap<&'static str, Describes<dyn JointForm>>,
}

impl fmt::Debug for KvRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scores: Vec<_> = self.scores.keys().collect();
        let forms: Vec<_> = self.forms.keys().chain(self.joint.keys()).collect();
        f.debug_struct("KvRegistry").field("scores", &scores).field("forms", &forms).finish()
    }
}

impl Default for KvRegistry {
    fn default() -> Self {
        let none = Self {
            scores: BTreeMap::new(),
            merges: BTreeMap::new(),
            heads: BTreeMap::new(),
            layers: BTreeMap::new(),
            forms: BTreeMap::new(),
            joint: BTreeMap::new(),
        };
        let all = score::IDS.iter().fold(none, |all, id| all.with_score(id, score::read));
        let all = merge::IDS.iter().fold(all, |all, id| all.with_merge(id, merge::read));
        let all = all.with_head_budget("entropy", spread::read_entropy);
        let all = all.with_head_budget("retrieval", spread::read_retrieval);
        let all = all.with_layer_budget("shares", spread::read_shares);
        store::readers(all)
    }
}

/// The reader of what a description names.
fn find<'a, T: ?Sized>(
    what: &str,
    readers: &'a BTreeMap<&'static str, Describes<T>>,
    json: &Json,
) -> Result<&'a Describes<T>> {
    let Some(id) = json["id"].as_str() else {
        return Err(Error::corruption(format!("KV cache description: {what} {json}: `id`")));
    };
    readers.get(id).ok_or_else(|| {
        let known: Vec<_> = readers.keys().copied().collect();
        let known = known.join(", ");
        Error::unsupported(format!("{what} `{id}` is not of this crate: known are {known}"))
    })
}

macro_rules! readers {
    ($($field:ident, $with:ident, $read:ident, $object:ident, $what:literal;)*) => {
        impl KvRegistry {
            $(
                #[doc = concat!("Adds, or takes the place of, a ", $what, ".")]
                #[must_use]
                pub fn $with(
                    mut self,
                    id: &'static str,
                    read: impl Fn(&Json) -> Result<Arc<dyn $object>> + Send + Sync + 'static,
                ) -> Self {
                    self.$field.insert(id, Arc::new(read));
                    self
                }

                #[doc = concat!("A ", $what, " from its description.")]
                ///
                /// # Errors
                /// `Corruption` for parameters that cannot be, `Unsupported` for a name that is not there.
                pub fn $read(&self, json: &Json) -> Result<Arc<dyn $object>> {
                    find($what, &self.$field, json)?(json)
                }
            )*
        }
    };
}

readers! {
    scores, with_score, score, Score, "score";
    merges, with_merge, merge, Merge, "merging rule";
    heads, with_head_budget, head_budget, HeadBudget, "budget of heads";
    layers, with_layer_budget, layer_budget, LayerBudget, "budget of layers";
    forms, with_form, form, Form, "form";
    joint, with_joint, joint, JointForm, "form of layers together";
}
