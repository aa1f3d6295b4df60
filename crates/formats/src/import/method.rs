//! Who quantised a folder, and how: `quantization_config`.

use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, Result};

use crate::awq;
use crate::gptq;

/// What a folder's `quantization_config` says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// GPTQ: bits and inputs of a group (none: a whole row), and what stored zero points mean.
    Gptq {
        /// Bits of a code.
        bits: u8,
        /// Inputs of a group; none: all.
        group: Option<usize>,
        /// What stored zero points mean.
        version: gptq::Version,
    },
    /// AWQ: how codes lie, and inputs of a group (none: a whole row).
    Awq {
        /// How codes lie.
        layout: awq::Layout,
        /// Inputs of a group; none: all.
        group: Option<usize>,
    },
    /// compressed-tensors.
    CompressedTensors {
        /// What schemes of weights it has.
        schemes: Vec<Scheme>,
        /// Codes of 3, 5, 6 and 7 bits may lie across the edges of words, where shapes leave it open.
        dense: bool,
    },
    /// bitsandbytes: 4 bits or LLM.int8, as each layer's tensors say.
    BitsAndBytes,
    /// Floats of 8 bits in tiles, as DeepSeek's: `weight_scale_inv` are multiplied by.
    Fp8 {
        /// Outputs and inputs of a tile.
        tile: [usize; 2],
    },
}

/// A scheme of weights of compressed-tensors.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scheme {
    /// Bits of a code.
    pub bits: u8,
    /// Codes are floats.
    pub float: bool,
    /// Outputs and inputs of a tile that shares a scale, where scales lie in tiles.
    pub tile: Option<[usize; 2]>,
}

fn unsupported(what: String) -> Error {
    Error::unsupported(format!("`quantization_config`: {what}"))
}

fn number(json: &Json, key: &str, default: Option<i64>) -> Result<i64> {
    match &json[key] {
        Json::Null => default
            .ok_or_else(|| Error::insufficient(format!("`quantization_config.{key}` is missing"))),
        value => value.as_i64().ok_or_else(|| {
            Error::corruption(format!("`quantization_config.{key}` = {value} is no whole number"))
        }),
    }
}

fn bits(json: &Json, allowed: &[i64], key: &str, default: Option<i64>) -> Result<u8> {
    let bits = number(json, key, default)?;
    if allowed.contains(&bits) {
        return Ok(bits as u8);
    }
    Err(unsupported(format!("`{key}` = {bits}: known are {allowed:?}")))
}

/// Inputs of a group; -1, 0 and nothing: a whole row.
fn group(json: &Json, key: &str) -> Result<Option<usize>> {
    Ok(usize::try_from(number(json, key, Some(-1))?).ok().filter(|group| *group > 0))
}

impl Method {
    /// Reads a `quantization_config`; none if it is tensorpress' own.
    ///
    /// # Errors
    /// `Unsupported` for methods and schemes that are not known, naming the key; `Corruption` for impossible values.
    pub fn read(json: &Json) -> Result<Option<Self>> {
        let name = json["quant_method"].as_str().unwrap_or("unnamed");
        let text = |key: &str, default: &str| {
            json[key].as_str().map_or_else(|| default.to_owned(), str::to_lowercase)
        };
        Ok(Some(match name {
            "tensorpress" => return Ok(None),
            "gptq" => {
                if json["dynamic"].as_object().is_some_and(|rules| !rules.is_empty()) {
                    return Err(unsupported("`dynamic`: layers with bits of their own".into()));
                }
                let version = match text("checkpoint_format", "gptq").as_str() {
                    "gptq" | "" => gptq::Version::V1,
                    "gptq_v2" => gptq::Version::V2,
                    other => {
                        let what =
                            format!("`checkpoint_format` = `{other}`: known are gptq, gptq_v2");
                        return Err(unsupported(what));
                    }
                };
                let bits = bits(json, &[2, 3, 4, 8], "bits", None)?;
                Self::Gptq { bits, group: group(json, "group_size")?, version }
            }
            "awq" => {
                let key = if json["bits"].is_null() { "w_bit" } else { "bits" };
                bits(json, &[4], key, Some(4))?;
                let layout = match text("version", "gemm").as_str() {
                    "gemm" => awq::Layout::Gemm,
                    "gemv" => awq::Layout::Gemv,
                    "gemv_fast" | "llm-awq" => awq::Layout::GemvFast,
                    other => {
                        let what =
                            format!("`version` = `{other}`: known are gemm, gemv, gemv_fast");
                        return Err(unsupported(what));
                    }
                };
                let key = if json["group_size"].is_null() { "q_group_size" } else { "group_size" };
                Self::Awq { layout, group: group(json, key)? }
            }
            "compressed-tensors" | "compressed_tensors" => Self::compressed(json)?,
            "bitsandbytes" => Self::BitsAndBytes,
            "fp8" => {
                let tile = match &json["weight_block_size"] {
                    Json::Null => {
                        return Err(unsupported("`weight_block_size` is missing".into()));
                    }
                    tile => tile_of(tile)?,
                };
                Self::Fp8 { tile }
            }
            other => {
                let known = "gptq, awq, compressed-tensors, bitsandbytes, fp8 and tensorpress";
                return Err(Error::unsupported(format!(
                    "`quantization_config.quant_method` = `{other}`; known are {known}"
                )));
            }
        }))
    }

    fn compressed(json: &Json) -> Result<Self> {
        let mut schemes = Vec::new();
        for scheme in json["config_groups"].as_object().into_iter().flatten() {
            let weights = &scheme.1["weights"];
            if weights.is_null() {
                continue;
            }
            let tile = match &weights["block_structure"] {
                Json::Null => None,
                tile => Some(tile_of(tile)?),
            };
            let float = weights["type"].as_str() == Some("float");
            let bits = bits(weights, &[1, 2, 3, 4, 5, 6, 7, 8], "num_bits", Some(8))?;
            schemes.push(Scheme { bits, float, tile });
        }
        // Releases up to 0.11 left the top bits of words free.
        let version = json["version"].as_str().unwrap_or("1").trim_start_matches('v');
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let (major, minor) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(0));
        Ok(Self::CompressedTensors { schemes, dense: (major, minor) > (0, 11) })
    }

    /// The name of the format: what files are said to be.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gptq { version: gptq::Version::V2, .. } => "gptq_v2",
            Self::Gptq { .. } => "gptq",
            Self::Awq { .. } => "awq",
            Self::CompressedTensors { .. } => "compressed-tensors",
            Self::BitsAndBytes => "bitsandbytes",
            Self::Fp8 { .. } => "fp8",
        }
    }
}

/// Two lengths, neither of them 0.
fn tile_of(json: &Json) -> Result<[usize; 2]> {
    let lengths: Vec<usize> = json
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|n| n.as_u64())
        .map(|n| n as usize)
        .collect();
    match lengths[..] {
        [tall, wide] if tall > 0 && wide > 0 => Ok([tall, wide]),
        _ => Err(Error::corruption(format!("`quantization_config`: a tile of {json}"))),
    }
}
