//! Folders and files of which nothing is known but their tensors.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tensorpress::bill::Bill;
use tensorpress::compress;
use tensorpress::model::embedded;
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress::tensor::Tensor;
use tensorpress::tensor::linalg::gaussian;
use tensorpress::tensor::node::decode;
use tensorpress::tensor::stats::Calibration;

/// Tensors by name, type, shape and bytes, as a safetensors file.
fn write(path: &Path, tensors: &[(&str, &str, &[usize], Vec<u8>)]) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        header.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": range}),
        );
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(path, file).unwrap();
}

fn numbers(shape: &[usize], seed: u64) -> impl Iterator<Item = f32> {
    let count = shape.iter().product::<usize>() as u64;
    (0..count).map(move |i| gaussian(seed, i) as f32)
}

fn floats(shape: &[usize], seed: u64) -> Vec<u8> {
    numbers(shape, seed).flat_map(f32::to_le_bytes).collect()
}

fn halves(shape: &[usize], seed: u64) -> Vec<u8> {
    numbers(shape, seed).flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// A diffusion-like model: convolutions, an embedding, a norm, counters, a type that is not read here.
fn odd(path: &Path) {
    let f = |name, shape: &'static [usize], seed| (name, "F32", shape, floats(shape, seed));
    write(
        path,
        &[
            f("conv_in.weight", &[32, 4, 3, 3], 1),
            ("conv_in.bias", "F32", &[32], vec![0; 128]),
            f("down.0.attn.in_proj_weight", &[96, 32], 2),
            f("down.0.norm.weight", &[32, 1], 3),
            f("down.1.attn.in_proj_weight", &[96, 32], 4),
            ("down.10.mix.weight", "BF16", &[16, 48], halves(&[16, 48], 5)),
            f("down.2.mix.weight", &[5, 7], 6),
            f("token_embedding.weight", &[50, 32], 7),
            ("steps", "I64", &[2, 3], vec![7; 48]),
            ("scales", "F8_E4M3", &[4, 4], (0..16).collect()),
            ("half", "F16", &[], vec![1, 2]),
        ],
    );
}

const WEIGHTS: [&str; 5] = [
    "conv_in.weight",
    "down.0.attn.in_proj_weight",
    "down.1.attn.in_proj_weight",
    "down.2.mix.weight",
    "down.10.mix.weight",
];

fn rtn() -> Recipe {
    Recipe::parse("rtn(bits=4, group=16)").unwrap()
}

#[test]
fn a_folder_and_a_file_of_tensors_are_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let config = json!({"model_type": "spiral_net", "sizes": [1, 2]});
    for name in ["bare", "named", "file"] {
        fs::create_dir(at(name)).unwrap();
        odd(&at(name).join("spiral.safetensors"));
    }
    fs::write(at("named/config.json"), config.to_string()).unwrap();
    fs::write(at("named/notes.txt"), "mine").unwrap();
    let inputs = [at("bare"), at("named"), at("file/spiral.safetensors")];
    for (input, whys) in inputs.iter().zip(["no config.json", "spiral_net", "tensors alone"]) {
        let source = open_model(input).unwrap();
        assert!(source.unknown().unwrap().contains(whys), "{:?}", source.unknown());
        assert!(source.notes().iter().any(|note| note.contains(whys)), "{:?}", source.notes());
        let out = input.with_extension("out");
        let report = Compressor::new(rtn()).run(&source, &out).unwrap();
        let done: Vec<&str> = report.layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(done, WEIGHTS, "blocks in the order of their numbers");
        let read = open_model(&out).unwrap();
        for name in WEIGHTS {
            let weight = source.checkpoint().tensor(name).unwrap();
            let none = Calibration::none(weight.matrix_shape()[1]);
            let expected = compress(&weight, "rtn(bits=4, group=16)", &none).unwrap().node;
            let got = read.weight(name).unwrap();
            assert_eq!(decode(&*got).unwrap(), decode(&*expected).unwrap(), "{name}");
        }
        for name in source.checkpoint().names().filter(|name| !WEIGHTS.contains(name)) {
            let bytes = |source: &Source| source.checkpoint().bytes(name).unwrap();
            assert_eq!(bytes(&source)[..], bytes(&read)[..], "{name}");
            let dtype = |source: &Source| source.checkpoint().dtype_name(name).map(str::to_owned);
            assert_eq!(dtype(&source), dtype(&read), "{name}");
            assert_eq!(source.checkpoint().shape(name), read.checkpoint().shape(name), "{name}");
        }
        let text = fs::read(out.join("config.json")).unwrap();
        let written: Value = serde_json::from_slice(&text).unwrap();
        let shapes = &written["quantization_config"]["shapes"];
        assert_eq!(*shapes, json!({"conv_in.weight": [32, 4, 3, 3]}));
        assert_eq!(out.join("notes.txt").exists(), input.join("notes.txt").exists());
        let bill = Bill::of(&read).unwrap();
        assert_eq!(bill.layers.len(), WEIGHTS.len());
        assert_eq!(bill.weights, 32 * 36 + 2 * 96 * 32 + 5 * 7 + 16 * 48);
        let again = Compressor::new(rtn()).run(&read, &at("again")).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Unsupported, "{again}");
    }
}

#[test]
fn rules_reach_every_matrix() {
    let folder = tempfile::tempdir().unwrap();
    odd(&folder.path().join("model.safetensors"));
    let source = open_model(folder.path()).unwrap();
    let recipe = Recipe::from_toml(
        r#"
        [[stage]]
        method = "rtn"
        bits = 3
        [[layer]]
        match = "*embedding*"
        [[layer.stage]]
        method = "rtn"
        bits = 8
        [[layer]]
        match = "down.1*"
        skip = true
        "#,
    );
    let recipe = recipe.unwrap_or_else(|e| panic!("{e}"));
    let out = folder.path().join("out");
    let report = Compressor::new(recipe).run(&source, &out).unwrap();
    let mut done: Vec<&str> = report.layers.iter().map(|layer| layer.name.as_str()).collect();
    done.sort_unstable();
    let expected = [
        "conv_in.weight",
        "down.0.attn.in_proj_weight",
        "down.2.mix.weight",
        "token_embedding.weight",
    ];
    assert_eq!(done, expected);
}

#[test]
fn what_needs_a_forward_pass_says_why_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    odd(&folder.path().join("model.safetensors"));
    fs::write(folder.path().join("config.json"), r#"{"model_type": "spiral_net"}"#).unwrap();
    let source = open_model(folder.path()).unwrap();
    let text = CalibrationText::new(embedded::CALIBRATION);
    let out = folder.path().join("out");
    for line in ["gptq(bits=4)", "flap(sparsity=0.2)"] {
        for text in [None, Some(text.clone())] {
            let mut compressor = Compressor::new(Recipe::parse(line).unwrap());
            if let Some(text) = text {
                compressor = compressor.with_calibration(text);
            }
            let error = compressor.run(&source, &out).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{line}: {error}");
            assert!(!out.exists() && !folder.path().join("out.partial").exists());
        }
    }
    let error = source.decoder().unwrap_err();
    assert!(error.to_string().contains("spiral_net"), "{error}");
    assert!(source.encoder().is_err() && source.embedding().is_err() && source.head().is_err());
    let error = Source::open(folder.path(), &registry()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "asked for a model: {error}");
}

#[test]
fn what_is_wrong_or_quantised_by_others_is_no_unknown_model() {
    let folder = tempfile::tempdir().unwrap();
    odd(&folder.path().join("model.safetensors"));
    for (config, kind) in [
        (
            r#"{"model_type": "spiral", "quantization_config": {"quant_method": "awq"}}"#,
            ErrorKind::Unsupported,
        ),
        (r#"{"model_type": "llama", "hidden_size": -3}"#, ErrorKind::Corruption),
        ("{", ErrorKind::Corruption),
    ] {
        fs::write(folder.path().join("config.json"), config).unwrap();
        let error = open_model(folder.path()).unwrap_err();
        assert_eq!(error.kind(), kind, "{config}: {error}");
    }
}

#[test]
fn what_lies_beside_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    odd(&folder.path().join("model.safetensors"));
    for name in
        ["pytorch_model.bin", "optimizer.pt", "x.onnx", "x.incomplete", "adapter_config.json"]
    {
        fs::write(folder.path().join(name), "{}").unwrap();
    }
    let source = open_model(folder.path()).unwrap();
    assert_eq!(source.blocks(), 5);
    // Names that only look like parts of others are tensors like others.
    let parts = tempfile::tempdir().unwrap();
    let matrix = |seed| ("F32", &[4usize, 8][..], floats(&[4, 8], seed));
    let tensors = [("a.0", 1), ("a.0.extra", 2), ("a.0.extra.bias", 3), ("b", 4)];
    let tensors = tensors.map(|(name, seed)| {
        let (dtype, shape, bytes) = matrix(seed);
        (name, dtype, shape, bytes)
    });
    let file = parts.path().join("parts.safetensors");
    write(&file, &tensors);
    let source = open_model(&file).unwrap();
    let out = parts.path().join("out");
    let report = Compressor::new(rtn()).run(&source, &out).unwrap();
    assert_eq!(report.layers.len(), 3);
    let read = open_model(&out).unwrap();
    assert!(read.checkpoint().contains("a.0.extra.bias"));
    assert_eq!(read.trees().len(), 3);
    // Read again, the matrices are what they were.
    let names = |source: &Source| -> Vec<(String, [usize; 2])> {
        let linears = (0..source.blocks()).flat_map(|block| source.linears(block));
        linears.map(|spec| (spec.name, spec.shape)).collect()
    };
    assert_eq!(names(&source), names(&read));
}

#[test]
fn what_is_read_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (first, out) = (folder.path().join("first.safetensors"), folder.path().join("out"));
    odd(&first);
    let skip = Recipe::from_toml(
        "[[stage]]\nmethod = \"rtn\"\nbits = 4\n[[layer]]\nmatch = \"down*\"\nskip = true\n",
    );
    let source = open_model(&first).unwrap();
    drop(Compressor::new(skip.unwrap()).run(&source, &out).unwrap());
    // A part of a result is a file of tensors, and lies in a folder that may be replaced.
    let part = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        path.extension().is_some_and(|kind| kind == "safetensors")
            && open_model(path).is_ok_and(|part| part.trees().is_empty() && part.blocks() > 0)
    });
    let source = open_model(part.unwrap()).unwrap();
    let error = Compressor::new(rtn()).with_force(true).run(&source, &out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(open_model(&out).is_ok());
}
