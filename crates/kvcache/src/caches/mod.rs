//! The caches of all layers of a model, which may share what they hold.

mod kept;
mod repeating;
mod wire;

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array3, ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use crate::budget::LayerAt;
use crate::cache::Cache;
use crate::rope::Rope;
use crate::store::{
    Bias, Causal, JointForm, JointPage, KvShape, KvStore, Layer, Member, Reader, StoreForm,
};

/// What an engine holds of all layers: a [`Cache`] for each, which may share pages with its neighbours ([`JointForm`]) or
/// read those of a layer before it.
///
/// ```
/// use tensorpress_kvcache::KvRecipe;
/// use tensorpress_tensor::ndarray::Array3;
/// use tensorpress_tensor::Scratch;
///
/// // Four layers; the last one reads the keys and values of the third.
/// let recipe: KvRecipe = "f16".parse()?;
/// let shape = tensorpress_kvcache::KvShape::new(2, 1, 32)?;
/// let mut caches = recipe.together(&[shape; 4])?.with_owners(&[0, 1, 2, 2])?;
/// for layer in 0..caches.layers() {
///     let (k, mut out) = (Array3::from_elem((5, 1, 32), 0.5), Array3::zeros((5, 2, 32)));
///     caches.append(layer, k.view(), k.view())?;
///     caches.attend(layer, Array3::ones((5, 2, 32)).view(), None, None, out.view_mut(), &mut Scratch::default())?;
/// }
/// assert_eq!(caches.bytes(), 3 * 5 * 2 * 32 * 2);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Caches {
    pub(crate) layers: Vec<Cache>,
    /// Tokens appended to each layer: readers hold none.
    pub(crate) seen: Vec<usize>,
    /// Whose keys and values each layer reads.
    pub(crate) owners: Vec<usize>,
    readers: Vec<Option<Reader>>,
    /// Tokens of the context of each layer that says it again.
    contexts: Vec<Option<usize>>,
    /// Whose repetition has ended, while others say their context again.
    ended: Vec<bool>,
    pub(crate) joint: Option<Joint>,
}

/// Layers that share pages.
#[derive(Debug, Clone)]
pub(crate) struct Joint {
    pub(crate) form: Arc<dyn JointForm>,
    pub(crate) groups: Vec<Group>,
}

#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) layers: Range<usize>,
    pub(crate) pages: Vec<Arc<dyn JointPage>>,
}

impl Joint {
    pub(crate) fn new(form: Arc<dyn JointForm>, shapes: &[KvShape]) -> Result<Self> {
        let groups = form.groups(shapes.len());
        let mut end = 0;
        for group in &groups {
            if group.start < end || group.end > shapes.len() || group.is_empty() {
                let (id, of) = (form.id(), shapes.len());
                return Err(Error::invalid(format!("{id}: layers {group:?} of {of} as a group")));
            }
            end = group.end;
            let first = shapes[group.start];
            form.check(first, shapes.len())?;
            if let Some(other) = shapes[group.clone()].iter().find(|s| !alike(**s, first)) {
                let id = form.id();
                return Err(Error::shape(format!("{id}: {other:?} in a group with {first:?}")));
            }
        }
        let pages = |layers| Group { layers, pages: Vec::new() };
        Ok(Self { form, groups: groups.into_iter().map(pages).collect() })
    }

    /// How a layer holds its part.
    pub(crate) fn store(&self, layer: usize) -> StoreForm {
        let group = self.groups.iter().find(|group| group.layers.contains(&layer));
        let member = |group: &Group| {
            let (member, pages) = (layer - group.layers.start, group.pages.clone());
            StoreForm::Own(Arc::new(Member { paging: self.form.paging(), member, pages }))
        };
        group.map_or(StoreForm::Float(tensorpress_tensor::DType::F32), member)
    }

    /// An empty layer.
    pub(crate) fn layer(&self, shape: KvShape, at: usize, rope: Option<&Rope>) -> Result<Layer> {
        let form = self.store(at);
        let grouped = matches!(form, StoreForm::Own(_));
        let layer = Layer::new(shape, form)?;
        match rope {
            Some(rope) if grouped && self.form.plain_keys() && rope.dim() == shape.head_dim => {
                layer.with_turned_keys(rope.clone())
            }
            _ => Ok(layer),
        }
    }
}

/// The same keys and values, whatever the queries.
fn alike(a: KvShape, b: KvShape) -> bool {
    (a.kv_heads, a.head_dim, a.value_dim) == (b.kv_heads, b.head_dim, b.value_dim)
}

impl Caches {
    /// Layers that know nothing of each other.
    #[must_use]
    pub fn new(layers: Vec<Cache>) -> Self {
        let of = layers.len();
        let seen = layers.iter().map(Cache::len).collect();
        let readers = vec![None; of];
        let (owners, contexts, ended) = ((0..of).collect(), vec![None; of], vec![false; of]);
        Self { layers, seen, owners, readers, contexts, ended, joint: None }
    }

    /// Layers of these shapes that share pages; keys are held before this rotary embedding where the form wants that.
    ///
    /// # Errors
    /// Those of [`JointForm::check`]; `ShapeMismatch` for a group of unlike layers.
    pub fn joint(
        form: Arc<dyn JointForm>,
        shapes: &[KvShape],
        rope: Option<&Rope>,
    ) -> Result<Self> {
        let joint = Joint::new(form, shapes)?;
        let layer = |(at, shape): (usize, &KvShape)| {
            let layer = joint.layer(*shape, at, rope)?;
            let mut cache = Cache::new(layer);
            cache.at = LayerAt { index: at, of: shapes.len() };
            Ok(cache)
        };
        let layers = shapes.iter().enumerate().map(layer).collect::<Result<_>>()?;
        Ok(Self { joint: Some(joint), ..Self::new(layers) })
    }

    /// Says whose keys and values each layer reads: its own, or those of a layer before it that holds its own. What is
    /// appended to readers is not held.
    ///
    /// # Errors
    /// `InvalidArgument` for owners that come later, or read others themselves, or where there are tokens already;
    /// `ShapeMismatch` for layers of unlike heads, or another number of owners; `Unsupported` with shared pages.
    pub fn with_owners(self, owners: &[usize]) -> Result<Self> {
        if self.joint.is_some() {
            return Err(Error::unsupported("layers that read others' keys where pages are shared"));
        }
        if !self.is_empty() {
            return Err(Error::invalid("owners: said while the caches are empty"));
        }
        self.reading(owners)
    }

    /// Caches whose layers read each other so.
    fn reading(mut self, owners: &[usize]) -> Result<Self> {
        if owners.len() != self.layers.len() {
            let (found, layers) = (owners.len(), self.layers.len());
            return Err(Error::shape(format!("owners of {found} layers, {layers} expected")));
        }
        let mut readers = vec![None; owners.len()];
        for (layer, owner) in owners.iter().enumerate() {
            if *owner > layer || owners[*owner] != *owner {
                return Err(Error::invalid(format!(
                    "layer {layer} reads layer {owner}: allowed are itself and earlier layers that hold their own"
                )));
            }
            if *owner < layer {
                let (mine, theirs) = (self.layers[layer].shape(), self.layers[*owner].shape());
                if !alike(mine, theirs) {
                    return Err(Error::shape(format!(
                        "layer {layer} of {mine:?} reads layer {owner} of {theirs:?}"
                    )));
                }
                let scoring = self.layers[layer].layer.scoring().clone();
                readers[layer] = Some(Reader::new(theirs, mine.heads)?.with_scoring(scoring)?);
            }
        }
        (self.owners, self.readers) = (owners.to_vec(), readers);
        Ok(self)
    }

    /// Layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The cache of a layer, which is empty where it reads another one.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn layer(&self, layer: usize) -> &Cache {
        &self.layers[layer]
    }

    /// Whose keys and values each layer reads.
    #[must_use]
    pub fn owners(&self) -> &[usize] {
        &self.owners
    }

    /// Says how a layer's products of queries and keys become weights.
    ///
    /// # Errors
    /// As [`Cache::with_scoring`].
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn with_scoring(mut self, layer: usize, scoring: crate::store::Scoring) -> Result<Self> {
        self.layers[layer].layer =
            self.layers[layer].layer.clone().with_scoring(scoring.clone())?;
        if let Some(reader) = self.readers[layer].take() {
            self.readers[layer] = Some(reader.with_scoring(scoring)?);
        }
        Ok(self)
    }

    /// Tokens appended to the first layer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.first().copied().unwrap_or(0)
    }

    /// Tokens appended to a layer.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn seen(&self, layer: usize) -> usize {
        self.seen[layer]
    }

    /// Nothing was appended to any layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.iter().all(|seen| *seen == 0)
    }

    /// Bytes held, shared pages once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (0..self.layers.len()).map(|layer| self.layer_bytes(layer)).sum()
    }

    /// Bytes held of a layer; shared pages are those of the first layer of their group.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn layer_bytes(&self, layer: usize) -> u64 {
        let groups = self.joint.iter().flat_map(|joint| &joint.groups);
        let pages = groups.filter(|group| group.layers.start == layer).flat_map(|g| &g.pages);
        self.layers[layer].bytes() + pages.map(|page| page.bytes()).sum::<u64>()
    }

    /// Takes keys and values of the next tokens of a layer; see [`Cache::append`]. Layers come in order, each with the same
    /// tokens.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for a layer that is not there or whose tokens a shared page does not have yet.
    pub fn append(
        &mut self,
        layer: usize,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
    ) -> Result<()> {
        self.check(layer)?;
        let tokens = keys.dim().0;
        if self.owners[layer] == layer {
            self.layers[layer].append(keys, values)?;
        } else if self.seen[self.owners[layer]] != self.seen[layer] + tokens {
            let (owner, mine) = (self.seen[self.owners[layer]], self.seen[layer] + tokens);
            return Err(Error::invalid(format!(
                "layer {layer}: {mine} tokens, and {owner} in the layer whose keys it reads"
            )));
        }
        self.seen[layer] += tokens;
        Ok(())
    }

    /// Attention of the queries of the tokens that were appended last to a layer, and then what its policy says; see
    /// [`Cache::attend_with`]. What has left the window of all layers of a group is packed after the last one's.
    ///
    /// # Errors
    /// As there, and those of [`JointForm::pack`].
    pub fn attend(
        &mut self,
        layer: usize,
        queries: ArrayView3<'_, f32>,
        window: Option<usize>,
        bias: Option<Bias<'_>>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.check(layer)?;
        let Some(first) = self.seen[layer].checked_sub(queries.dim().0) else {
            let (tokens, held) = (queries.dim().0, self.seen[layer]);
            return Err(Error::invalid(format!("{tokens} queries of {held} tokens")));
        };
        if let Some(reader) = &self.readers[layer] {
            let owner = self.layers[self.owners[layer]].store();
            let causal = Causal { first, window };
            return reader.attend(owner, queries, causal, bias, out, scratch, None);
        }
        self.layers[layer].attend_with(queries, window, bias, out, scratch)?;
        self.pack(layer)
    }

    fn check(&self, layer: usize) -> Result<()> {
        if layer < self.layers.len() {
            return Ok(());
        }
        Err(Error::invalid(format!("layer {layer} of {}", self.layers.len())))
    }

    /// Packs whole chunks, if this layer is the last of its group.
    fn pack(&mut self, layer: usize) -> Result<()> {
        let Some(joint) = &mut self.joint else { return Ok(()) };
        let last = |group: &&mut Group| group.layers.end == layer + 1;
        let Some(group) = joint.groups.iter_mut().find(last) else { return Ok(()) };
        let span = group.layers.clone();
        while let Some((keys, values)) = next(&mut self.layers[span.clone()]) {
            let first = group.pages.first().map(|page| &**page);
            let page = joint.form.pack(span.clone(), first, &keys, &values)?;
            for cache in &mut self.layers[span.clone()] {
                for head in 0..cache.layer.shape().kv_heads {
                    let rows = cache.layer.joined(head);
                    rows.into_iter().flatten().for_each(|rows| rows.take(page.clone()));
                }
            }
            group.pages.push(page);
        }
        Ok(())
    }

    /// The shortest length, but 0, to which [`Caches::truncate`] can go back.
    #[must_use]
    pub fn earliest(&self) -> usize {
        self.layers.iter().map(Cache::earliest).max().unwrap_or(0)
    }

    /// Goes back to the first `len` tokens in all layers: as if the others had never been.
    ///
    /// # Errors
    /// As [`KvStore::truncate`], and `InvalidArgument` within a repetition; the caches are then as they were.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.check_whole("truncate")?;
        if len > self.len() {
            let held = self.len();
            return Err(Error::invalid(format!("truncate to {len}: there are {held} tokens")));
        }
        if len != 0 && len < self.len() && len < self.earliest() {
            let (earliest, held) = (self.earliest(), self.len());
            return Err(Error::unsupported(format!(
                "truncate to {len}: tokens were evicted, packed or counted since; allowed are 0 and {earliest} to {held}"
            )));
        }
        for (cache, seen) in self.layers.iter_mut().zip(&mut self.seen) {
            if cache.len() > len {
                cache.truncate(len)?;
            }
            *seen = len.min(*seen);
        }
        if let Some(joint) = &mut self.joint {
            for group in &mut joint.groups {
                let [keys, _] = self.layers[group.layers.start].layer.joined(0);
                group.pages.truncate(keys.map_or(0, |rows| rows.pages.len()));
            }
        }
        Ok(())
    }

    /// Caches of their own with the same contents; full pages are shared until one side changes them.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }
}

/// Keys or values of each layer, a chunk of tokens.
type Chunk = Vec<Array3<f32>>;

/// The next chunk of all layers of a group, once all have it: keys and values.
fn next(layers: &mut [Cache]) -> Option<(Chunk, Chunk)> {
    let mut found = [Vec::new(), Vec::new()];
    for cache in layers {
        let KvShape { kv_heads, head_dim, value_dim, .. } = cache.layer.shape();
        let mut all: [Option<Array3<f32>>; 2] = [None, None];
        for head in 0..kv_heads {
            let rows = cache.layer.joined(head);
            for ((rows, all), dim) in rows.into_iter().zip(&mut all).zip([head_dim, value_dim]) {
                let rows = rows?;
                let chunk = rows.next()?;
                let all = all.get_or_insert_with(|| Array3::zeros((chunk.nrows(), kv_heads, dim)));
                all.index_axis_mut(ndarray::Axis(1), head).assign(&chunk);
            }
        }
        for (found, all) in found.iter_mut().zip(all) {
            found.push(all?);
        }
    }
    let [keys, values] = found;
    Some((keys, values))
}
