use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::{DType, Error, RawTensor, Result, Tensor};

use crate::parts::{FLOATS, expect, group_index, group_length, shape, typed};

/// Which weights share a scale: the strategy of a scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Granularity {
    /// All: one scale, stored as `[1]`.
    Tensor,
    /// Those of an output, or of an output and equally long runs of inputs: `[N, G]`.
    Group,
    /// Those of an output and of inputs with the same index (`weight_g_idx`, one for each input): `[N, G]`.
    Indexed(Vec<u32>),
    /// Tiles of so many outputs and inputs, cut off at the end: `[ceil(N / rows), ceil(K / cols)]`.
    Block([usize; 2]),
}

/// Scales of a weight `[N, K]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// The scales, in the shape that the granularity has.
    pub values: Array2<f32>,
    /// What they are stored as.
    pub dtype: DType,
    /// Which weights share one.
    pub granularity: Granularity,
}

impl Scales {
    /// Reads `weight_scale` of a weight of this shape. Unless tiles are told (`block`) or inputs have an index, the
    /// shape says which weights share one.
    pub(super) fn read(
        part: &RawTensor,
        block: Option<[usize; 2]>,
        index: Option<&RawTensor>,
        dims: [usize; 2],
    ) -> Result<Self> {
        const NAME: &str = "weight_scale";
        if part.shape().len() < 2 {
            typed(part, NAME, &FLOATS)?;
        } else {
            shape::<2>(part, NAME, &FLOATS)?;
        }
        let (dtype, values) = (part.dtype(), part.to_matrix()?);
        let granularity = match (block, index) {
            (Some(block), _) => Granularity::Block(block),
            (None, Some(index)) => {
                let index = group_index(index, "weight_g_idx", dims[1], values.ncols())?;
                Granularity::Indexed(index)
            }
            (None, None) if part.shape().len() < 2 => Granularity::Tensor,
            (None, None) => Granularity::Group,
        };
        let scales = Self { values, dtype, granularity };
        scales.check(dims)?;
        Ok(scales)
    }

    /// That there are as many as a weight of this shape needs.
    pub(super) fn check(&self, [rows, cols]: [usize; 2]) -> Result<()> {
        let (height, groups) = self.values.dim();
        let wanted = match &self.granularity {
            Granularity::Tensor => [1, 1],
            Granularity::Group => {
                expect("weight_scale", [height, groups], [rows, groups])?;
                group_length("weight_scale", cols, groups)?;
                return Ok(());
            }
            Granularity::Indexed(index) => {
                expect("weight_g_idx", [index.len()], [cols])?;
                if index.iter().any(|group| *group as usize >= groups) {
                    let what = format!("a group that is none of {groups}");
                    return Err(Error::invalid(what).in_tensor("weight_g_idx"));
                }
                [rows, groups]
            }
            Granularity::Block([0, _] | [_, 0]) => {
                return Err(
                    Error::invalid("block: allowed are 1 and more").in_tensor("weight_scale")
                );
            }
            Granularity::Block([tall, wide]) => [rows.div_ceil(*tall), cols.div_ceil(*wide)],
        };
        expect("weight_scale", [height, groups], wanted)
    }

    /// The place of a weight's scale, in scales that were checked.
    pub(super) fn place(&self, cols: usize) -> impl Fn(usize, usize) -> [usize; 2] + '_ {
        let run = (cols / self.values.ncols().max(1)).max(1);
        move |row, col| match &self.granularity {
            Granularity::Tensor => [0, 0],
            Granularity::Group => [row, col / run],
            Granularity::Indexed(index) => [row, index[col] as usize],
            Granularity::Block([tall, wide]) => [row / tall, col / wide],
        }
    }

    /// `weight_scale` as stored.
    pub(super) fn store(&self) -> Result<RawTensor> {
        let values = self.values.view();
        match self.granularity {
            Granularity::Tensor => {
                let one = values.iter().copied().collect::<Vec<_>>();
                let one = Array2::from_shape_vec((1, one.len()), one).expect("one row");
                RawTensor::from_f32(one.row(0).into_dyn(), self.dtype)
            }
            _ => RawTensor::from_f32(values.into_dyn(), self.dtype),
        }
    }
}
