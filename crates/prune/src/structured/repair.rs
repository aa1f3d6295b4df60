//! What is done to the units that stay.

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, Axis, concatenate};
use tensorpress_tensor::rewrite::{Change, Edit, Judgement, ModelLayout};
use tensorpress_tensor::stats::{Gram, Moments, Needs};
use tensorpress_tensor::{Context, DType, RawTensor, Result, Tensor, Usable};

use super::transport::Transport;
use super::{Module, Part, Track, least_squares};
use crate::flap::compensation;

/// What is done to the units that stay.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Repair {
    /// Nothing.
    None,
    /// What the units that go contributed on average goes into the reader's bias (FLAP, eq. 5).
    Mean,
    /// The reader's columns that stay become those that lose least of its outputs over the calibration
    /// ([`least_squares`]): what the optimal brain surgeon leaves, and Nyström's approximation.
    LeastSquares,
    /// The same without data: units count as alike as the rows that write them, biases included (UDFC, whose
    /// kept channels stand in for the others).
    Weights,
    /// Units that go are fused into those that stay by a transport plan (Intra-Fusion).
    Transport(Transport),
}

/// What a repair does its work with.
pub(super) struct Site<'a, 'b> {
    pub(super) model: &'a ModelLayout,
    pub(super) part: &'a Part<'b>,
    pub(super) judgement: &'a Judgement,
    pub(super) track: &'a Track,
    /// Units that stay.
    pub(super) kept: &'a [usize],
}

impl Repair {
    /// Statistics of the reader's input that it uses.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Mean => Needs::MOMENTS,
            Self::LeastSquares => Needs::GRAM,
            _ => Needs::NONE,
        }
    }

    /// It solves with a damped matrix.
    pub(super) fn is_damped(&self) -> bool {
        matches!(self, Self::LeastSquares | Self::Weights)
    }

    fn remembered(module: Module) -> String {
        format!("{}.repair", module.name())
    }

    /// Remembers what it needs of the calibration.
    pub(super) fn remember(&self, part: &Part<'_>, judgement: Judgement) -> Result<Judgement> {
        let name = Self::remembered(part.module);
        let missing = |judgement: Judgement, reason: &str| {
            let why = format!("{reason}: what stays is left as it is");
            judgement.with_note(&part.reader().name, &why)
        };
        Ok(match self {
            Self::Mean => match part.statistic::<Moments>()? {
                Usable::Yes(moments) => judgement.with_values(&name, &moments.mean().to_vec()),
                Usable::No(reason) => missing(judgement, &reason),
            },
            Self::LeastSquares => match part.statistic::<Gram>()? {
                Usable::Yes(gram) => {
                    let gram = RawTensor::from_f32(gram.view().into_dyn(), DType::F32)?;
                    judgement.with_tensor(&name, gram)
                }
                Usable::No(reason) => missing(judgement, &reason),
            },
            _ => judgement,
        })
    }

    /// Does it, where some units go and some stay.
    pub(super) fn apply(&self, site: &Site<'_, '_>, edit: Edit) -> Result<Edit> {
        let (part, name) = (site.part, Self::remembered(site.part.module));
        let reader = part.reader();
        match self {
            Self::None => Ok(edit),
            Self::Mean | Self::LeastSquares if !site.judgement.has(&name) => Ok(edit),
            Self::Mean => {
                let mean = site.judgement.values(&name)?;
                let mut keep = vec![false; mean.len()];
                part.all_columns(site.kept).iter().for_each(|column| keep[*column] = true);
                let can = match part.module {
                    Module::Attention => site.model.says.output_bias,
                    Module::Channels => site.model.says.mlp_bias,
                };
                if !can {
                    let why = "no bias makes good for what goes: config.json has no key for one";
                    return Ok(edit.with_note(&reader.name, why));
                }
                let bias = compensation(part.weight()?.view(), ArrayView1::from(&mean), &keep);
                Ok(edit.with_change(&reader.bias, Change::Added(bias.to_vec())))
            }
            Self::LeastSquares => {
                let gram = site.judgement.tensor(&name)?.to_matrix()?;
                refit(site, gram.view(), edit)
            }
            Self::Weights => refit(site, likeness(part)?.view(), edit),
            Self::Transport(transport) => transport.fuse(site, edit),
        }
    }
}

/// Z Zᵀ of the rows that write each column of the reader, with their biases as one more feature.
///
/// # Errors
/// As [`Part::weight`].
fn likeness(part: &Part<'_>) -> Result<Array2<f32>> {
    let columns = part.units * part.width;
    let mut rows = Vec::new();
    for (spec, weight) in part.writers()?.into_iter().filter(|(spec, _)| spec.shape[0] == columns) {
        let bias = part.bias(spec).unwrap_or_else(|| vec![0.0; columns]);
        rows.push(weight);
        rows.push(Array2::from_shape_vec((columns, 1), bias).expect("a bias a row"));
    }
    let views: Vec<_> = rows.iter().map(|part| part.view()).collect();
    let rows = concatenate(Axis(1), &views).unwrap_or_else(|_| Array2::zeros((columns, 0)));
    let mut gram = Array2::zeros((columns, columns));
    linalg::matmul_nt(rows.view(), rows.view(), gram.view_mut(), false, Par::Rayon);
    Ok(gram)
}

fn refit(site: &Site<'_, '_>, gram: ArrayView2<'_, f32>, edit: Edit) -> Result<Edit> {
    let (part, reader) = (site.part, site.part.reader());
    let columns = part.all_columns(site.kept);
    let weight = part.weight()?;
    let made = least_squares(weight.view(), gram, &columns, part.damp, Par::Rayon);
    match made.in_tensor(&reader.name)? {
        Usable::Yes(made) => renewed(part, &reader.name, made.view(), edit),
        Usable::No(reason) => {
            let why = format!("{reason}: what stays is left as it is");
            Ok(edit.with_note(&reader.name, &why))
        }
    }
}

/// A matrix of other values, in its stored type; left as it is, and said, where that cannot hold them.
pub(super) fn renewed(
    part: &Part<'_>,
    name: &str,
    values: ArrayView2<'_, f32>,
    edit: Edit,
) -> Result<Edit> {
    let tensor = RawTensor::from_f32(values.into_dyn(), part.dtype(name)?).in_tensor(name)?;
    if tensor.to_matrix()?.iter().all(|v| v.is_finite()) {
        return Ok(edit.with_change(name, Change::New(tensor)));
    }
    Ok(edit.with_note(name, "the repair leads beyond its type: what stays is left as it is"))
}
