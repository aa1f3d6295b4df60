//! A layer as arrays and a description. The layout of parts is that of the pages, whatever the CPU.

use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, Part, PartKind, PartSink, Result};

use super::form::StoreForm;
use super::head::Tier;
use super::int::Role;
use super::layer::{Head, Layer};
use super::{KvShape, Scoring, count};
use crate::rope::Rope;

const KIND: &str = "kv.layer.v1";

/// With a width of values, a scoring or values in keys, which readers of the first would not know of.
const KIND_2: &str = "kv.layer.v2";

impl Layer {
    pub(super) fn describe_layer(&self) -> Json {
        let tier = |tier: &Tier| {
            json!({
                "keys": tier.keys.describe(), "values": tier.values.as_ref().map(|v| v.describe()),
                "positions": tier.positions.is_some(),
            })
        };
        let head = |head: &Head| head.tiers().into_iter().map(tier).collect::<Vec<_>>();
        let KvShape { heads, kv_heads, head_dim, value_dim } = self.shape;
        let mut json = json!({
            "kind": KIND, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
            "form": self.form, "low": self.low, "rope": self.rope, "len": self.len, "settled": self.settled,
            "tiers": self.heads.iter().map(head).collect::<Vec<_>>(),
        });
        let plain = value_dim == head_dim && self.scoring == Scoring::default();
        if !plain || self.values_in_keys {
            json["kind"] = json!(KIND_2);
            json["value_dim"] = json!(value_dim);
            json["scoring"] = json!(self.scoring);
            json["values_in_keys"] = json!(self.values_in_keys);
        }
        json
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
            }
        }
        Ok(())
    }

    /// Reads a layer back from its description and parts.
    ///
    /// # Errors
    /// `Corruption`, `Version` or `InsufficientData`: a description and parts that contradict themselves or each other.
    pub fn read(json: &Json, prefix: &str, source: &dyn PartSource) -> Result<Self> {
        let bad = |why: String| Error::corruption(format!("KV cache description: {why}"));
        if json["kind"] != KIND && json["kind"] != KIND_2 {
            return Err(Error::new(
                tensorpress_tensor::ErrorKind::Version,
                format!("KV cache of kind {}: this build reads {KIND} and {KIND_2}", json["kind"]),
            ));
        }
        let mut shape =
            KvShape::new(count(json, "heads")?, count(json, "kv_heads")?, count(json, "head_dim")?)
                .map_err(|e| bad(e.message().into()))?;
        let parse = |key: &str| json[key].clone();
        let (mut scoring, mut values_in_keys) = (Scoring::default(), false);
        if json["kind"] == KIND_2 {
            let value_dim = count(json, "value_dim")?;
            shape = shape.with_value_dim(value_dim).map_err(|e| bad(e.message().into()))?;
            scoring = serde_json::from_value(parse("scoring")).map_err(|e| bad(e.to_string()))?;
            let flag = json["values_in_keys"].as_bool();
            values_in_keys = flag.ok_or_else(|| bad("`values_in_keys`".into()))?;
        }
        let form: StoreForm =
            serde_json::from_value(parse("form")).map_err(|e| bad(e.to_string()))?;
        let low: Option<StoreForm> =
            serde_json::from_value(parse("low")).map_err(|e| bad(e.to_string()))?;
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
        let mut layer = Self::new(empty, form).map_err(|e| bad(e.message().into()))?;
        if values_in_keys {
            layer = layer.with_values_in_keys().map_err(|e| bad(e.message().into()))?;
        }
        layer.shape = shape;
        layer = layer.with_scoring(scoring).map_err(|e| bad(e.message().into()))?;
        if let Some(rope) = rope {
            rope.check().map_err(|e| bad(e.message().into()))?;
            layer = layer.with_plain_keys(rope).map_err(|e| bad(e.message().into()))?;
        }
        if let Some(low) = low {
            layer = layer.with_low(low).map_err(|e| bad(e.message().into()))?;
        }
        for (h, tiers) in tiers.iter().enumerate() {
            let tiers = tiers
                .as_array()
                .filter(|t| (1..=1 + usize::from(low.is_some())).contains(&t.len()));
            let tiers = tiers.ok_or_else(|| bad(format!("`tiers` of head {h}")))?;
            let mut read = tiers.iter().enumerate().map(|(t, json)| {
                let form = if t == 0 { form } else { low.expect("there are two") };
                let prefix = format!("{prefix}.{h}.{t}");
                let widths = (shape.head_dim, shape.value_dim);
                read_tier(&form, widths, values_in_keys, json, &prefix, source, len, t > 0)
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
    (head_dim, value_dim): (usize, usize),
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
        if !form.agrees(role, dim, &json[key]) {
            return Err(bad(&format!("`{key}` do not have the form of the layer")));
        }
        form.read_rows(&json[key], dim, &format!("{prefix}.{key}"), source)
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
    Ok(Tier { keys, values, value_dim, scattered, positions })
}
