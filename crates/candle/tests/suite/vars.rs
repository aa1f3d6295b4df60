//! Models as decoded tensors.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Error, Module, Tensor};
use candle_nn::VarBuilder;
use tensorpress::model::Source;
use tensorpress::prelude::*;
use tensorpress_candle::{Linear, var_builder};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::decode;

use crate::common::{compressed, converted, demo, golden, tensor};

fn bits(x: &Tensor) -> Vec<u32> {
    let x = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    x.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn bits_of(values: &Array2<f32>) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Every tensor of the folder that the model was made of: there, of its shape, and with the bits that nodes decode to.
fn check(what: &str, source: &Source, original: &Source) {
    let vars = var_builder(source, DType::F32, &Device::Cpu);
    let mut checked = 0;
    for name in original.checkpoint().names() {
        let shape = original.checkpoint().shape(name).unwrap();
        assert!(vars.contains_tensor(name), "{what}: {name}");
        let read = vars.get(shape, name).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(read.dtype(), DType::F32, "{what}: {name}");
        if let Ok(node) = source.weight(name) {
            let expected = decode(&*node).unwrap();
            if shape.len() == 2 && node.shape() == [shape[0], shape[1]] {
                assert!(bits(&read) == bits_of(&expected), "{what}: {name}");
                checked += 1;
            }
        }
        for dtype in [DType::F16, DType::BF16] {
            let narrow = vars.get_with_hints_dtype(shape, name, Default::default(), dtype).unwrap();
            let expected = read.to_dtype(dtype).unwrap();
            assert!(narrow.dtype() == dtype && bits(&narrow) == bits(&expected), "{what}: {name}");
        }
        // Turned or cut it is another tensor.
        let mut other = shape.to_vec();
        other[0] += 1;
        let error = vars.get(other, name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(&format!("{shape:?}")), "{what}: {error}");
    }
    assert!(checked > 0, "{what}");
    // Parts of compressed matrices are no tensors of the model.
    let parts = source.checkpoint().names().filter(|name| {
        name.match_indices('.').any(|(dot, _)| source.trees().contains_key(&name[..dot]))
    });
    for part in parts {
        assert!(!vars.contains_tensor(part) && vars.get_unchecked(part).is_err(), "{what}: {part}");
    }
    for name in ["model.layers.99.mlp.up_proj.weight", "", "model.norm", "lm_head.weight"] {
        assert!(!vars.contains_tensor(name), "{what}: {name}");
        let error = vars.get_unchecked(name).unwrap_err();
        assert!(is_missing(error, name), "{what}: {name}");
    }
}

fn is_missing(error: Error, name: &str) -> bool {
    match error {
        Error::WithBacktrace { inner, .. } => is_missing(*inner, name),
        Error::CannotFindTensor { path } => path == name,
        _ => false,
    }
}

#[test]
fn decoded_to_the_bits_of_nodes() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    let demo = demo();
    check("as it is", &demo, &demo);
    let four = compressed(&demo, "rtn(bits=4, group=32, symmetric=true)", &path("w4"));
    check("4 bits", &four, &demo);
    let line =
        "magnitude(sparsity=0.5) | rtn(bits=3, group=64) | residual(svd(rank=4)) | coded(rans)";
    check("pruned, corrected, coded", &compressed(&demo, line, &path("many")), &demo);
    for to in ["gguf(Q4_1)", "gguf(Q8_0)", "gguf(Q6_K)", "safetensors"] {
        check(to, &converted(&demo, to, &path(&to.replace(['(', ')'], "-"))), &demo);
    }
    for to in ["gptq", "awq", "compressed-tensors"] {
        check(to, &converted(&four, to, &path(to)), &demo);
    }
    let nf4 = compressed(&demo, "nf4(block=64)", &path("nf4"));
    check("bitsandbytes", &converted(&nf4, "bnb", &path("bnb")), &demo);
    let _ = Packer::new().pack(&path("w4"), &path("w4.tpk")).unwrap();
    check("packed", &open_model(path("w4.tpk")).unwrap(), &demo);
}

#[test]
fn sources_are_borrowed_owned_or_shared() {
    let source = demo();
    let shape = [source.config().vocab, source.config().hidden];
    let get = |vars: VarBuilder<'_>| {
        bits(&vars.pp("model.embed_tokens").get(&shape[..], "weight").unwrap())
    };
    let expected = get(var_builder(&source, DType::F32, &Device::Cpu));
    let shared = Arc::new(source);
    let of_shared: VarBuilder<'static> = var_builder(shared.clone(), DType::F32, &Device::Cpu);
    assert!(get(of_shared) == expected);
    let owned: VarBuilder<'static> = var_builder(demo(), DType::F32, &Device::Cpu);
    let (again, other) = (owned.clone(), owned);
    assert!(
        get(again) == expected
            && std::thread::spawn(move || other.contains_tensor("model.norm.weight"))
                .join()
                .unwrap()
    );
}

/// Layers of candle over decoded tensors, beside ours over the same compressed ones.
#[test]
fn layers_of_candle_load_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = compressed(&demo(), "rtn(bits=4, group=32)", &folder.path().join("w4"));
    let config = source.config();
    let (hidden, inner) = (config.hidden, config.intermediate);
    let vars = var_builder(&source, DType::F32, &Device::Cpu).pp("model.layers.2");
    let x = tensor(&[2, 3, hidden], 8);
    let norm = candle_nn::rms_norm(hidden, 1e-5, vars.pp("input_layernorm")).unwrap();
    let x = norm.forward(&x).unwrap();
    let theirs = candle_nn::linear_no_bias(hidden, inner, vars.pp("mlp.up_proj")).unwrap();
    let ours = Linear::load_prepacked(&source, "model.layers.2.mlp.up_proj.weight").unwrap();
    let apart = (ours.forward(&x).unwrap() - theirs.forward(&x).unwrap()).unwrap();
    let apart = apart.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(apart < 1e-3, "{apart}");
    assert!(candle_nn::linear(hidden, inner, vars.pp("mlp.up_proj")).is_err(), "there is no bias");
}

/// Stacks of experts, and matrices that lie with rows for columns: compressed one by one, and whole again.
#[test]
fn stacks_and_turned_matrices_have_their_shapes() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["gpt-oss", "gpt2"] {
        let Some(folder) = golden(name) else { continue };
        let original = open_model(folder).unwrap();
        let source = compressed(&original, "rtn(bits=8, group=0)", &parent.path().join(name));
        let vars = var_builder(&source, DType::F32, &Device::Cpu);
        let plain = var_builder(&original, DType::F32, &Device::Cpu);
        let (mut checked, mut moved) = (0, 0);
        for tensor in original.checkpoint().names() {
            let shape = original.checkpoint().shape(tensor).unwrap();
            assert!(vars.contains_tensor(tensor), "{name}: {tensor}");
            let read = vars.get(shape, tensor).unwrap_or_else(|e| panic!("{name}: {e}"));
            let exact = plain.get(shape, tensor).unwrap();
            let largest = |x: &Tensor| {
                let largest = x.abs().unwrap().max_all().unwrap();
                largest.to_scalar::<f32>().unwrap()
            };
            let apart = largest(&(&read - &exact).unwrap());
            assert!(apart <= 0.01 * largest(&exact), "{name}: {tensor} is {apart} off");
            checked += 1;
            moved += usize::from(apart > 0.0);
        }
        let stored = |spec: &tensorpress_tensor::rewrite::LinearSpec| spec.place.is_some();
        let specs: Vec<_> =
            (0..source.blocks()).flat_map(|b| source.linears(b)).filter(stored).collect();
        assert!(checked > 20 && moved > 4 && specs.len() > 4, "{name}: {checked}, {moved}");
        // Each of them is a layer with its bias.
        for spec in specs {
            let place = spec.place.as_ref().unwrap();
            let layer = Linear::load(&source, &spec.name).unwrap();
            let whole = vars.get_unchecked(&place.tensor).unwrap();
            let part = place.index.map_or(Ok(whole.clone()), |index| whole.get(index)).unwrap();
            let part = if place.transposed { part.t().unwrap() } else { part };
            assert!(bits(&part) == bits_of(&decode(&**layer.node()).unwrap()), "{}", spec.name);
            let exact = Linear::load(&original, &spec.name).unwrap();
            assert!(layer.bias().is_some() && layer.bias() == exact.bias(), "{}", spec.name);
            assert_eq!(layer.node().shape(), exact.node().shape());
        }
    }
}

/// A model that says that its head is its table, and one that says so of tensors that share their memory.
#[test]
fn tied_weights() {
    if let Some(folder) = golden("llama-tied-lmhead") {
        let source = open_model(folder).unwrap();
        let vars = var_builder(&source, DType::F32, &Device::Cpu);
        let read = |name| bits(&vars.get((101, 32), name).unwrap());
        assert!(vars.contains_tensor("model.embed_tokens.weight"));
        assert!(read("model.embed_tokens.weight") == read("lm_head.weight"));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &[("head.weight", "table.weight")], &[("table.weight", "F32", &[2, 3])]);
    let source = open_model(&file).unwrap();
    let vars = var_builder(&source, DType::F32, &Device::Cpu);
    assert!(vars.contains_tensor("head.weight") && !vars.contains_tensor("tail.weight"));
    let read = |name| bits(&vars.get((2, 3), name).unwrap());
    assert!(read("head.weight") == read("table.weight"));
}

/// A file of tensors of a type, counting up, and what else it says.
fn write(file: &Path, metadata: &[(&str, &str)], tensors: &[(&str, &str, &[usize])]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
    header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    for (name, dtype, shape) in tensors {
        let begin = data.len();
        for i in 0..shape.iter().product::<usize>() {
            match *dtype {
                "F64" => data.extend((i as f64).to_le_bytes()),
                "F32" => data.extend((i as f32).to_le_bytes()),
                "I64" | "U64" => data.extend((i as i64).to_le_bytes()),
                "I32" | "U32" => data.extend((i as i32).to_le_bytes()),
                "I16" => data.extend((i as i16).to_le_bytes()),
                "U8" | "BOOL" => data.push(i as u8),
                // 1 and 2, as e4m3 has them.
                "F8_E4M3" => data.push(0x38 + 8 * (i % 2) as u8),
                other => panic!("{other} is not counted in"),
            }
        }
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(file, [&length[..], &header, &data].concat()).unwrap();
}

#[test]
fn tensors_of_every_type_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let types = ["F64", "F32", "I64", "I32", "U32", "I16", "U8", "BOOL"];
    let mut tensors: Vec<(&str, &str, &[usize])> =
        types.iter().map(|dtype| (*dtype, *dtype, &[2, 1, 2][..])).collect();
    tensors.extend([
        ("weight.scalar", "F32", &[][..]),
        ("weight.empty", "F32", &[0, 4]),
        ("weight.also", "I64", &[3, 0]),
        ("weight.matrix", "F32", &[2, 3]),
        ("small", "F8_E4M3", &[4]),
        ("large", "U64", &[2]),
    ]);
    write(&file, &[], &tensors);
    let source = open_model(&file).unwrap();
    let vars = var_builder(&source, DType::F32, &Device::Cpu);
    for dtype in types {
        let read = vars.get((2, 1, 2), dtype).unwrap().flatten_all().unwrap();
        assert_eq!(read.to_vec1::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0], "{dtype}");
        let whole = vars.get_with_hints_dtype((2, 1, 2), dtype, Default::default(), DType::I64);
        assert_eq!(whole.unwrap().flatten_all().unwrap().to_vec1::<i64>().unwrap(), [0, 1, 2, 3]);
        assert!(vars.get(4, dtype).is_err() && vars.get((2, 2), dtype).is_err(), "{dtype}");
    }
    let small = vars.get(4, "small").unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(small, [1.0, 2.0, 1.0, 2.0]);
    let weight = vars.pp("weight");
    assert_eq!(weight.get((), "scalar").unwrap().to_scalar::<f32>().unwrap(), 0.0);
    assert_eq!(weight.get((0, 4), "empty").unwrap().dims(), [0, 4]);
    assert_eq!(weight.get((3, 0), "also").unwrap().dims(), [3, 0]);
    assert_eq!(weight.get((2, 3), "matrix").unwrap().dims(), [2, 3]);
    let error = vars.get(2, "large").unwrap_err().to_string();
    let words = ["U64", "`large`", "model.safetensors"];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

/// What an index names and no file has is missed by the file's name; what is cut off, by the reader.
#[test]
fn damaged_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("a.safetensors"), &[], &[("one.weight", "F32", &[2, 2])]);
    let map = serde_json::json!({"one.weight": "a.safetensors", "two.weight": "b.safetensors"});
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(path("model.safetensors.index.json"), index).unwrap();
    let source = open_model(folder.path()).unwrap();
    let vars = var_builder(&source, DType::F32, &Device::Cpu);
    assert!(vars.get((2, 2), "one.weight").is_ok() && !vars.contains_tensor("two.weight"));
    let error = vars.get((2, 2), "two.weight").unwrap_err().to_string();
    assert!(error.contains("two.weight") && error.contains("b.safetensors"), "{error}");
}
