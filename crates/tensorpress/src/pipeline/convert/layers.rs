//! The matrices of a folder that others read: what they have in common, and the tensors of each.

use serde_json::{Value, json};
use tensorpress_formats::awq::Layout;
use tensorpress_formats::bnb::QuantType;
use tensorpress_formats::export::{self, Survey};
use tensorpress_formats::gptq::Version;
use tensorpress_quant::{GridSpec, Nf4, Rtn};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{LevelTable, Tables, as_node, decode};
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
        let plain = |table: &&LevelTable| {
            table.format().has_scales() && table.format().tables() == Tables::One
        };
        let table = as_node::<LevelTable>(node).filter(plain);
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
    let mut scheme: Option<Scheme> = None;
    for (_, kind) in kinds {
        let here = match kind {
            Kind::Other => continue,
            Kind::Table { nested, table } => {
                Scheme { nested: *nested, table: *table, ..Scheme::of(4, None, false) }
            }
            Kind::Grids(survey, _) => Scheme {
                bits: survey.bits,
                symmetric: survey.zero == Some(1 << (survey.bits - 1)),
                ordered: survey.ordered,
                ..Scheme::of(survey.bits, None, false)
            },
        };
        scheme = Some(match scheme {
            None => here,
            Some(all) => Scheme {
                bits: all.bits.max(here.bits),
                group: None,
                symmetric: all.symmetric && here.symmetric && all.bits == here.bits,
                ordered: all.ordered || here.ordered,
                nested: all.nested || here.nested,
                table: all.table,
            },
        });
    }
    let joint_group = group_of_all(target, kinds, requantize)?;
    // One group for all layers, which readers want to divide each row.
    let divides = |group: &usize| widths.iter().all(|width| width.is_multiple_of(*group));
    let usual_group = [128, 64, 32].into_iter().find(divides);
    match scheme {
        // Widths that the format has; what does not fit is refused, or rounded to them.
        Some(scheme) => {
            let bits = match (target, scheme.bits) {
                (Target::Awq, _) => 4,
                (Target::Gptq(_), 5..) => 8,
                (Target::Gptq(_), bits) => bits.max(2),
                (_, bits) => bits,
            };
            let symmetric = scheme.symmetric && bits == scheme.bits;
            // What is rounded anyway may as well be read.
            let short = !joint_group.is_none_or(|group| divides(&group));
            let anew = requantize && short && !matches!(target, Target::Gptq(_));
            let group = if anew { usual_group } else { joint_group };
            Ok(Scheme { bits, symmetric, group, ..scheme })
        }
        None if requantize => {
            let symmetric = target == Target::Gptq(Version::V1);
            Ok(Scheme::of(4, usual_group, symmetric))
        }
        None => Err(Error::unsupported(format!(
            "no matrix of the model is anything that {} holds: compress it first, or requantise",
            target.name()
        ))),
    }
}

/// The group that all layers have: the first that is shorter than its row; a row as long as that is one. None: whole rows.
///
/// # Errors
/// `Unsupported`, naming the layer, if two differ, unless they may be requantised.
fn group_of_all(
    target: Target,
    kinds: &[(String, Kind)],
    requantize: bool,
) -> Result<Option<usize>> {
    let grids = kinds.iter().filter_map(|(name, kind)| match kind {
        Kind::Grids(survey, [_, cols]) => Some((name, survey.group.min(*cols), *cols)),
        _ => None,
    });
    let shorter = grids.clone().find(|(_, group, cols)| group < cols);
    let Some((first, all, _)) = shorter else { return Ok(None) };
    match grids.clone().find(|(_, group, _)| *group != all) {
        Some((name, group, cols)) if !requantize => {
            let is = if group < cols { format!("groups of {group}") } else { "whole rows".into() };
            let what = format!(
                "{} has one group for all layers: groups of {all} in `{first}`, {is} here",
                target.name()
            );
            Err(Error::unsupported(what).in_tensor(name))
        }
        _ => Ok(Some(all)),
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
    if let Kind::Grids(survey, [_, cols]) = kind(target, node)?
        && survey.group.min(cols) != scheme.group.unwrap_or(cols)
    {
        let what = format!("groups of {}, where the folder has one group for all", survey.group);
        return Err(Error::unsupported(what));
    }
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
        let mut grid = GridSpec::new(scheme.bits.max(2), scheme.group.unwrap_or(0));
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
