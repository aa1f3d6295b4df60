use tensorpress_tensor::node::{Json, KnownLevels};
use tensorpress_tensor::{DType, Error, Result};

/// What codes of 4 bits mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantType {
    /// [`KnownLevels::Nf4`].
    Nf4,
    /// [`KnownLevels::Fp4`], which is no E2M1: neither in order nor in scale.
    Fp4,
}

impl QuantType {
    /// Its levels.
    #[must_use]
    pub fn table(self) -> KnownLevels {
        match self {
            Self::Nf4 => KnownLevels::Nf4,
            Self::Fp4 => KnownLevels::Fp4,
        }
    }

    /// Its name in checkpoints.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

/// What a checkpoint says of a tensor of 4 bits beside its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// What codes mean.
    pub quant_type: QuantType,
    /// Type of the tensor that was quantised.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

const DTYPES: [(&str, DType); 3] =
    [("float32", DType::F32), ("float16", DType::F16), ("bfloat16", DType::BF16)];

/// Blocks and the offset of statistics that are codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NestedState {
    pub(crate) block: usize,
    pub(crate) offset: f32,
}

impl State {
    /// A tensor of this shape, of f32, f16 or bf16.
    #[must_use]
    pub fn new(quant_type: QuantType, dtype: DType, shape: Vec<usize>) -> Self {
        Self { quant_type, dtype, shape }
    }

    /// Elements of the tensor.
    ///
    /// # Errors
    /// `ShapeMismatch` if their number overflows.
    pub fn elements(&self) -> Result<usize> {
        let all = self.shape.iter().try_fold(1usize, |all, length| all.checked_mul(*length));
        all.ok_or_else(|| Error::shape(format!("shape {:?} overflows", self.shape)))
    }

    /// Reads the JSON of a checkpoint: state, block, and what it says of nested statistics.
    pub(crate) fn read(json: &[u8]) -> Result<(Self, usize, Option<NestedState>)> {
        let bad = |what: String| Error::corruption(what);
        let text = std::str::from_utf8(json).map_err(|e| bad(format!("no UTF-8: {e}")))?;
        let json: Json = text.parse().map_err(|e| bad(format!("no JSON: {e}")))?;
        let text = |key: &str| {
            json[key].as_str().ok_or_else(|| bad(format!("`{key}` is {}, no text", json[key])))
        };
        let length = |key: &str, value: &Json| {
            let length = value.as_u64().and_then(|length| usize::try_from(length).ok());
            length.ok_or_else(|| bad(format!("`{key}` has {value}, no length")))
        };
        let block = |key: &str| match length(key, &json[key])? {
            0 => Err(bad(format!("`{key}` is 0"))),
            block => Ok(block),
        };
        let quant_type = match text("quant_type")? {
            "nf4" => QuantType::Nf4,
            "fp4" => QuantType::Fp4,
            other => return Err(Error::unsupported(format!("`quant_type` is {other}"))),
        };
        let find = |key: &str| {
            let name = text(key)?;
            let found = DTYPES.into_iter().find(|(known, _)| *known == name);
            found.map(|(_, dtype)| dtype).ok_or_else(|| {
                Error::unsupported(format!(
                    "`{key}` is {name}: allowed are floats of 16 and 32 bits"
                ))
            })
        };
        let dtype = find("dtype")?;
        let Some(shape) = json["shape"].as_array() else {
            return Err(bad(format!("`shape` is {}, no list", json["shape"])));
        };
        let shape = shape.iter().map(|dim| length("shape", dim)).collect::<Result<_>>()?;
        let nested = if json["nested_blocksize"].is_null() {
            None
        } else {
            if find("nested_dtype")? != DType::F32 {
                return Err(Error::unsupported("`nested_dtype` is not float32"));
            }
            let offset = &json["nested_offset"];
            let Some(value) = offset.as_f64() else {
                return Err(bad(format!("`nested_offset` is {offset}, no number")));
            };
            Some(NestedState { block: block("nested_blocksize")?, offset: value as f32 })
        };
        Ok((Self { quant_type, dtype, shape }, block("blocksize")?, nested))
    }

    /// The JSON of a checkpoint, as Python writes it.
    pub(super) fn write(&self, block: usize, nested: Option<NestedState>) -> Result<Vec<u8>> {
        let Some((dtype, _)) = DTYPES.into_iter().find(|(_, dtype)| *dtype == self.dtype) else {
            let what = format!("dtype = {}: allowed are F32, F16, BF16", self.dtype.name());
            return Err(Error::invalid(what));
        };
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let mut json = format!(
            r#"{{"quant_type": "{}", "blocksize": {block}, "dtype": "{dtype}", "shape": [{}]"#,
            self.quant_type.name(),
            shape.join(", "),
        );
        if let Some(NestedState { block, offset }) = nested {
            if !offset.is_finite() {
                return Err(Error::invalid(format!("an offset of {offset}")));
            }
            let offset = python(offset.into());
            json += &format!(
                r#", "nested_blocksize": {block}, "nested_dtype": "float32", "nested_offset": {offset}"#
            );
        }
        json.push('}');
        Ok(json.into_bytes())
    }
}

/// A number as Python writes it: the fewest digits that tell it apart, with an exponent where it is very small or
/// large.
fn python(value: f64) -> String {
    let digits = format!("{value:e}");
    let (mantissa, exponent) = digits.split_once('e').expect("in scientific notation");
    let exponent: i32 = exponent.parse().expect("a number");
    if (-4..16).contains(&exponent) {
        // With a point, always.
        format!("{value:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.abs())
    }
}
