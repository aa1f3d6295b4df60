//! The stages of recipes: every method of this crate, with its own metric.

use std::sync::Arc;

use tensorpress_tensor::stage::{Inside, Keys, Knobs, Row, WeightPart, WeightRole};
use tensorpress_tensor::{DType, DynCompress, Error, Method, Result};

use crate::dictionary;
use crate::dobi::dobi_svd;
use crate::factors::Factors;
use crate::lowrank::{LowRank, asvd, eora, feature_mimicking, lord, rom, svd, svd_llm};
use crate::metric::{InputScale, Metric};
use crate::rank::Rank;
use crate::saes::saes_svd;

/// All stages of this crate.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    let mut all = vec![
        row("factors of the closest matrix of a rank; needs no calibration", svd),
        row("factors after inputs were scaled by how active they are", |rank| {
            asvd(rank, InputScale::default().alpha)
        }),
        row("factors that lose least of the outputs", svd_llm),
        row(
            "factors that also make good for what compressed layers before did to inputs",
            saes_svd,
        ),
        row("projects outputs on directions that batches agree on; factors in 8 bits", dobi_svd),
        row("projects outputs on their leading directions: the same product as by whitening", lord),
        row("as `lord`, on inputs as compressed layers make them", rom),
        row("projects outputs less their mean, which a bias carries", feature_mimicking),
        crate::bitstack::stage(),
        dictionary::dsformer_stage(),
        dictionary::rocket_stage(),
        crate::alds::stage(),
        correction(),
    ];
    all.extend(crate::operator::stages());
    all
}

/// Rank, factors, and whatever the metric brings along.
impl<M: Metric> Knobs for LowRank<M> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        if keys.peek("bits").is_some() {
            self.rank = Rank::Ratio(0.0);
        }
        self.rank.knobs(keys)?;
        self.factors.knobs(keys)?;
        let about = "bits a weight that all matrices take together, ranks by what bits gain, in the place of a ratio";
        keys.optional_float("bits", &mut self.bits, 0.05..=32.0, about)?;
        let about = "with bits: ranks by singular values in parts of each matrix's largest, whatever errors cost";
        keys.flag("relative", &mut self.relative, about)?;
        if let (Some(bits), true) = (self.bits, self.rank != Rank::Ratio(0.0)) {
            let rank = self.rank;
            return Err(Error::invalid(format!(
                "bits = {bits} and {rank:?}: allowed is one of them"
            )));
        }
        // A correction is asked for: it is never left out to save bytes.
        self.always |= keys.corrects();
        self.metric.knobs(keys)
    }
}

impl Knobs for Factors {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let mut kind = Kind::of(self);
        let about = "stored type of the factors, where no quantiser stands inside; remapped: 8 bits, and 16 for what the \
                     longer factor has more";
        keys.choice("factors", &mut kind, &KINDS, about)?;
        *self = match kind {
            Kind::Source => Self::Source,
            Kind::Float(dtype) => Self::Float(dtype),
            Kind::Remapped => Self::Remapped,
        };
        Ok(())
    }
}

/// A way to store factors that a recipe has a word for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Source,
    Float(DType),
    Remapped,
}

const KINDS: [(&str, Kind); 5] = [
    ("source", Kind::Source),
    ("f16", Kind::Float(DType::F16)),
    ("bf16", Kind::Float(DType::BF16)),
    ("f32", Kind::Float(DType::F32)),
    ("remapped", Kind::Remapped),
];

impl Kind {
    fn of(factors: &Factors) -> Self {
        match factors {
            Factors::Float(dtype) => Self::Float(*dtype),
            Factors::Remapped => Self::Remapped,
            _ => Self::Source,
        }
    }

    fn word(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("source", |(word, _)| word)
    }
}

/// A method's stage has the method's name.
fn row<M: Metric + Clone + 'static>(
    about: &'static str,
    default: fn(Rank) -> LowRank<M>,
) -> Row<WeightPart> {
    let default = move || default(Rank::default());
    let name = default().id();
    Row::method_with(name, about, default, move |method: LowRank<M>, inner| {
        stored_by(name, method, inner, default().factors)
    })
}

/// EoRA has a number of its own for a rank, and stands inside a residual.
#[derive(Debug, Clone)]
struct Eora {
    rank: usize,
    factors: Factors,
}

impl Default for Eora {
    fn default() -> Self {
        let rank = 16;
        Self { rank, factors: eora(rank).factors }
    }
}

impl Knobs for Eora {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("rank", &mut self.rank, 1..=1 << 20, "inner size")?;
        self.factors.knobs(keys)
    }
}

fn correction() -> Row<WeightPart> {
    let name = eora(Eora::default().rank).id();
    let about = "in `residual`: the factors of a rank that make good most of the outputs";
    let build = move |knobs: Eora, inner| {
        let method = eora(knobs.rank).with_factors(knobs.factors);
        let inner = match inner {
            Some(WeightPart::Method(inner)) => Some(inner),
            _ => None,
        };
        stored_by(name, method, inner, Eora::default().factors).map(WeightPart::Method)
    };
    Row::new(name, WeightRole::Correction, about, Eora::default, build)
        .with_inside(Inside::Maybe(vec![WeightRole::Quantiser]))
}

/// The method whose factors are stored as it says, or by the method inside its parentheses.
fn stored_by<M: Metric + 'static>(
    name: &str,
    method: LowRank<M>,
    inner: Option<Box<dyn DynCompress>>,
    default: Factors,
) -> Result<Box<dyn DynCompress>> {
    let Some(inner) = inner else { return Ok(Box::new(method)) };
    let (factors, inner_id) = (Kind::of(&method.factors), inner.id());
    if factors != Kind::of(&default) {
        let message = format!(
            "{name}: factors = {} with `{inner_id}`, which decides how they are stored",
            factors.word()
        );
        return Err(Error::invalid(message));
    }
    Ok(Box::new(method.with_factors(Factors::By(Arc::from(inner)))))
}
