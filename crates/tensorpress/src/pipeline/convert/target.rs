//! What a model can be converted to.

use std::str::FromStr;

use tensorpress_formats::ggml::Type;
use tensorpress_formats::gptq::Version;
use tensorpress_tensor::{DType, Error, Result};

/// What a model is converted to: `gguf`, `gguf(Q4_K)`, `gptq`, `gptq_v2`, `awq`, `compressed-tensors`, `bnb`, `tensorpress`
/// or `safetensors`.
///
/// ```
/// use tensorpress::formats::ggml::Type;
/// use tensorpress::pipeline::Target;
///
/// assert_eq!("gguf(Q4_K)".parse::<Target>()?, Target::Gguf(Some(Type::Q4_K)));
/// assert!("ggml".parse::<Target>().unwrap_err().to_string().contains("known are"));
/// # Ok::<(), tensorpress::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// One GGUF file. With a type, matrices of floats are quantised to it; without one every tensor keeps its values.
    Gguf(Option<Type>),
    /// A folder as GPTQModel and auto-gptq read it.
    Gptq(Version),
    /// A folder as AutoAWQ reads it, `gemm`.
    Awq,
    /// A folder as vLLM reads it, `pack-quantized`.
    CompressedTensors,
    /// A folder of bitsandbytes, 4 bits.
    BitsAndBytes,
    /// Our own folder: codes are kept.
    Tensorpress,
    /// A folder of floats.
    Safetensors,
}

const NAMES: [(&str, Target); 8] = [
    ("gguf", Target::Gguf(None)),
    ("gptq", Target::Gptq(Version::V1)),
    ("gptq_v2", Target::Gptq(Version::V2)),
    ("awq", Target::Awq),
    ("compressed-tensors", Target::CompressedTensors),
    ("bnb", Target::BitsAndBytes),
    ("tensorpress", Target::Tensorpress),
    ("safetensors", Target::Safetensors),
];

impl Target {
    /// Its name, as [`FromStr`] reads it.
    #[must_use]
    pub fn name(self) -> String {
        if let Self::Gguf(Some(ty)) = self {
            return format!("gguf({})", ty.name());
        }
        let found = NAMES.iter().find(|(_, target)| *target == self);
        found.map_or("", |(name, _)| name).to_owned()
    }

    /// Whether it is one file, not a folder.
    #[must_use]
    pub fn is_file(self) -> bool {
        matches!(self, Self::Gguf(_))
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((_, target)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*target);
        }
        if let Some(name) = text.strip_prefix("gguf(").and_then(|rest| rest.strip_suffix(')')) {
            // Types of activations are in no files.
            let ty =
                Type::from_name(name.trim()).filter(|ty| !matches!(ty, Type::Q8_1 | Type::Q8_K));
            return ty.map(|ty| Self::Gguf(Some(ty))).ok_or_else(|| {
                let known: Vec<&str> = Type::all()
                    .filter(|ty| !matches!(ty, Type::Q8_1 | Type::Q8_K))
                    .map(Type::name)
                    .collect();
                Error::invalid(format!("gguf({name}): known are {}", known.join(", ")))
            });
        }
        let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        let message = format!("`{text}`: known are {}, and gguf(TYPE)", known.join(", "));
        Err(Error::invalid(message))
    }
}

/// A float type by the name that the program takes.
///
/// # Errors
/// `InvalidArgument`, saying what is allowed.
pub fn float_type(name: &str) -> Result<DType> {
    match name.to_lowercase().as_str() {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err(Error::invalid(format!("`{name}`: allowed are f32, f16, bf16"))),
    }
}
