//! The matrices of a folder that others read: what they have in common, and the tensors of each.

use serde_json::{Value, json};
use tensorpress_formats::awq::Layout;
use tensorpress_formats::bnb::QuantType;
use tensorpress_formats::export::{self, Survey};
use tensorpress_formats::gptq::Version;
use tensorpress_quant::{GridSpec, Nf4, Rtn};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{LevelTable, as_node, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{Compress as _, Context as _, DType, Error, Node, RawTensor, Result};

use super::Target;

/// What all quantised layers of a folder have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scheme {
    pub(super) bits: u8,
    /// Inputs of a group; none: a whole row.
    pub(super) group: Option<usize>,
    pub(super) symmetric: bool,
    pub(super) ordered: bool,
    /// Statistics of bitsandbytes are quantised in turn.
    pub(super) nested: bool,
    /// What its codes mean.
    pub(super) table: QuantType,
}

impl Scheme {
    fn of(bits: u8, group: Option<usize>, symmetric: bool) -> Self {
        Self { bits, group, symmetric, ordered: false, nested: false, table: QuantType::Nf4 }
    }
}

/// What a matrix of the source is to the target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Grids(Survey, [usize; 2]),
    Table { nested: bool, table: QuantType },
    Other,
}

pub(super) fn kind(target: Target, node: &dyn Node) -> Result<Kind> {
    if target == Target::BitsAndBytes {
        let table = as_node::<LevelTable>(node);
        return Ok(match table {
            Some(table) => {
                let described = table.describe();
                let nested = described["scales"]["node"] == "levels.v1";
                let is_fp4 = described["levels"]["name"] == QuantType::Fp4.name();
                let table = if is_fp4 { QuantType::Fp4 } else { QuantType::Nf4 };
                Kind::Table { nested, table }
            }
            None => Kind::Other,
        });
    }
    Ok(Survey::of(node)?.map_or(Kind::Other, |survey| Kind::Grids(survey, node.shape())))
}

/// The scheme that fits all layers that are quantised already; of a model that is not, the usual one for matrices of these
/// `widths`.
///
/// # Errors
/// `Unsupported`, naming the layer, if two have different groups, unless they may be requantised.
pub(super) fn scheme(
    target: Target,
    kinds: &[(String, Kind)],
    widths: &[usize],
    requantize: bool,
) -> Result<Scheme> {
    let mut scheme: Option<(Scheme, &str)> = None;
    for (name, kind) in kinds {
        let here = match kind {
            Kind::Other => continue,
            Kind::Table { nested, table } => {
                Scheme { nested: *nested, table: *table, ..Scheme::of(4, None, false) }
            }
            Kind::Grids(survey, [_, cols]) => Scheme {
                bits: survey.bits,
                group: (survey.group < *cols).then_some(survey.group),
                symmetric: survey.zero == Some(1 << (survey.bits - 1)),
                ordered: survey.ordered,
                ..Scheme::of(survey.bits, None, false)
            },
        };
        scheme = Some(match scheme {
            None => (here, name),
            Some((all, first)) => {
                if all.group != here.group && !requantize {
                    let words = |group: Option<usize>| {
                        group.map_or("whole rows".to_owned(), |group| format!("groups of {group}"))
                    };
                    let (was, is) = (words(all.group), words(here.group));
                    let what = format!(
                        "{} has one group for all layers: {was} in `{first}`, {is} here",
                        target.name()
                    );
                    return Err(Error::unsupported(what).in_tensor(name));
                }
                let joint = Scheme {
                    bits: all.bits.max(here.bits),
                    group: all.group,
                    symmetric: all.symmetric && here.symmetric && all.bits == here.bits,
                    ordered: all.ordered || here.ordered,
                    nested: all.nested || here.nested,
                    table: all.table,
                };
                (joint, first)
            }
        });
    }
    match scheme {
        // Widths that the format has; what does not fit is refused, or rounded to them.
        Some((scheme, _)) => {
            let bits = match (target, scheme.bits) {
                (Target::Awq, _) => 4,
                (Target::Gptq(_), 5..) => 8,
                (Target::Gptq(_), bits) => bits.max(2),
                (_, bits) => bits,
            };
            let symmetric = scheme.symmetric && bits == scheme.bits;
            Ok(Scheme { bits, symmetric, ..scheme })
        }
        None if requantize => {
            let symmetric = target == Target::Gptq(Version::V1);
            // One group for all layers, which readers want to divide each row.
            let divides = |group: &usize| widths.iter().all(|width| width.is_multiple_of(*group));
            Ok(Scheme::of(4, [128, 64, 32].into_iter().find(divides), symmetric))
        }
        None => Err(Error::unsupported(format!(
            "no matrix of the model is anything that {} holds: compress it first, or requantise",
            target.name()
        ))),
    }
}

/// The tensors of a layer, by their full names.
pub(super) fn tensors(
    target: Target,
    scheme: Scheme,
    name: &str,
    node: &dyn Node,
) -> Result<Vec<(String, RawTensor)>> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let stored = match target {
        Target::Gptq(version) => export::gptq(node, version)?,
        Target::Awq => export::awq(node, Layout::Gemm)?,
        Target::CompressedTensors => {
            let stored = export::compressed_tensors(node, scheme.bits, scheme.symmetric)?;
            // Removed from the package in 0.19, August 2026.
            if stored.iter().any(|(part, _)| *part == "weight_g_idx") {
                let what = "readers of compressed-tensors know no order of inputs any more, and no group that does not divide \
                            a row: gptq holds both, or requantise";
                return Err(Error::unsupported(what));
            }
            stored
        }
        _ => {
            let parts = export::bits_and_bytes(node, DType::BF16)?;
            let full = |part: &str| match part {
                "" => name.to_owned(),
                part => format!("{name}.{part}"),
            };
            return Ok(parts.into_iter().map(|(part, tensor)| (full(part), tensor)).collect());
        }
    };
    Ok(stored.into_iter().map(|(part, tensor)| (format!("{module}.{part}"), tensor)).collect())
}

/// The matrix rounded to the scheme, and how far that is: `‖W - Ŵ‖ / ‖W‖`.
pub(super) fn rounded(
    target: Target,
    scheme: Scheme,
    name: &str,
    node: &dyn Node,
) -> Result<(Box<dyn Node>, Option<f64>)> {
    let weight = decode(node)?;
    let blind = Calibration::none(weight.ncols());
    let made: Box<dyn Node> = if target == Target::BitsAndBytes {
        let nf4 = Nf4::default().with_double_quant(scheme.nested);
        nf4.compress(weight.view(), &blind).in_tensor(name)?.node.boxed()
    } else {
        let (group, cols) = (scheme.group.unwrap_or(0), weight.ncols());
        let short = group > 0 && !cols.is_multiple_of(group);
        if short && !matches!(target, Target::Gptq(_)) {
            let what = format!(
                "groups of {group} do not divide its rows of {cols}, as {} has it: gptq holds a short one",
                target.name()
            );
            return Err(Error::unsupported(what).in_tensor(name));
        }
        let mut grid = GridSpec::new(scheme.bits.max(2), group);
        // Its zero points are 1 and more.
        grid.symmetric = scheme.symmetric || target == Target::Gptq(Version::V1);
        Rtn::new(grid).compress(weight.view(), &blind).in_tensor(name)?.node.boxed()
    };
    let error = relative(&weight, &decode(&*made)?);
    Ok((made, error))
}

/// `‖W - Ŵ‖ / ‖W‖`.
pub(super) fn relative(weight: &Array2<f32>, got: &Array2<f32>) -> Option<f64> {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let (mut difference, mut size) = (0.0, 0.0);
    for (was, is) in weight.iter().zip(got) {
        difference += square(was - is);
        size += square(*was);
    }
    let error = if difference == 0.0 { 0.0 } else { (difference / size).sqrt() };
    error.is_finite().then_some(error)
}

/// What `config.json` says of quantisation; `ignored` are modules that stay floats.
pub(super) fn config(target: Target, scheme: Scheme, ignored: &[String]) -> Value {
    let group = scheme.group.map_or(json!(-1), |group| json!(group));
    match target {
        Target::Gptq(_) => json!({
            "quant_method": Target::Gptq(Version::V1).name(),
            "bits": scheme.bits,
            "group_size": group,
            "desc_act": scheme.ordered,
            "sym": scheme.symmetric,
            "lm_head": false,
            "true_sequential": true,
            "damp_percent": 0.01,
            "checkpoint_format": target.name(),
        }),
        Target::Awq => json!({
            "quant_method": target.name(),
            "bits": 4,
            "group_size": group,
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": ignored,
        }),
        Target::CompressedTensors => {
            let strategy = if scheme.group.is_some() { "group" } else { "channel" };
            json!({
                "quant_method": target.name(),
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "global_compression_ratio": null,
                "kv_cache_scheme": null,
                "ignore": ignored,
                "config_groups": {"group_0": {
                    "targets": ["Linear"],
                    "input_activations": null,
                    "output_activations": null,
                    "weights": {
                        "num_bits": scheme.bits,
                        "type": "int",
                        "symmetric": scheme.symmetric,
                        "strategy": strategy,
                        "group_size": scheme.group,
                        "block_structure": null,
                        "actorder": null,
                        "dynamic": false,
                        "observer": "minmax",
                        "observer_kwargs": {},
                    },
                }},
                "version": "0.20.0",
            })
        }
        _ => json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_quant_type": scheme.table.name(),
            "bnb_4bit_use_double_quant": scheme.nested,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ignored,
        }),
    }
}
