//! The fuzz targets on their committed seeds, and on every prefix and many flipped bits of them: what the fuzzer
//! knows, plain `cargo test` checks.
//!
//! `TENSORPRESS_WRITE_SEEDS=1` writes the seeds of nodes, checkpoints and packed files anew.

#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tensorpress::entropy::{Effort, Packer, TileCoder, ValueType, coded, compress, compress_with};
use tensorpress::kvcache::page::{PageCodec, PageConfig, PageScratch};
use tensorpress::kvcache::stream::{Chunk, Level};
use tensorpress::kvcache::{
    Axis, Bitmap, HeadSlots, Int, KvRecipe, KvShape, KvStore, Layer, StoreForm,
};
use tensorpress::lowrank::BitStack;
use tensorpress::quant::{
    Aqlm, BitMod, E8, Gptq, GridSpec, GroupedAffine, Hqq, Nested, Nf4, Pvq, Qtip, Rtn, Sketch,
    Spqr, Watersic,
};
use tensorpress::tensor::checkpoint::write_shard;
use tensorpress::tensor::linalg::{Par, gaussian};
use tensorpress::tensor::ndarray::{Array2, Array3};
use tensorpress::tensor::node::{
    BlockDiagonal, Dense, Hadamard, InputRounding, Mask, Masked, Product, Rotation, RoundedInputs,
    Scale, Side, Stacked, Sum, TensorTrain, Transformed,
};
use tensorpress::tensor::stats::Calibration;
use tensorpress::tensor::{Checkpoint, Compress, DType, Node, Scratch};

fn seeds(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target)
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn dense(rows: usize, cols: usize, seed: u64) -> Box<dyn Node> {
    Dense::from_f32(matrix(rows, cols, seed).view(), DType::BF16).unwrap().boxed()
}

/// One small tree of each kind.
fn trees() -> Vec<(&'static str, Box<dyn Node>)> {
    let weight = matrix(6, 10, 1);
    let blind = Calibration::none(10);
    let round =
        |grid: GridSpec| Rtn::new(grid).compress(weight.view(), &blind).unwrap().node.boxed();
    let calibration = Calibration::from_samples(matrix(40, 10, 2), Par::Seq);
    let gptq = Gptq::new(GridSpec::new(3, 4)).with_act_order(true);
    let mask = || Mask::from_bools(matrix(6, 10, 3).mapv(|v| v > 0.0).view());
    let hadamard = Arc::new(Hadamard::new(6, 2, vec![0b10_1101]).unwrap());
    let turn = Arc::new(Rotation::new(10, 10, 1).unwrap());
    let scale = Arc::new(Scale::new(vec![0.5; 10], DType::F16).unwrap());
    let inputs = InputRounding::fixed(8, 2.5).unwrap();
    let some_of = |rows| Mask::from_bools(matrix(rows, 10, 19).mapv(|v| v > 0.0).view());
    let masked_rows = || Masked::new(some_of(3), dense(3, 10, 18)).unwrap().boxed();
    let product = Product::new(dense(6, 2, 4), dense(2, 10, 5)).unwrap().boxed();
    // Large enough to shrink: a row of codes for each coder, most of them alike for rANS.
    let rows = matrix(12, 200, 12);
    let rare = matrix(64, 96, 13).mapv(|v| if v.abs() < 1.6 { 0.0 } else { v });
    let code = |weight: &Array2<f32>, coder: TileCoder| {
        let blind = Calibration::none(weight.ncols());
        let grid = GridSpec::new(4, 0);
        let rounded = Rtn::new(grid).compress(weight.view(), &blind).unwrap().node.boxed();
        let node = coded(rounded, coder).unwrap();
        assert!(node.describe().to_string().contains("tiled.v1"), "{coder:?}");
        node
    };
    let keep = |rows: usize, cols: usize, keep: fn(usize, usize) -> bool| {
        Mask::from_bools(Array2::from_shape_fn((rows, cols), |(r, c)| keep(r, c)).view())
    };
    let pairs = keep(6, 32, |r, c| (r + c + c / 4) % 4 < 2);
    let blocks = keep(10, 14, |r, c| (r / 4 + c / 3) % 3 == 1);
    // Few entries, so that the mask itself shrinks.
    let few = keep(64, 96, |r, c| (r * 37 + c * 11) % 61 == 0);
    let few = coded(Masked::new(few, dense(64, 96, 15)).unwrap().boxed(), TileCoder::Rans).unwrap();
    let form = |node: Box<dyn Node>, form: &str| {
        assert!(node.describe()["mask"].to_string().contains(form), "{form}");
        node
    };
    // Codes wider than bytes, packed and coded.
    let wide = |rows: usize, cols: usize| {
        let codes = matrix(rows, cols, 16).mapv(|v| (2048.0 + 100.0 * v) as u16);
        let codes = codes.as_slice().unwrap();
        let scales = vec![0.01; rows];
        let node =
            GroupedAffine::from_codes([rows, cols], 12, cols, codes, scales, DType::F16, &[2048]);
        node.unwrap().boxed()
    };
    let wide_coded = coded(wide(4, 300), TileCoder::Range).unwrap();
    assert!(wide_coded.describe().to_string().contains("tiled.v2"));
    // Integers of any size on steps, along a trellis; coded by spreads.
    let steps = |rows: usize, cols: usize| {
        let calibration = Calibration::from_samples(matrix(60, cols, 20), Par::Seq);
        let steps = Watersic::bits(3.0).compress(matrix(rows, cols, 21).view(), &calibration);
        steps.unwrap().node.boxed()
    };
    let spread = coded(steps(64, 96), TileCoder::Rans).unwrap();
    assert!(spread.describe().to_string().contains("spread.v1"));
    // Bytes of floats, coded.
    let floats = Dense::from_f32(matrix(12, 200, 12).view(), DType::BF16).unwrap().boxed();
    vec![
        ("split_floats", coded(floats, TileCoder::Range).unwrap()),
        ("masked_pairs", form(Masked::new(pairs, dense(6, 32, 13)).unwrap().boxed(), "n_of_m")),
        ("masked_blocks", form(Masked::new(blocks, dense(10, 14, 14)).unwrap().boxed(), "blocks")),
        ("masked_coded", form(few, "tiled.v1")),
        ("coded_range", code(&rows, TileCoder::Range)),
        ("coded_huffman", code(&rows, TileCoder::Huffman)),
        ("coded_rans", code(&rare, TileCoder::Rans)),
        ("rounded", round(GridSpec::new(4, 4))),
        ("wide", wide(6, 10)),
        ("wide_coded", wide_coded),
        ("levels", Nf4::default().compress(weight.view(), &blind).unwrap().node.boxed()),
        ("levels_blocks", Sketch::new(2, 4).compress(weight.view(), &blind).unwrap().node.boxed()),
        ("prefixed", Nested::new(1, 3).compress(weight.view(), &blind).unwrap().node.boxed()),
        ("pyramid", Pvq::new(2, 4).compress(weight.view(), &blind).unwrap().node.boxed()),
        ("lattice", E8::default().compress(weight.view(), &blind).unwrap().node.boxed()),
        ("signed", BitStack::new(2, 1).compress(weight.view(), &calibration).unwrap().node),
        ("steps", steps(6, 10)),
        ("spread", spread),
        ("path", Qtip::bits(2).compress(weight.view(), &calibration).unwrap().node),
        ("nested", Spqr::default().compress(weight.view(), &calibration).unwrap().node),
        ("real_zeros", Hqq::default().compress(weight.view(), &blind).unwrap().node.boxed()),
        ("additive", Aqlm::new(2, 2).compress(weight.view(), &calibration).unwrap().node.boxed()),
        ("levels_types", BitMod::default().compress(weight.view(), &blind).unwrap().node.boxed()),
        ("symmetric", round(GridSpec::new(2, 0).with_symmetric(true))),
        ("gptq", gptq.compress(weight.view(), &calibration).unwrap().node),
        ("masked_codes", Masked::new(mask(), round(GridSpec::new(4, 4))).unwrap().boxed()),
        ("masked_values", Masked::new(mask(), dense(6, 10, 6)).unwrap().boxed()),
        ("sum", Sum::new(vec![dense(6, 10, 7), product]).unwrap().boxed()),
        ("stacked", Stacked::new(vec![dense(2, 10, 17), masked_rows()]).unwrap().boxed()),
        (
            "block_diagonal",
            BlockDiagonal::new(vec![dense(2, 3, 20), dense(3, 1, 21)]).unwrap().boxed(),
        ),
        (
            "interleaved",
            BlockDiagonal::interleaved(vec![dense(2, 3, 22), dense(1, 2, 23)]).unwrap().boxed(),
        ),
        (
            "tensor_train",
            TensorTrain::new(vec![[2, 3], [3, 2]], vec![dense(4, 3, 24), dense(3, 4, 25)])
                .unwrap()
                .boxed(),
        ),
        ("rotated", Transformed::new(Side::Out, hadamard, dense(6, 10, 8)).unwrap().boxed()),
        ("turned", Transformed::new(Side::In, turn, dense(6, 10, 9)).unwrap().boxed()),
        ("rounded_inputs", RoundedInputs::new(inputs, dense(6, 10, 10)).boxed()),
        ("scaled", Transformed::new(Side::In, scale, dense(6, 10, 9)).unwrap().boxed()),
    ]
}

fn write_seeds() {
    for target in ["node", "checkpoint"] {
        std::fs::create_dir_all(seeds(target)).unwrap();
        for (name, node) in trees() {
            let described = serde_json::json!({"w": node.describe()}).to_string();
            let metadata = BTreeMap::from([("tensorpress".to_owned(), described)]);
            let path = seeds(target).join(name);
            write_shard(&path, &metadata, &mut |sink| node.parts("w", sink)).unwrap();
        }
    }
}

/// KV caches in every form, some with tokens gone.
fn write_caches() {
    std::fs::create_dir_all(seeds("kv")).unwrap();
    let shape = KvShape::new(4, 2, 16).unwrap();
    let int = |bits| Int::new(bits).with_group(16).with_window(16).with_margin(4);
    let forms = [
        ("f16", StoreForm::Float(DType::F16), None),
        ("int4", StoreForm::Int(int(4)), None),
        ("int2_token", StoreForm::Int(int(2).with_keys(Axis::Token)), None),
        ("int8_sliding", StoreForm::Int(int(8).with_sliding(true)), None),
        ("bitmap", StoreForm::Bitmap(Bitmap::new(0.7).with_window(4)), None),
        (
            "demoted",
            StoreForm::Float(DType::BF16),
            Some(StoreForm::Int(int(2).with_keys(Axis::Token))),
        ),
    ];
    for (name, form, low) in forms {
        let mut layer = Layer::new(shape, form).unwrap();
        let tokens = |seed: u64| {
            let values = matrix(40, 32, seed).into_raw_vec_and_offset().0;
            Array3::from_shape_vec((40, 2, 16), values).unwrap()
        };
        let demoted = low.is_some();
        if let Some(low) = low {
            layer = layer.with_low(low).unwrap();
        }
        layer.append(tokens(20).view(), tokens(21).view()).unwrap();
        let keep = HeadSlots(vec![(0..40).step_by(3).collect(), (5..40).collect()]);
        if demoted {
            layer.demote(&keep).unwrap();
        } else if name != "int4" {
            layer.retain(&keep).unwrap();
        }
        let metadata = BTreeMap::from([("kv".to_owned(), layer.describe().to_string())]);
        let path = seeds("kv").join(name);
        write_shard(&path, &metadata, &mut |sink| layer.parts("kv", sink)).unwrap();
    }
    // Caches with policies, each with other statistics.
    for (name, recipe) in [
        ("cache", "f32"),
        ("cache_h2o", "f32 | h2o(tokens=20, recent=4, stride=2) | adakv"),
        ("cache_snapkv", "kivi(bits=4, group=16) | pyramidkv(keep=0.5, window=4, pooling=max)"),
        ("cache_expected", "f16 | expected_attention(bytes=2000, future=4)"),
        ("cache_demoted", "f32 | random(tokens=20) | demote(bits=2)"),
        ("cache_merged", "f16 | zeromerge(tokens=20, recent=4, stride=2)"),
        ("cache_gear", "gear(bits=2, group=16, chunk=16, rank=1, window=4, margin=2)"),
        ("cache_kvquant", "kvquant(bits=3, fit=8, window=4, margin=2)"),
        ("cache_zipcache", "zipcache(bits=4, chunk=8, window=4, margin=2)"),
        ("cache_pq", "pq_cache(sub=4, bits=4, fit=16, window=4, margin=2)"),
        ("cache_projected", "channel_shrink(chunk=8, fit=16, window=4, margin=2)"),
        (
            "cache_rotated",
            "hadamard_int(value_bits=2, group=16, sinks=0, centre=false, window=4, margin=2)",
        ),
        ("cache_centred", "hadamard_int(group=16, sinks=1, window=4, margin=2)"),
    ] {
        let recipe: KvRecipe = recipe.parse().unwrap();
        let mut cache = recipe.caches(2, 4, 2, 16).unwrap().remove(1);
        // A mean waits for 32 tokens.
        for tokens in [if name == "cache_centred" { 50 } else { 30 }, 1, 1] {
            let some = |heads: usize, seed| {
                let values = matrix(tokens, heads * 16, seed).into_raw_vec_and_offset().0;
                Array3::from_shape_vec((tokens, heads, 16), values).unwrap()
            };
            cache.append(some(2, 20).view(), some(2, 21).view()).unwrap();
            let mut out = Array3::zeros((tokens, 4, 16));
            let mut scratch = Scratch::default();
            cache.attend(some(4, 22).view(), None, out.view_mut(), &mut scratch).unwrap();
        }
        let metadata = BTreeMap::from([("kv".to_owned(), cache.describe().to_string())]);
        let path = seeds("kv").join(name);
        write_shard(&path, &metadata, &mut |sink| cache.parts("kv", sink)).unwrap();
    }
    for (name, recipe) in [
        ("caches", "f16 | h2o(tokens=20, recent=4, stride=2)"),
        ("caches_minicache", "minicache(bits=4, chunk=16, window=4, margin=2)"),
        ("caches_aqua", "aqua_kv(bits=3, chunk=16, sinks=2, window=4, margin=2)"),
        ("caches_xkv", "xkv(group=2, chunk=16, window=4, margin=2)"),
    ] {
        let recipe: KvRecipe = recipe.parse().unwrap();
        let shape = KvShape::new(4, 2, 16).unwrap();
        let mut caches = recipe.together(&[shape; 4]).unwrap();
        for layer in 0..4 {
            let some = |seed| {
                let values = matrix(40, 32, seed).into_raw_vec_and_offset().0;
                Array3::from_shape_vec((40, 2, 16), values).unwrap()
            };
            caches.append(layer, some(30).view(), some(31).view()).unwrap();
        }
        let metadata = BTreeMap::from([("kv".to_owned(), caches.describe().to_string())]);
        let path = seeds("kv").join(name);
        write_shard(&path, &metadata, &mut |sink| caches.parts("kv", sink)).unwrap();
    }
    std::fs::create_dir_all(seeds("stream")).unwrap();
    let [k, v] = [40, 41].map(|seed| matrix(20, 6, seed));
    for (name, group) in [("plain", 0), ("anchors", 8)] {
        let level = Level::new(&[32, 16], &[16, 8]).unwrap().with_group(group);
        let chunk = Chunk::quantise(&[k.view(), v.view()], &[v.view(), k.view()], &level).unwrap();
        std::fs::write(seeds("stream").join(name), chunk.write(None).unwrap()).unwrap();
    }
    std::fs::write(seeds("recipe").join("kv"), "kivi(bits=4) | h2o(keep=0.5) | demote(bits=2)")
        .unwrap();
}

/// Pages of keys and values: full and not, rotated by each kind of matrix and not, every type of scales.
fn write_pages() {
    std::fs::create_dir_all(seeds("page")).unwrap();
    let new = PageConfig::new;
    for (name, config, held) in [
        ("full", new(4, 2, 32), 4),
        ("part", new(4, 2, 32).with_bits(5, 3).with_seed(9), 1),
        ("symmetric", new(3, 2, 24).with_group(10).with_symmetric(true), 3),
        ("plain", new(2, 1, 33).with_rotate(false).with_scales(DType::BF16), 2),
        ("latent", new(2, 1, 36).with_value_dim(0).with_bits(8, 8).with_scales(DType::F32), 2),
    ] {
        let codec = PageCodec::new(config).unwrap();
        let rows = |dim: usize, seed| {
            let values = matrix(held, config.kv_heads * dim, seed).into_raw_vec_and_offset().0;
            Array3::from_shape_vec((held, config.kv_heads, dim), values).unwrap()
        };
        let (keys, values) = (rows(config.head_dim, 30), rows(config.value_dim, 31));
        let mut page = vec![0; codec.page_bytes()];
        let mut scratch = PageScratch::default();
        codec.encode(keys.view(), values.view(), &mut page, &mut scratch).unwrap();
        std::fs::write(seeds("page").join(name), page).unwrap();
    }
}

/// Packed files: one file, a folder with everything, a difference.
fn write_packed() {
    let weights = matrix(8, 20, 11);
    let mut bf16 = Vec::new();
    DType::BF16.write_f32(weights.as_slice().unwrap(), &mut bf16).unwrap();
    let header =
        format!(r#"{{"w":{{"dtype":"BF16","shape":[8,20],"data_offsets":[0,{}]}}}}"#, bf16.len());
    let length = (header.len() as u64).to_le_bytes();
    let file = [&length, header.as_bytes(), &bf16].concat();
    // Near the base of the target, which is packed as a difference.
    let mut near = [&length, header.as_bytes()].concat();
    near.extend((0..320u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    *near.last_mut().unwrap() ^= 1;
    let text = b"Once upon a time".repeat(9);
    let named = |files: &[(&str, &[u8])]| {
        files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec().into())).collect()
    };
    let all = named(&[
        ("a/m.safetensors", &file),
        ("again", &file),
        ("empty", &[]),
        ("text", &text),
        ("zeros", &[0; 999]),
    ]);
    let packed = [
        ("single", Packer::new().pack_bytes(named(&[("m.safetensors", &file)]), false)),
        ("folder", Packer::new().with_effort(Effort::Best).pack_bytes(all, true)),
        (
            "delta",
            Packer::new()
                .with_base(targets::tpk_base())
                .pack_bytes(named(&[("m.safetensors", &near)]), false),
        ),
    ];
    std::fs::create_dir_all(seeds("tpk")).unwrap();
    let words: Vec<u16> = bf16.as_chunks().0.iter().map(|w| u16::from_le_bytes(*w)).collect();
    let ramp: Vec<u32> = (0..3000).collect();
    for (name, frame) in [
        ("frame_bf16", compress(&words, ValueType::BF16)),
        ("frame_best", compress_with(&near.repeat(40), ValueType::Bytes, Effort::Best)),
        ("frame_ramp", compress(&ramp, ValueType::I32)),
        ("frame_empty", compress::<f32>(&[], ValueType::F32)),
    ] {
        std::fs::write(seeds("tpk").join(name), frame).unwrap();
    }
    for (name, bytes) in packed {
        std::fs::write(seeds("tpk").join(name), bytes.unwrap()).unwrap();
    }
}

/// Small layers of everybody's formats, and GGUF files of every type.
fn write_formats() {
    use tensorpress::formats::ggml::{self, Type};
    use tensorpress::formats::gguf::{Array, Header, Kind, Value};
    use tensorpress::formats::{awq, export, gptq};
    use tensorpress::tensor::RawTensor;

    let dense = |shape: &[usize]| {
        let (rows, cols) = (shape[0], shape[1]);
        matrix(rows, cols, 30).mapv(|v| 0.1 * v)
    };
    let round = |shape: &[usize], bits: u8, group: usize, symmetric: bool| {
        let grid = GridSpec::new(bits, group).with_symmetric(symmetric);
        let weight = dense(shape);
        let blind = Calibration::none(weight.ncols());
        Rtn::new(grid).compress(weight.view(), &blind).unwrap().node.boxed()
    };
    let write =
        |target: &str, name: &str, config: serde_json::Value, parts: Vec<(String, RawTensor)>| {
            std::fs::create_dir_all(seeds(target)).unwrap();
            let metadata = BTreeMap::from([("quantization_config".to_owned(), config.to_string())]);
            write_shard(&seeds(target).join(name), &metadata, &mut |sink| {
                parts.iter().try_for_each(|(name, tensor)| {
                    sink.part(tensorpress::tensor::Part {
                        name: name.clone(),
                        kind: tensorpress::tensor::PartKind::Codes,
                        dtype: tensorpress::tensor::Tensor::dtype(tensor),
                        shape: tensorpress::tensor::Tensor::shape(tensor).to_vec(),
                        bytes: std::borrow::Cow::Borrowed(tensor.bytes()),
                    })
                })
            })
            .unwrap();
        };
    let named = |parts: export::Stored, layer: &str| -> Vec<(String, RawTensor)> {
        let full = |part: &str| match part {
            "" => layer.to_owned(),
            part => format!("{layer}.{part}"),
        };
        parts.into_iter().map(|(part, tensor)| (full(part), tensor)).collect()
    };
    for bits in [2u8, 3, 4, 8] {
        let node = round(&[32, 64], bits, 32, false);
        let parts = export::gptq(&*node, gptq::Version::V2).unwrap();
        let config = serde_json::json!({
            "quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": "gptq_v2",
        });
        write("gptq_awq", &format!("gptq_{bits}"), config, named(parts, "l"));
        let parts = export::compressed_tensors(&*node, bits, false).unwrap();
        let config = serde_json::json!({
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": bits, "type": "int"}}},
        });
        write("compressed_tensors", &format!("pack_{bits}"), config, named(parts, "l"));
    }
    let calibration = Calibration::from_samples(matrix(80, 64, 2), Par::Seq);
    let ordered = Gptq::new(GridSpec::new(4, 32)).with_act_order(true);
    let ordered = ordered.compress(dense(&[32, 64]).view(), &calibration).unwrap().node;
    let parts = export::gptq(&*ordered, gptq::Version::V2).unwrap();
    let config = serde_json::json!({
        "quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2",
    });
    write("gptq_awq", "gptq_ordered", config, named(parts, "l"));
    for (layout, version) in [
        (awq::Layout::Gemm, "gemm"),
        (awq::Layout::Gemv, "gemv"),
        (awq::Layout::GemvFast, "gemv_fast"),
    ] {
        let parts = export::awq(&*round(&[32, 128], 4, 64, false), layout).unwrap();
        let config =
            serde_json::json!({"quant_method": "awq", "group_size": 64, "version": version});
        write("gptq_awq", &format!("awq_{version}"), config, named(parts, "l"));
    }
    for (name, nested) in [("nf4", false), ("nf4_nested", true)] {
        let weight = dense(&[12, 50]);
        let nf4 = Nf4::default().with_block(64).with_double_quant(nested);
        let node = nf4.compress(weight.view(), &Calibration::none(50)).unwrap().node;
        let parts = export::bits_and_bytes(&node, DType::BF16).unwrap();
        let config = serde_json::json!({"quant_method": "bitsandbytes"});
        write("bnb", name, config, named(parts, "l.weight"));
    }
    let bytes = |n: usize| (0..n).map(|i| (i * 37 % 251) as u8).collect::<Vec<u8>>();
    let raw = |dtype: DType, shape: &[usize]| {
        let bytes = bytes(shape.iter().product::<usize>() * dtype.size());
        RawTensor::new(dtype, shape.to_vec(), bytes.into()).unwrap()
    };
    let float = |shape: &[usize]| {
        let values = Array2::from_elem((shape[0], shape[1]), 0.5f32);
        RawTensor::from_f32(values.view().into_dyn(), DType::F32).unwrap()
    };
    let config = serde_json::json!({"quant_method": "bitsandbytes"});
    let scb = RawTensor::new(DType::F32, vec![6], [0, 0, 128, 63].repeat(6).into()).unwrap();
    let parts = vec![("l.weight".to_owned(), raw(DType::I8, &[6, 10])), ("l.SCB".to_owned(), scb)];
    write("bnb", "int8", config, parts);
    let scheme = |bits: u8, kind: &str| {
        serde_json::json!({
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"weights": {"num_bits": bits, "type": kind}}},
        })
    };
    let parts = |list: Vec<(&str, RawTensor)>| -> Vec<(String, RawTensor)> {
        list.into_iter().map(|(name, tensor)| (format!("l.{name}"), tensor)).collect()
    };
    write(
        "compressed_tensors",
        "int8",
        scheme(8, "int"),
        parts(vec![("weight", raw(DType::I8, &[4, 6])), ("weight_scale", float(&[4, 1]))]),
    );
    write(
        "compressed_tensors",
        "mxfp4",
        scheme(4, "float"),
        parts(vec![
            ("weight_packed", raw(DType::U8, &[3, 32])),
            ("weight_scale", raw(DType::U8, &[3, 2])),
        ]),
    );
    write(
        "compressed_tensors",
        "bitmask",
        scheme(8, "int"),
        parts(vec![
            (
                "weight.shape",
                RawTensor::new(
                    DType::I64,
                    vec![2],
                    [2u64, 8].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().into(),
                )
                .unwrap(),
            ),
            (
                "weight.bitmask",
                RawTensor::new(DType::U8, vec![2, 1], vec![0b101, 0b1].into()).unwrap(),
            ),
            ("weight.compressed", raw(DType::F16, &[3])),
            (
                "weight.row_offsets",
                RawTensor::new(
                    DType::I64,
                    vec![2],
                    [0u64, 2].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().into(),
                )
                .unwrap(),
            ),
        ]),
    );

    let mut known = tensorpress::formats::imatrix::Imatrix::default();
    for (name, experts) in [("blk.0.attn_q.weight", 1), ("blk.0.ffn_up_exps.weight", 2)] {
        let squares = tensorpress::formats::imatrix::Squares::new(vec![0.5; 8], vec![3.0; experts]);
        known.matrices.insert(name.to_owned(), squares.unwrap());
    }
    std::fs::create_dir_all(seeds("imatrix")).unwrap();
    std::fs::write(seeds("imatrix").join("gguf"), known.write().unwrap()).unwrap();
    std::fs::write(seeds("imatrix").join("old"), known.write_old().unwrap()).unwrap();

    std::fs::create_dir_all(seeds("gguf")).unwrap();
    for ty in Type::all() {
        let cols = ty.block_len().max(32);
        let weight = dense(&[2, cols]);
        let mut blocks = vec![0; 2 * cols / ty.block_len() * ty.block_bytes()];
        let importance = vec![1.0; cols];
        ggml::encode(ty, weight.as_slice().unwrap(), Some(&importance), &mut blocks).unwrap();
        let text = |text: &str| Value::String(text.to_owned());
        let tokens = Array::new(Kind::String, ["a", "b"].map(text)).unwrap();
        let metadata = vec![
            ("general.architecture".to_owned(), text("llama")),
            ("llama.block_count".to_owned(), Value::U32(1)),
            ("llama.context_length".to_owned(), Value::U32(8)),
            ("llama.embedding_length".to_owned(), Value::U32(cols as u32)),
            ("llama.feed_forward_length".to_owned(), Value::U32(2)),
            ("llama.attention.head_count".to_owned(), Value::U32(1)),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(1e-5)),
            ("tokenizer.ggml.model".to_owned(), text("gpt2")),
            ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
        ];
        let tensors = ["token_embd.weight", "blk.0.attn_q.weight"];
        let tensors = tensors.map(|name| (name.to_owned(), vec![cols as u64, 2], ty.id()));
        let header = Header::new(metadata, tensors).unwrap();
        let mut file = Vec::new();
        header.write(&mut file, &mut |_| Ok(blocks.clone().into())).unwrap();
        std::fs::write(seeds("gguf").join(ty.name()), file).unwrap();
    }
}

/// Old files stay readable, and what is read is written as it was: whoever wrote the seeds, every byte is equal.
#[test]
fn seeds_are_written_back_byte_for_byte() {
    let mut nodes = 0;
    for file in std::fs::read_dir(seeds("node")).expect("seeds are committed") {
        let path = file.unwrap().path();
        let before = std::fs::read(&path).unwrap();
        let checkpoint = Checkpoint::from_bytes("seed", before.clone()).unwrap();
        let trees = checkpoint.trees().unwrap();
        let node = tensorpress::registry().read(&trees["w"], "w", &checkpoint).unwrap();
        let described = serde_json::json!({"w": node.describe()}).to_string();
        let metadata = BTreeMap::from([("tensorpress".to_owned(), described)]);
        let folder = tempfile::tempdir().unwrap();
        let again = folder.path().join("again");
        write_shard(&again, &metadata, &mut |sink| node.parts("w", sink)).unwrap();
        assert!(std::fs::read(again).unwrap() == before, "{}", path.display());
        nodes += 1;
    }
    assert!(nodes >= 15);
}

/// Runs a target on each seed, its prefixes, and its flipped bits; returns how many inputs that were.
fn run(target: &str, f: fn(&[u8])) -> usize {
    let folder = seeds(target);
    let files = std::fs::read_dir(&folder).expect("seeds are committed");
    let (mut count, mut inputs) = (0, 0);
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        f(&bytes);
        let step = (bytes.len() / 400).max(1);
        for at in (0..bytes.len()).step_by(step) {
            f(&bytes[..at]);
            for bit in [0, 2, 5, 7] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                f(&flipped);
            }
            inputs += 5;
        }
        count += 1;
    }
    println!("fuzz target {target}: {count} seeds, {inputs} damaged inputs");
    assert!(count > 0, "no seeds for {target}");
    inputs
}

#[test]
fn fuzz_targets_survive_their_seeds() {
    // `1` for all of them, or the name of a kind.
    let wanted = std::env::var("TENSORPRESS_WRITE_SEEDS").unwrap_or_default();
    let kinds: [(&str, fn()); 5] = [
        ("nodes", write_seeds),
        ("packed", write_packed),
        ("caches", write_caches),
        ("formats", write_formats),
        ("pages", write_pages),
    ];
    kinds
        .iter()
        .filter(|(kind, _)| wanted == "1" || wanted == *kind)
        .for_each(|(_, write)| write());
    let inputs: usize = targets::ALL.into_iter().map(|(target, f)| run(target, f)).sum();
    assert!(inputs > 1000);
}
