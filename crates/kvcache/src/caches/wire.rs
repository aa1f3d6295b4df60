//! Caches of all layers as arrays and a description: what goes on after reading is what would have gone on.

use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{Error, ErrorKind, PartSink, Result};

use super::{Caches, Joint};
use crate::cache::Cache;
use crate::registry::KvRegistry;
use crate::store::{Joined, KvShape, KvStore, MEMBER, StoreForm, count};

const KIND: &str = "kv.caches.v1";

fn bad(why: impl std::fmt::Display) -> Error {
    Error::corruption(format!("KV cache description: {why}"))
}

impl Caches {
    /// What a reader must know to read the parts.
    #[must_use]
    pub fn describe(&self) -> Json {
        let joint = self.joint.as_ref().map(|joint| {
            let pages = joint
                .groups
                .iter()
                .map(|group| group.pages.iter().map(|page| page.describe()).collect::<Vec<_>>());
            json!({ "form": joint.form.describe(), "pages": pages.collect::<Vec<_>>() })
        });
        let layers: Vec<_> = self.layers.iter().map(Cache::describe).collect();
        json!({ "kind": KIND, "layers": layers, "seen": self.seen, "owners": self.owners, "joint": joint })
    }

    /// Hands over every array, named from `prefix` on: those of each layer, and shared pages once.
    ///
    /// # Errors
    /// Those of the sink; `InvalidArgument` within a repetition.
    pub fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.check_whole("written")?;
        for (layer, cache) in self.layers.iter().enumerate() {
            cache.parts(&format!("{prefix}.layer.{layer}"), sink)?;
        }
        for (g, group) in self.joint.iter().flat_map(|joint| &joint.groups).enumerate() {
            for (p, page) in group.pages.iter().enumerate() {
                page.parts(&format!("{prefix}.group.{g}.{p}"), sink)?;
            }
        }
        Ok(())
    }

    /// Reads caches back from their description and parts; `registry` has whatever else than this crate's own they name.
    ///
    /// # Errors
    /// `Corruption`, `Version` or `InsufficientData`: a description and parts that contradict themselves or each other;
    /// `Unsupported` for what the registry does not have.
    pub fn read(
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
        registry: &KvRegistry,
    ) -> Result<Self> {
        if json["kind"] != KIND {
            let why = format!("KV caches of kind {}: this build reads {KIND}", json["kind"]);
            return Err(Error::new(ErrorKind::Version, why));
        }
        let described = json["layers"].as_array().ok_or_else(|| bad("`layers`: an array"))?;
        let shapes = described.iter().map(|json| shape(&json["layer"])).collect::<Result<Vec<_>>>();
        let joint = match &json["joint"] {
            Json::Null => None,
            joint => Some(read_pages(joint, &shapes?, prefix, source, registry)?),
        };
        let mut layers = Vec::with_capacity(described.len());
        for (at, json) in described.iter().enumerate() {
            let prefix = format!("{prefix}.layer.{at}");
            // A layer's part of the pages is a form that only these caches know.
            let cache = match joint.as_ref().map(|joint| joint.store(at)) {
                Some(StoreForm::Own(form)) => {
                    let registry = registry.clone().with_form(MEMBER, move |_| Ok(form.clone()));
                    Cache::read_with(json, &prefix, source, &registry)?
                }
                _ => Cache::read_with(json, &prefix, source, registry)?,
            };
            layers.push(cache);
        }
        let numbers = |key: &str| -> Result<Vec<usize>> {
            let list = json[key].as_array().filter(|list| list.len() == layers.len());
            let list = list.ok_or_else(|| bad(format!("`{key}`: a number for each layer")))?;
            list.iter().map(|n| count(&json!({ "n": n }), "n")).collect()
        };
        let (seen, owners) = (numbers("seen")?, numbers("owners")?);
        for (at, cache) in layers.iter().enumerate() {
            let owner = owners.get(owners[at]).is_some_and(|of| *of == owners[at]);
            let held = if owners[at] == at { seen[at] } else { 0 };
            if !owner || owners[at] > at || cache.len() != held {
                return Err(bad(format!("layer {at}: `owners`, `seen` or its length")));
            }
        }
        if let Some(joint) = &joint {
            check_pages(joint, &mut layers)?;
        }
        let caches = Self::new(layers);
        let mut caches = if owners.iter().enumerate().all(|(at, owner)| at == *owner) {
            caches
        } else {
            caches.reading(&owners).map_err(|e| bad(e.message()))?
        };
        (caches.seen, caches.joint) = (seen, joint);
        Ok(caches)
    }
}

/// The heads that a layer's description declares.
fn shape(json: &Json) -> Result<KvShape> {
    let shape =
        KvShape::new(count(json, "heads")?, count(json, "kv_heads")?, count(json, "head_dim")?);
    let shape = shape.map_err(|e| bad(e.message()))?;
    match &json["value_dim"] {
        Json::Null => Ok(shape),
        _ => shape.with_value_dim(count(json, "value_dim")?).map_err(|e| bad(e.message())),
    }
}

fn read_pages(
    json: &Json,
    shapes: &[KvShape],
    prefix: &str,
    source: &dyn PartSource,
    registry: &KvRegistry,
) -> Result<Joint> {
    let form = registry.joint(&json["form"])?;
    let mut joint = Joint::new(form, shapes).map_err(|e| bad(e.message()))?;
    let pages = json["pages"].as_array().filter(|pages| pages.len() == joint.groups.len());
    let pages = pages.ok_or_else(|| bad("`pages`: those of each group"))?;
    for (g, (group, pages)) in joint.groups.iter_mut().zip(pages).enumerate() {
        let pages = pages.as_array().ok_or_else(|| bad(format!("`pages` of group {g}")))?;
        for (p, json) in pages.iter().enumerate() {
            let (first, prefix) = (group.pages.first().cloned(), format!("{prefix}.group.{g}.{p}"));
            let page = joint.form.read_page(
                group.layers.clone(),
                first.as_deref(),
                json,
                &prefix,
                source,
            )?;
            if page.tokens() != joint.form.paging().chunk {
                let tokens = page.tokens();
                return Err(bad(format!("a page of {tokens} tokens")).in_tensor(prefix));
            }
            group.pages.push(page);
        }
    }
    Ok(joint)
}

/// Every layer of a group has all its pages.
fn check_pages(joint: &Joint, layers: &mut [Cache]) -> Result<()> {
    for group in &joint.groups {
        for at in group.layers.clone() {
            let layer = &mut layers[at].layer;
            for head in 0..layer.shape().kv_heads {
                let rows = layer.joined(head);
                let whole = |rows: &Option<&mut Joined>| {
                    rows.as_ref().is_some_and(|rows| rows.pages.len() == group.pages.len())
                };
                if !rows.iter().all(whole) {
                    return Err(bad(format!("layer {at}: not all pages of its group")));
                }
            }
        }
    }
    Ok(())
}
