//! A cache with its policy as arrays and a description: what goes on after reading is what would have gone on.

use std::collections::VecDeque;

use serde_json::json;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{Bytes, Error, ErrorKind, PartKind, PartSink, Result};

use crate::budget::{Heads, Layers, Rule};
use crate::cache::Cache;
use crate::policy::{Action, Policy};
use crate::registry::KvRegistry;
use crate::statistics::{KvNeeds, MARGIN, Moments, Statistics};
use crate::store::{KvShape, KvStore, Layer, bytes_part, count, product, read_bytes};

const KIND: &str = "kv.cache.v1";

/// With a policy that readers of the first would take for another one.
const KIND_2: &str = "kv.cache.v2";

/// With a budget of one's own, or a rule for merging.
const KIND_3: &str = "kv.cache.v3";

fn bad(why: impl std::fmt::Display) -> Error {
    Error::corruption(format!("KV cache description: {why}"))
}

impl Cache {
    /// What a reader must know to read the parts.
    #[must_use]
    pub fn describe(&self) -> Json {
        let mut json = json!({ "kind": KIND, "layer": self.layer.describe() });
        if let Some((policy, statistics)) = &self.policy {
            if policy.is_newer() {
                json["kind"] = json!(KIND_2);
            }
            if policy.is_newest() {
                json["kind"] = json!(KIND_3);
            }
            json["policy"] = policy.describe();
            json["at"] = json!(self.at);
            json["statistics"] = statistics.describe();
        }
        json
    }

    /// Hands over every array, named from `prefix` on: those of [`Cache::store`], and the policy's statistics.
    ///
    /// # Errors
    /// Those of the sink; `InvalidArgument` within a repetition.
    pub fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.check_whole("written")?;
        self.layer.parts(prefix, sink)?;
        match &self.policy {
            None => Ok(()),
            Some((_, statistics)) => statistics.parts(&format!("{prefix}.statistics"), sink),
        }
    }

    /// Reads a cache back from its description and parts; policies have scores of this crate.
    ///
    /// # Errors
    /// `Corruption`, `Version` or `InsufficientData`: a description and parts that contradict themselves or each other;
    /// `Unsupported` for other scores.
    pub fn read(json: &Json, prefix: &str, source: &dyn PartSource) -> Result<Self> {
        Self::read_with(json, prefix, source, &KvRegistry::default())
    }

    /// [`Cache::read`] with scores, rules, budgets and forms of other crates.
    ///
    /// # Errors
    /// As there, and those of the registry.
    pub fn read_with(
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
        registry: &KvRegistry,
    ) -> Result<Self> {
        if ![KIND, KIND_2, KIND_3].iter().any(|kind| json["kind"] == *kind) {
            let (kind, kinds) = (&json["kind"], format!("{KIND}, {KIND_2} and {KIND_3}"));
            let why = format!("KV cache of kind {kind}: this build reads {kinds}");
            return Err(Error::new(ErrorKind::Version, why));
        }
        let layer = Layer::read_with(&json["layer"], prefix, source, registry)?;
        let mut cache = Self::new(layer);
        if json["policy"].is_null() {
            return Ok(cache);
        }
        let policy = Policy::read(&json["policy"], registry)?;
        cache.at = parse(json, "at")?;
        cache.at.check().map_err(|e| bad(e.message()))?;
        let (shape, needs) = (cache.layer.shape(), policy.needs());
        needs.check(shape).map_err(|e| bad(e.message()))?;
        let prefix = format!("{prefix}.statistics");
        let statistics = Statistics::read(&json["statistics"], shape, needs, &prefix, source)?;
        if statistics.next.max(statistics.settled) > cache.layer.len() {
            return Err(bad("statistics of more tokens than there are"));
        }
        cache.policy = Some((policy, statistics));
        Ok(cache)
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &Json, key: &str) -> Result<T> {
    T::deserialize(&json[key]).map_err(|e| bad(format!("`{key}`: {e}")))
}

impl Policy {
    /// Rules and shares that descriptions of the first kind cannot name.
    fn is_newer(&self) -> bool {
        let pyramid = matches!(self.layers, Layers::Pyramid { rule: Rule::Authors, .. });
        let heads = matches!(self.heads, Heads::Adaptive { rule: Rule::Authors, .. });
        pyramid || heads || self.recent_share > 0.0
    }

    /// What descriptions of the second kind cannot name.
    fn is_newest(&self) -> bool {
        let (heads, layers) = (&self.heads, &self.layers);
        let own = matches!(heads, Heads::Own(_)) || matches!(layers, Layers::Own(_));
        own || matches!(self.action, Action::Merge(_))
    }

    fn describe(&self) -> Json {
        let mut json = json!({
            "score": self.score.describe(), "budget": self.budget, "layers": self.layers.describe(),
            "heads": self.heads.describe(), "action": self.action.describe(), "sinks": self.sinks, "recent": self.recent,
            "stride": self.stride,
        });
        if self.recent_share > 0.0 {
            json["recent_share"] = json!(self.recent_share);
        }
        json
    }

    fn read(json: &Json, registry: &KvRegistry) -> Result<Self> {
        let policy = Self {
            score: registry.score(&json["score"])?,
            budget: parse(json, "budget")?,
            layers: Layers::read(&json["layers"], registry)?,
            heads: Heads::read(&json["heads"], registry)?,
            action: Action::read(&json["action"], registry)?,
            sinks: count(json, "sinks")?,
            recent: count(json, "recent")?,
            recent_share: parse::<Option<f64>>(json, "recent_share")?.unwrap_or(0.0),
            stride: count(json, "stride")?,
        };
        policy.check().map_err(|e| bad(e.message()))?;
        Ok(policy)
    }
}

/// Numbers as little-endian bytes.
fn u32s(values: impl IntoIterator<Item = usize>) -> Vec<u8> {
    values.into_iter().flat_map(|v| (v as u32).to_le_bytes()).collect()
}

fn f32s<'a>(rows: impl IntoIterator<Item = &'a Vec<f32>>) -> Vec<u8> {
    rows.into_iter().flatten().flat_map(|v| v.to_le_bytes()).collect()
}

fn to_u32s(bytes: &Bytes) -> impl Iterator<Item = usize> {
    bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b) as usize)
}

fn to_f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Newest queries and where they stand.
type Queries = VecDeque<(usize, Vec<f32>)>;

impl Statistics {
    fn describe(&self) -> Json {
        let mut json = json!({
            "next": self.next, "settled": self.settled, "recent": self.recent.len(), "plain": self.plain.len(),
            "mass": self.mass.iter().map(Vec::len).collect::<Vec<_>>(), "pending": self.pending.len(),
            "count": self.moments.first().map_or(0, |m| m.count as u64),
        });
        if self.needs.repetition.is_some() {
            json["repeated"] = json!(self.repeated);
        }
        json
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let mut put =
            |name: &str, kind, bytes: Vec<u8>| bytes_part(sink, prefix, name, kind, &bytes);
        let KvNeeds { queries, mass, moments, .. } = self.needs();
        if *queries > 0 {
            put("recent.positions", PartKind::Indices, u32s(self.recent.iter().map(|(p, _)| *p)))?;
            put("recent", PartKind::Values, f32s(self.recent.iter().map(|(_, q)| q)))?;
        }
        if *mass {
            put("mass", PartKind::Values, f32s(&self.mass))?;
            let lengths = |(p, heads): &(usize, Vec<Vec<f32>>)| {
                std::iter::once(*p).chain(heads.iter().map(Vec::len)).collect::<Vec<_>>()
            };
            let lengths = u32s(self.pending.iter().flat_map(lengths));
            put("pending.lengths", PartKind::Indices, lengths)?;
            let values = f32s(self.pending.iter().flat_map(|(_, heads)| heads));
            put("pending", PartKind::Values, values)?;
        }
        if moments.is_some() {
            put("plain.positions", PartKind::Indices, u32s(self.plain.iter().map(|(p, _)| *p)))?;
            put("plain", PartKind::Values, f32s(self.plain.iter().map(|(_, q)| q)))?;
            for (name, of) in
                [("sums", (|m| &m.sum) as fn(&Moments) -> &Vec<f64>), ("products", |m| &m.products)]
            {
                let values = self.moments.iter().flat_map(of);
                put(name, PartKind::Values, values.flat_map(|v| v.to_le_bytes()).collect())?;
            }
        }
        Ok(())
    }

    fn read(
        json: &Json,
        shape: KvShape,
        needs: KvNeeds,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self> {
        let (next, settled) = (count(json, "next")?, count(json, "settled")?);
        let repeated = needs.repetition.is_some() && parse::<bool>(json, "repeated")?;
        let part = |name: &str, sizes: &[usize]| read_bytes(source, prefix, name, product(sizes)?);
        let queries = |name: &str, most: usize| -> Result<Queries> {
            let n = count(json, name)?;
            if n > most {
                return Err(bad(format!("`{name}` = {n}: at most {most}")));
            }
            let positions = part(&format!("{name}.positions"), &[n, 4])?;
            let values = part(name, &[n, shape.heads, shape.head_dim, 4])?;
            let rows = values.chunks_exact((values.len() / n.max(1)).max(1)).map(to_f32s);
            let queries: Queries = to_u32s(&positions).zip(rows).collect();
            let ascend = queries.iter().zip(queries.iter().skip(1)).all(|(a, b)| a.0 <= b.0);
            if !ascend || queries.back().is_some_and(|(p, _)| *p >= next) {
                return Err(bad(format!("`{name}`: positions that descend, or not yet seen")));
            }
            Ok(queries)
        };
        // Nothing is sized by heads that no bytes back.
        let none = KvShape { heads: 0, kv_heads: 0, ..shape };
        let mut read = Self { next, settled, repeated, ..Self::new(none, needs) };
        read.shape = shape;
        if read.needs.queries > 0 {
            read.recent = queries("recent", read.needs.queries.saturating_add(MARGIN))?;
        }
        read.mass = vec![Vec::new(); shape.kv_heads];
        if read.needs.mass {
            (read.mass, read.pending) = read_mass(json, shape.kv_heads, next, &part)?;
        }
        if read.needs.moments.is_some() {
            read.plain = queries("plain", MARGIN)?;
            let (heads, dim, count) = (shape.heads, shape.head_dim, count(json, "count")?);
            let sums = part("sums", &[heads, dim, 8])?;
            let products = part("products", &[heads, dim, dim, 8])?;
            let f64s = |bytes: &[u8]| -> Vec<f64> {
                bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
            };
            let of = |(sum, products): (&[u8], &[u8])| Moments {
                count: count as f64,
                sum: f64s(sum),
                products: f64s(products),
            };
            let rows = sums.chunks_exact(dim * 8).zip(products.chunks_exact(dim * dim * 8));
            read.moments = rows.map(of).collect();
        }
        Ok(read)
    }
}

type Mass = (Vec<Vec<f32>>, VecDeque<(usize, Vec<Vec<f32>>)>);

/// Attention received: added up, and that of the newest queries.
fn read_mass(
    json: &Json,
    kv_heads: usize,
    next: usize,
    part: &dyn Fn(&str, &[usize]) -> Result<Bytes>,
) -> Result<Mass> {
    let cut = |bytes: &Bytes, lengths: &[usize]| -> Vec<Vec<f32>> {
        let mut values = &bytes[..];
        let one = |n: &usize| {
            let (row, rest) = values.split_at(4 * n);
            values = rest;
            to_f32s(row)
        };
        lengths.iter().map(one).collect()
    };
    let total = |lengths: &[usize]| {
        let sum = lengths.iter().try_fold(0usize, |a, b| a.checked_add(*b));
        sum.ok_or_else(|| bad("sizes overflow"))
    };
    let lengths: Vec<usize> = parse(json, "mass")?;
    if lengths.len() != kv_heads {
        return Err(bad(format!("`mass` of {} heads, {kv_heads} expected", lengths.len())));
    }
    let values = part("mass", &[total(&lengths)?, 4])?;
    let mass = cut(&values, &lengths);
    let n = count(json, "pending")?;
    if n > MARGIN {
        return Err(bad(format!("`pending` = {n}: at most {MARGIN}")));
    }
    let numbers = part("pending.lengths", &[n, kv_heads + 1, 4])?;
    let numbers: Vec<usize> = to_u32s(&numbers).collect();
    let rows = || numbers.chunks_exact(kv_heads + 1);
    if rows().any(|row| row[0] >= next) {
        return Err(bad("`pending`: positions not yet seen"));
    }
    let lengths: Vec<usize> = rows().flat_map(|row| row[1..].iter().copied()).collect();
    let values = part("pending", &[total(&lengths)?, 4])?;
    let heads = cut(&values, &lengths);
    let pending = rows().map(|row| row[0]).zip(heads.chunks_exact(kv_heads).map(<[_]>::to_vec));
    Ok((mass, pending.collect()))
}

impl Statistics {
    /// Bytes of the parts of these statistics.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let rows = |queries: &Queries| {
            queries.iter().map(|(_, q)| 4 + size_of_val(q.as_slice())).sum::<usize>()
        };
        let values =
            |heads: &Vec<Vec<f32>>| heads.iter().map(|h| size_of_val(h.as_slice())).sum::<usize>();
        let pending = |(_, heads): &(usize, Vec<Vec<f32>>)| 4 + 4 * heads.len() + values(heads);
        let moments = |m: &Moments| 8 * (m.sum.len() + m.products.len());
        let bytes = rows(&self.recent)
            + rows(&self.plain)
            + values(&self.mass)
            + self.pending.iter().map(pending).sum::<usize>()
            + self.moments.iter().map(moments).sum::<usize>();
        bytes as u64
    }
}
