use tensorpress_tensor::{Checkpoint, DType, Error, RawTensor, Result};

use super::blockwise::{Blockwise, Statistics};
use super::state::{NestedState, QuantType, State};
use crate::parts::{Stored, expect, shape};

/// A tensor of 4 bits as stored, in as many parts as its name has suffixes.
#[derive(Debug, Clone)]
pub struct FourBit {
    /// Codes, two to a byte, the first in the high half: officially u8 `[ceil(n / 2), 1]`; any type and shape of as
    /// many bytes.
    pub weight: RawTensor,
    /// The largest magnitude of each block, `[ceil(n / block)]`: f32, or u8 where statistics are nested.
    pub absmax: RawTensor,
    /// The levels, f32 `[16]`.
    pub quant_map: RawTensor,
    /// The largest magnitude of each block of `absmax`, f32.
    pub nested_absmax: Option<RawTensor>,
    /// The levels of `absmax`, f32 `[256]`.
    pub nested_quant_map: Option<RawTensor>,
    /// JSON, as u8: `quant_type`, `blocksize`, `dtype`, `shape`, and `nested_blocksize`, `nested_dtype`,
    /// `nested_offset`.
    pub quant_state: RawTensor,
}

/// Floats of a part with one axis.
fn floats(part: &RawTensor, name: &str, length: usize) -> Result<Vec<f32>> {
    expect(name, shape(part, name, &[DType::F32])?, [length])?;
    let mut values = vec![0.0; length];
    DType::F32.read_f32(part.bytes(), &mut values)?;
    Ok(values)
}

fn store(values: &[f32]) -> Result<RawTensor> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    RawTensor::new(DType::F32, vec![values.len()], bytes.into())
}

fn store_bytes(bytes: Vec<u8>) -> Result<RawTensor> {
    RawTensor::new(DType::U8, vec![bytes.len()], bytes.into())
}

impl FourBit {
    /// Reads a tensor (`model.layers.0.mlp.up_proj.weight`), `<tensor>.absmax`, `.quant_map`,
    /// `.quant_state.bitsandbytes__nf4` (or `__fp4`), and, if they are there, `.nested_absmax` and `.nested_quant_map`.
    ///
    /// # Errors
    /// `InsufficientData` if one is missing that must be there; those of reading.
    pub fn read(checkpoint: &Checkpoint, tensor: &str) -> Result<Self> {
        let stored = Stored { checkpoint, layer: tensor };
        let state = |kind: QuantType| format!("quant_state.bitsandbytes__{}", kind.name());
        let quant_state = match stored.optional(&state(QuantType::Fp4))? {
            Some(found) => found,
            None => stored.part(&state(QuantType::Nf4))?,
        };
        Ok(Self {
            weight: checkpoint.tensor(tensor)?,
            absmax: stored.part("absmax")?,
            quant_map: stored.part("quant_map")?,
            nested_absmax: stored.optional("nested_absmax")?,
            nested_quant_map: stored.optional("nested_quant_map")?,
            quant_state,
        })
    }

    /// What the checkpoint says of the tensor, and its codes.
    ///
    /// # Errors
    /// `ShapeMismatch`, `Unsupported` (an element type, a kind) and `Corruption` (a state that is none) name the part.
    pub fn unpack(&self) -> Result<(State, Blockwise)> {
        let name = "quant_state";
        let [_] = shape(&self.quant_state, name, &[DType::U8])?;
        let read = State::read(self.quant_state.bytes());
        let (state, block, nested) = read.map_err(|e| e.in_tensor(name))?;
        let count = state.elements().map_err(|e| e.in_tensor(name))?;
        expect("weight", [self.weight.bytes().len()], [count.div_ceil(2)])?;
        let mut codes: Vec<u8> =
            self.weight.bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
        codes.truncate(count);
        let levels = floats(&self.quant_map, "quant_map", 16)?;
        let blocks = count.div_ceil(block);
        let absmax = match nested {
            None => Statistics::Plain(floats(&self.absmax, "absmax", blocks)?),
            Some(NestedState { block, offset }) => {
                expect("absmax", shape(&self.absmax, "absmax", &[DType::U8])?, [blocks])?;
                let part = |part: &Option<RawTensor>, name: &str, length: usize| match part {
                    Some(part) => floats(part, name, length),
                    None => Err(Error::insufficient("is missing").in_tensor(name)),
                };
                let absmax = part(&self.nested_absmax, "nested_absmax", blocks.div_ceil(block))?;
                let codes = Blockwise {
                    levels: part(&self.nested_quant_map, "nested_quant_map", 256)?,
                    codes: self.absmax.bytes().to_vec(),
                    absmax: Statistics::Plain(absmax),
                    block,
                };
                Statistics::Nested { codes: Box::new(codes), offset }
            }
        };
        Ok((state, Blockwise { levels, codes, absmax, block }))
    }

    /// The tensor as stored, bit for bit as bitsandbytes stores it; the half byte that an odd number of elements leaves
    /// is zero.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no table of 16 levels, or statistics that are nested twice; `ShapeMismatch` if
    /// parts do not belong together.
    pub fn pack(state: &State, codes: &Blockwise) -> Result<Self> {
        codes.check()?;
        expect("weight", [codes.codes.len()], [state.elements()?])?;
        if codes.levels.len() != 16 {
            let what = format!("{} levels, where 16 belong", codes.levels.len());
            return Err(Error::invalid(what).in_tensor("quant_map"));
        }
        let (absmax, nested, nested_absmax, nested_quant_map) = match &codes.absmax {
            Statistics::Plain(values) => (store(values)?, None, None, None),
            Statistics::Nested { codes: inner, offset } => {
                inner.check()?;
                let Statistics::Plain(absmax) = &inner.absmax else {
                    return Err(Error::invalid("nested twice").in_tensor("nested_absmax"));
                };
                if inner.levels.len() != 256 {
                    let what = format!("{} levels, where 256 belong", inner.levels.len());
                    return Err(Error::invalid(what).in_tensor("nested_quant_map"));
                }
                let nested = NestedState { block: inner.block, offset: *offset };
                let codes = store_bytes(inner.codes.clone())?;
                (codes, Some(nested), Some(store(absmax)?), Some(store(&inner.levels)?))
            }
        };
        let bytes: Vec<u8> = codes
            .codes
            .chunks(2)
            .map(|two| two[0] << 4 | two.get(1).copied().unwrap_or(0))
            .collect();
        Ok(Self {
            weight: RawTensor::new(DType::U8, vec![bytes.len(), 1], bytes.into())?,
            absmax,
            quant_map: store(&codes.levels)?,
            nested_absmax,
            nested_quant_map,
            quant_state: store_bytes(state.write(codes.block, nested)?)?,
        })
    }
}
