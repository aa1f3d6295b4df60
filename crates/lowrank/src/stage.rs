//! The stages of recipes: every method of this crate, with its own metric.

use std::sync::Arc;

use tensorpress_tensor::stage::{Inside, Keys, Knobs, Row, WeightPart, WeightRole};
use tensorpress_tensor::{DType, DynCompress, Error, Result};

use crate::factors::Factors;
use crate::lowrank::{LowRank, asvd, eora, feature_mimicking, lord, svd, svd_llm};
use crate::metric::{InputScale, Metric};
use crate::rank::Rank;

/// All stages of this crate.
#[must_use]
pub fn stages() -> Vec<Row<WeightPart>> {
    vec![
        row("svd", "factors of the closest matrix of a rank; needs no calibration", svd),
        row("asvd", "factors after inputs were scaled by how active they are", |rank| {
            asvd(rank, InputScale::default().alpha)
        }),
        row("svd_llm", "factors that lose least of the outputs", svd_llm),
        row("lord", "projects outputs on their leading directions: the product of svd_llm", lord),
        row(
            "feature_mimicking",
            "projects outputs less their mean, which a bias carries",
            feature_mimicking,
        ),
        correction(),
    ]
}

/// Rank, factors, and whatever the metric brings along.
impl<M: Metric> Knobs for LowRank<M> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.rank.knobs(keys)?;
        self.factors.knobs(keys)?;
        // A correction is asked for: it is never left out to save bytes.
        self.always |= keys.corrects();
        self.metric.knobs(keys)
    }
}

impl Knobs for Factors {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let types = [
            ("source", None),
            ("f16", Some(DType::F16)),
            ("bf16", Some(DType::BF16)),
            ("f32", Some(DType::F32)),
        ];
        let mut dtype = match self {
            Self::Float(dtype) => Some(*dtype),
            _ => None,
        };
        let about = "stored type of the factors, where no quantiser stands inside";
        keys.choice("factors", &mut dtype, &types, about)?;
        *self = dtype.map_or(Self::Source, Self::Float);
        Ok(())
    }
}

fn row<M: Metric + Clone + 'static>(
    name: &'static str,
    about: &'static str,
    default: fn(Rank) -> LowRank<M>,
) -> Row<WeightPart> {
    let default = move || default(Rank::default());
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
    let name = "eora";
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
    match (&method.factors, &default) {
        (Factors::Float(a), Factors::Float(b)) if a == b => {}
        (Factors::Source, Factors::Source) => {}
        (Factors::Float(dtype), _) => {
            let (dtype, inner) = (format!("{dtype:?}").to_lowercase(), inner.id());
            return Err(Error::invalid(format!(
                "{name}: factors = {dtype} with `{inner}`, which decides how they are stored"
            )));
        }
        _ => {
            return Err(Error::invalid(format!(
                "{name}: factors = source with `{}`, which decides how they are stored",
                inner.id()
            )));
        }
    }
    Ok(Box::new(method.with_factors(Factors::By(Arc::from(inner)))))
}
