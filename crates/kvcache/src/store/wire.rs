//! A layer as arrays and a description. The layout of parts is that of the pages, whatever the CPU.

use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, Part, PartKind, PartSink, Result};

use super::form::StoreForm;
use super::head::Tier;
use super::int::Role;
use super::layer::{Head, Layer};
use super::{KvShape, Scoring, count};
use crate::registry::KvRegistry;
use crate::rope::Rope;

const KIND: &str = "kv.layer.v1";

/// With a width of values, a scoring or values in keys, which readers of the first would not know of.
const KIND_2: &str = "kv.layer.v2";

/// With a form that is not built in, keys that are turned back, or slots that stand for several tokens.
const KIND_3: &str = "kv.layer.v3";

impl Layer {
    pub(super) fn describe_layer(&self) -> Json {
        let tier = |tier: &Tier| {
            let mut json = json!({
                "keys": tier.keys.describe(), "values": tier.values.as_ref().map(|v| v.describe()),
                "positions": tier.positions.is_some(),
            });
            if tier.weights.is_some() {
                json["weights"] = json!(true);
            }
            json
        };
        let head = |head: &Head| head.tiers().into_iter().map(tier).collect::<Vec<_>>();
        let KvShape { heads, kv_heads, head_dim, value_dim } = self.shape;
        let mut json = json!({
            "kind": KIND, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
            "form": self.form.describe(), "low": self.low.as_ref().map(StoreForm::describe), "rope": self.rope, "len": self.len, "settled": self.settled,
            "tiers": self.heads.iter().map(head).collect::<Vec<_>>(),
        });
        let plain = value_dim == head_dim && self.scoring == Scoring::default();
        if !plain || self.values_in_keys {
            json["kind"] = json!(KIND_2);
            json["value_dim"] = json!(value_dim);
            json["scoring"] = json!(self.scoring);
            json["values_in_keys"] = json!(self.values_in_keys);
        }
        if self.is_newest() {
            json["kind"] = json!(KIND_3);
            json["value_dim"] = json!(value_dim);
            json["scoring"] = json!(self.scoring);
            json["values_in_keys"] = json!(self.values_in_keys);
            json["turned"] = json!(self.turned);
        }
        json
    }

    /// Something that readers of the second kind would not know of.
    fn is_newest(&self) -> bool {
        let own = |form: &StoreForm| matches!(form, StoreForm::Own(_));
        let weighs = |head: &Head| head.tiers().into_iter().any(|tier| tier.weights.is_some());
        own(&self.form) || self.low.iter().any(own) || self.turned || self.heads.iter().any(weighs)
    }

    pub(super) fn write_parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        for (h, head) in self.heads.iter().enumerate() {
            for (t, tier) in head.tiers().into_iter().enumerate() {
                let prefix = format!("{prefix}.{h}.{t}");
                tier.keys.parts(&format!("{prefix}.keys"), sink)?;
                if let Some(values) = &tier.values {
                    values.parts(&format!("{prefix}.values"), sink)?;
                }
                if let Some(positions) = &tier.positions {
                    let bytes: Vec<u8> = positions.iter().flat_map(|p| p.to_le_bytes()).collect();
                    sink.part(Part {
                        name: format!("{prefix}.positions"),
                        kind: PartKind::Indices,
                        dtype: DType::U32,
                        shape: vec![positions.len()],
                        bytes: bytes.into(),
                    })?;
                }
                if let Some(weights) = &tier.weights {
                    let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
                    sink.part(Part {
                        name: format!("{prefix}.weights"),
                        kind: PartKind::Values,
                        dtype: DType::F32,
                        shape: vec![weights.len()],
                        bytes: bytes.into(),
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Reads a layer back from its description and parts.
    ///
    /// # Errors
    /// `Corruption`, `Version` or `InsufficientData`: a description and parts that contradict themselves or each other.
    pub fn read(json: &Json, prefix: &str, source: &dyn PartSource) -> Result<Self> {
        Self::read_with(json, prefix, source, &KvRegistry::default())
    }

    /// [`Layer::read`] with forms of other crates.
    ///
    /// # Errors
    /// As there; `Unsupported` for a form that the registry does not have.
    pub fn read_with(
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
        registry: &KvRegistry,
    ) -> Result<Self> {
        let bad = |why: String| Error::corruption(format!("KV cache description: {why}"));
        if ![KIND, KIND_2, KIND_3].iter().any(|kind| json["kind"] == *kind) {
            let kinds = format!("{KIND}, {KIND_2} and {KIND_3}");
            return Err(Error::new(
                tensorpress_tensor::ErrorKind::Version,
                format!("KV cache of kind {}: this build reads {kinds}", json["kind"]),
            ));
        }
        let mut shape =
            KvShape::new(count(json, "heads")?, count(json, "kv_heads")?, count(json, "head_dim")?)
                .map_err(|e| bad(e.message().into()))?;
        let parse = |key: &str| json[key].clone();
        let (mut scoring, mut values_in_keys) = (Scoring::default(), false);
        if json["kind"] != KIND {
            let value_dim = count(json, "value_dim")?;
            shape = shape.with_value_dim(value_dim).map_err(|e| bad(e.message().into()))?;
            scoring = serde_json::from_value(parse("scoring")).map_err(|e| bad(e.to_string()))?;
            let flag = json["values_in_keys"].as_bool();
            values_in_keys = flag.ok_or_else(|| bad("`values_in_keys`".into()))?;
        }
        let form = StoreForm::read(&json["form"], registry)?;
        let low = match &json["low"] {
            Json::Null => None,
            low => Some(StoreForm::read(low, registry)?),
        };
        let rope: Option<Rope> =
            serde_json::from_value(parse("rope")).map_err(|e| bad(e.to_string()))?;
        let (len, settled) = (count(json, "len")?, count(json, "settled")?);
        let tiers = json["tiers"].as_array().filter(|t| t.len() == shape.kv_heads);
        let tiers = tiers.ok_or_else(|| bad("`tiers`: an array for each head".into()))?;
        if settled > len || len > u32::MAX as usize {
            return Err(bad(format!("`len` = {len}, `settled` = {settled}")));
        }
        // No heads are made yet: a declared number of them is not believed before their tiers are there.
        let empty = KvShape { kv_heads: 0, ..shape };
        let mut layer = Self::new(empty, form.clone()).map_err(|e| bad(e.message().into()))?;
        if values_in_keys {
            layer = layer.with_values_in_keys().map_err(|e| bad(e.message().into()))?;
        }
        layer.shape = shape;
        layer = layer.with_scoring(scoring).map_err(|e| bad(e.message().into()))?;
        if let Some(rope) = rope {
            rope.check().map_err(|e| bad(e.message().into()))?;
            layer = layer.with_plain_keys(rope).map_err(|e| bad(e.message().into()))?;
            layer.turned = json["turned"].as_bool().unwrap_or(false);
        }
        if let Some(low) = &low {
            layer = layer.with_low(low.clone()).map_err(|e| bad(e.message().into()))?;
        }
        for (h, tiers) in tiers.iter().enumerate() {
            let tiers = tiers
                .as_array()
                .filter(|t| (1..=1 + usize::from(low.is_some())).contains(&t.len()));
            let tiers = tiers.ok_or_else(|| bad(format!("`tiers` of head {h}")))?;
            let mut read = tiers.iter().enumerate().map(|(t, json)| {
                let form = if t == 0 { &form } else { low.as_ref().expect("there are two") };
                let prefix = format!("{prefix}.{h}.{t}");
                let widths = (h, shape.head_dim, shape.value_dim);
                read_tier(form, widths, values_in_keys, json, &prefix, source, len, t > 0)
            });
            let main = read.next().expect("there is one")?;
            if main.positions.is_none() && main.len() != len {
                return Err(bad(format!("head {h} holds {} tokens of {len}", main.len())));
            }
            layer.heads.push(Head { main, low: read.next().transpose()? });
        }
        (layer.len, layer.settled) = (len, settled);
        Ok(layer)
    }
}

fn read_tier(
    form: &StoreForm,
    (head, head_dim, value_dim): (usize, usize, usize),
    values_in_keys: bool,
    json: &Json,
    prefix: &str,
    source: &dyn PartSource,
    len: usize,
    scattered: bool,
) -> Result<Tier> {
    let bad =
        |why: &str| Error::corruption(format!("KV cache description: {why}")).in_tensor(prefix);
    let rows = |key: &str, role, dim| {
        let prefix = format!("{prefix}.{key}");
        let rows = form.read_rows((role, head, dim), &json[key], &prefix, source)?;
        if rows.dim() != dim {
            return Err(bad(&format!("`{key}` of {} channels, {dim} expected", rows.dim())));
        }
        Ok(rows)
    };
    let keys = rows("keys", Role::Keys, head_dim)?;
    let values = match values_in_keys {
        true if json["values"].is_null() => None,
        true => return Err(bad("`values` beside those in the keys")),
        false => Some(rows("values", Role::Values, value_dim)?),
    };
    if values.as_ref().is_some_and(|values| values.len() != keys.len()) {
        return Err(bad("keys and values of different length"));
    }
    let positions = match json["positions"].as_bool() {
        Some(false) if !scattered => None,
        Some(true) => {
            let bytes = super::read_bytes(source, prefix, "positions", 4 * keys.len())?;
            let at: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            let ascending = scattered || at.windows(2).all(|w| w[0] < w[1]);
            if !ascending || at.iter().any(|p| *p as usize >= len) {
                return Err(bad("positions that do not ascend, or lie behind the last token"));
            }
            Some(at)
        }
        _ => return Err(bad("`positions`")),
    };
    let weights = match &json["weights"] {
        Json::Null => None,
        Json::Bool(true) => {
            let bytes = super::read_bytes(source, prefix, "weights", 4 * keys.len())?;
            let weights: Vec<f32> =
                bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if weights.iter().any(|w| !(w.is_finite() && *w > 0.0)) {
                return Err(bad("weights that are not above 0"));
            }
            Some(weights)
        }
        _ => return Err(bad("`weights`")),
    };
    Ok(Tier { keys, values, value_dim, scattered, positions, weights })
}
